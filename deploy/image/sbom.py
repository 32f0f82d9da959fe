#!/usr/bin/env python3
"""sbom.py CARGO_LOCK: the crates of a Cargo.lock as a CycloneDX bill of materials."""

import json
import sys
import tomllib

packages = tomllib.load(open(sys.argv[1], "rb"))["package"]
own = next(p for p in packages if p["name"] == "headwater")


def component(package):
    purl = f"pkg:cargo/{package['name']}@{package['version']}"
    made = {"type": "library", "bom-ref": purl, "name": package["name"], "version": package["version"], "purl": purl}
    if "checksum" in package:
        made["hashes"] = [{"alg": "SHA-256", "content": package["checksum"]}]
    return made


json.dump({
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {"component": {"type": "application", "name": "headwater", "version": own["version"]}},
    # Crates with a source are from outside; the workspace's own have none.
    "components": [component(p) for p in packages if "source" in p],
}, sys.stdout, indent=1)
