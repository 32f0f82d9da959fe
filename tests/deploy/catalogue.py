"""The metrics that the code exports, read from its source: most counters show up in /metrics only once they have counted something."""

import re

import promql_parser

from chart import ROOT

CRATES = ("node", "origin", "edge", "src")
# What a scrape adds.
TARGET = {"job", "instance", "namespace", "pod", "container", "node", "cluster", "le"}


class Catalogue:
    """Type and labels by metric, from constants, `describe_*!` and the macros that write."""

    def __init__(self):
        self.types, self.labels = {}, {}
        sources = [p.read_text() for crate in CRATES for p in sorted((ROOT / crate).rglob("*.rs"))]
        # A name may stand for different metrics in different modules, so each file's own definition wins.
        everywhere = {}
        for source in sources:
            for name, metric in re.findall(r'const (\w+): &str =\s*"(headwater_\w+)"', source):
                everywhere.setdefault(name, set()).add(metric)
        for source in sources:
            own = dict(re.findall(r'const (\w+): &str =\s*"(headwater_\w+)"', source))
            for kind, name in re.findall(r"describe_(counter|gauge|histogram)!\(\s*((?:\w+::)*\w+)", source):
                name = name.rsplit("::", 1)[-1]
                for metric in {own[name]} if name in own else everywhere.get(name, ()):
                    self.types[metric] = kind
            for name, rest in re.findall(r"\b(?:counter|gauge|histogram)!\(\s*((?:\w+::)*\w+)([^;]*?)\)", source):
                name = name.rsplit("::", 1)[-1]
                for metric in {own[name]} if name in own else everywhere.get(name, ()):
                    self.labels.setdefault(metric, set()).update(re.findall(r'"(\w+)"\s*=>', rest))
            # A closure that labels its gauges: `|name| gauge!(name, "shard" => …)`.
            for labels in re.findall(r'\|name: &\'static str\| gauge!\(name, "(\w+)"', source):
                for name in re.findall(r"of_shard\((\w+)\)", source):
                    for metric in everywhere.get(name, ()):
                        self.labels.setdefault(metric, set()).add(labels)
        for metric, kind in list(self.types.items()):
            if kind == "histogram":
                for suffix in ("_bucket", "_sum", "_count"):
                    self.types[metric + suffix] = "counter"
                    self.labels[metric + suffix] = self.labels.get(metric, set())

    def faults(self, metric, labels, function=None):
        """What is wrong with a selector of these labels, under this PromQL function."""
        if metric not in self.types:
            return [f"{metric} is not exported"]
        found = [f"{metric} has no label {label}" for label in labels - self.labels.get(metric, set()) - TARGET]
        if function in ("rate", "irate", "increase") and self.types[metric] != "counter":
            found.append(f"{function}() of {metric}, a {self.types[metric]}")
        return found


def selectors(expression):
    """Each selector of a PromQL expression: its metric and its labels."""
    return [(metric, labels) for metric, labels, _ in walk(promql_parser.parse(expression))]


def walk(node, function=None):
    """Each selector: metric, labels, and the function around it."""
    for selector, function in vector_selectors(node, function):
        yield selector.name, {m.name for m in selector.matchers.matchers}, function


def whole_buckets(node):
    """Bounds of buckets without a point: Prometheus 2 keeps `1` as it is written, 3 makes it `1.0`, so that a selector finds it in one of them only."""
    return [m.value for selector, _ in vector_selectors(node) for m in selector.matchers.matchers if m.name == "le" and re.fullmatch(r"[0-9]+", m.value)]


def vector_selectors(node, function=None):
    kind = type(node).__name__
    if kind == "VectorSelector":
        yield node, function
    elif kind == "MatrixSelector":
        yield from vector_selectors(node.vector_selector, function)
    elif kind == "Call":
        for argument in node.args:
            yield from vector_selectors(argument, node.func.name)
    elif kind == "BinaryExpr":
        yield from vector_selectors(node.lhs, function)
        yield from vector_selectors(node.rhs, function)
    elif kind in ("AggregateExpr", "ParenExpr", "UnaryExpr", "SubqueryExpr"):
        yield from vector_selectors(node.expr, function)
