#!/usr/bin/env python3
"""Writes what follows from headwater/values.yaml and values.schema.json; `--check` only says whether it is up to date.

- headwater/README.md: the table of values, from the comments;
- headwater/charts/etcd/values.yaml and values.schema.json: the `etcd` section, by which the sub-chart stands alone;
- in headwater/values.schema.json the keys that `config` may have, from deploy/headwater.toml.

Every key has a comment above it, a section's included. A key whose children have none is shown whole, with its default.
"""

import json
import pathlib
import re
import sys
import textwrap

CHART = pathlib.Path(__file__).resolve().parent / "headwater"
BEGIN, END = "<!-- values: begin, written by ../generate.py -->\n", "<!-- values: end -->\n"
KEY = re.compile(r"^( *)([A-Za-z]\w*):(?: (.*))?$")


def entries(text):
    """Yields (path, comment, default or None for sections) of each commented key, in order."""
    lines = text.splitlines()
    stack, comment, plain = [], [], None
    for number, line in enumerate(lines):
        stripped = line.strip()
        if not stripped:
            comment = []
            continue
        indent = len(line) - len(line.lstrip())
        if plain is not None and indent > plain:
            continue  # inside a value that is shown whole
        plain = None
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        match = KEY.match(line)
        if not match:
            sys.exit(f"values.yaml:{number + 1}: neither a key nor a comment: {stripped}")
        if not comment:
            sys.exit(f"values.yaml:{number + 1}: {match[2]} has no comment")
        while stack and stack[-1][0] >= indent:
            stack.pop()
        path = ".".join([*(key for _, key in stack), match[2]])
        value = match[3]
        if value is None:
            inner = [l for l in lines[number + 1:] if l.strip()]
            if inner[0].strip().startswith("#"):
                stack.append((indent, match[2]))
            else:
                plain = indent
                value = "…"
        yield path, " ".join(comment), value
        comment = []


def table(values, chart_values):
    out, section = [], None
    for path, comment, default in entries(values):
        text = comment.replace("|", "\\|")
        of = path.split(".")[0] if "." in path or default is None else "General"
        if of != section:
            section = of
            out.append(f"\n### {of}\n\n")
            if default is None:
                out.append(f"{text}\n\n")
            out.append("| value | default | |\n|---|---|---|\n")
            if default is None:
                continue
        if default == "…":
            node = chart_values
            for key in path.split("."):
                node = node[key]
            default = json.dumps(node)
        out.append(f"| **`{path}`** | | {text} |\n" if default is None else f"| `{path}` | `{default}` | {text} |\n")
    return "".join(out)


def readme(values, chart_values):
    text = (CHART / "README.md").read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table(values, chart_values) + "\n" + END + after


def etcd_values(values):
    section = re.search(r"(?ms)^etcd:\n(.*?)(?=^\S|\Z)", values)[1].rstrip("\n")
    section = re.sub(r"\n+#[^\n]*\Z", "", section)
    body = "\n".join(line[2:] for line in section.splitlines())
    return ("# Written by ../../../generate.py from the `etcd` section of the parent's values.yaml.\n"
            "# Seen by the parent, too.\nglobal:\n  imageRegistry: \"\"\n  ipv6: false\n" + body + "\n")


def etcd_schema(schema):
    used, open_ = {}, [schema["properties"]["etcd"]]
    while open_:
        for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(open_.pop())):
            if name not in used:
                used[name] = schema["$defs"][name]
                open_.append(used[name])
    own = {"$schema": schema["$schema"], "title": "Values of the etcd sub-chart", **schema["properties"]["etcd"], "$defs": used}
    return json.dumps(own, indent=2) + "\n"


def settings():
    """The keys of deploy/headwater.toml, those in comments included."""
    section = ""
    for line in (CHART.parents[1] / "deploy/headwater.toml").read_text().splitlines():
        if match := re.match(r"\[([a-z_.]+)\]", line):
            section = match[1] + "."
        elif match := re.match(r"(?:# )?([a-z_]+) = ", line):
            yield section + match[1]


def with_settings(schema):
    """The schema's text with the keys of settings in it; the rest as it was written."""
    keys = textwrap.fill(", ".join(json.dumps(key) for key in sorted(settings())), 150, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return re.sub(r'"propertyNames": \{"enum": \[[^]]*\]\}', lambda _: f'"propertyNames": {{"enum": [\n{keys}\n      ]}}', schema)


def main():
    import yaml
    values = (CHART / "values.yaml").read_text()
    schema_text = with_settings((CHART / "values.schema.json").read_text())
    schema = json.loads(schema_text)
    written = {
        CHART / "values.schema.json": schema_text,
        CHART / "README.md": readme(values, yaml.safe_load(values)),
        CHART / "charts/etcd/values.yaml": etcd_values(values),
        CHART / "charts/etcd/values.schema.json": etcd_schema(schema),
    }
    stale = [path for path, text in written.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(CHART.parent)} is out of date: run helm/generate.py")
        sys.exit(bool(stale))
    for path in stale:
        path.write_text(written[path])


if __name__ == "__main__":
    main()
