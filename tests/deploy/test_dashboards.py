"""Grafana's dashboards: up to date with their generator, readable, and of metrics and labels that the code exports."""

import json
import re
import subprocess
import sys
import unittest

import promql_parser
import yaml

from catalogue import Catalogue, walk, whole_buckets
from chart import ROOT

GRAFANA = ROOT / "deploy/grafana"


def plain(expression):
    """The query with Grafana's variables filled in."""
    expression = re.sub(r"\$__rate_interval|\$__interval", "1m", expression)
    return re.sub(r"\$\{?\w+\}?", ".*", expression)


class Dashboards(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dashboards = {path.stem: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("*.json"))}

    def panels(self):
        for name, dashboard in self.dashboards.items():
            for panel in dashboard["panels"]:
                if panel["type"] != "row":
                    yield name, panel

    def test_they_are_what_the_generator_writes(self):
        done = subprocess.run([sys.executable, str(GRAFANA / "generate.py"), "--check"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(self.dashboards), 4)

    def test_queries_are_of_metrics_that_the_code_exports(self):
        catalogue = Catalogue()
        for name, panel in self.panels():
            for target in panel["targets"]:
                for metric, labels, function in walk(promql_parser.parse(plain(target["expr"]))):
                    if not metric.startswith("etcd_"):
                        with self.subTest(dashboard=name, panel=panel["title"]):
                            self.assertEqual(catalogue.faults(metric, labels, function), [])

    def test_queries_are_of_the_namespace_and_buckets_as_prometheus_3_names_them(self):
        for name, panel in self.panels():
            for target in panel["targets"]:
                with self.subTest(dashboard=name, panel=panel["title"]):
                    parsed = promql_parser.parse(plain(target["expr"]))
                    self.assertEqual([metric for metric, labels, _ in walk(parsed) if "namespace" not in labels], [])
                    self.assertEqual(whole_buckets(parsed), [])

    def test_legends_are_of_labels_that_queries_keep(self):
        for name, panel in self.panels():
            for target in panel["targets"]:
                used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                kept = {label.strip() for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in by.split(",")}
                aggregated = re.match(r"(8 \* )?(sum|max|count|histogram_quantile)\b", target["expr"])
                if aggregated and used:
                    self.assertLessEqual(used, kept, f"{name}: {panel['title']}")

    def test_panels_say_what_they_show_and_do_not_overlap(self):
        for name, dashboard in self.dashboards.items():
            taken = {}
            for panel in dashboard["panels"]:
                where = panel["gridPos"]
                self.assertLessEqual(where["x"] + where["w"], 24)
                for cell in ((x, y) for x in range(where["x"], where["x"] + where["w"]) for y in range(where["y"], where["y"] + where["h"])):
                    self.assertNotIn(cell, taken, f"{name}: {panel['title']} and {taken.get(cell)}")
                    taken[cell] = panel["title"]
        for name, panel in self.panels():
            self.assertTrue(panel["description"] and panel["fieldConfig"]["defaults"]["unit"], f"{name}: {panel['title']}")

    def test_most_metrics_are_shown_somewhere(self):
        shown = {metric.removesuffix("_bucket").removesuffix("_count") for _, panel in self.panels() for target in panel["targets"]
                 for metric, _, _ in walk(promql_parser.parse(plain(target["expr"])))}
        types = Catalogue().types
        ours = {metric for metric in types if not metric.endswith(("_bucket", "_sum", "_count"))}
        self.assertGreater(len(shown & ours) / len(ours), 0.7, sorted(ours - shown))

    def test_grafana_finds_them(self):
        files = {path.name: yaml.safe_load(path.read_text()) for path in (GRAFANA / "provisioning").rglob("*.yaml")}
        self.assertEqual(files["datasources.yaml"]["datasources"][0]["type"], "prometheus")
        self.assertEqual(files["dashboards.yaml"]["providers"][0]["type"], "file")


if __name__ == "__main__":
    unittest.main()
