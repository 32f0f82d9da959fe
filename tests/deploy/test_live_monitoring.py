"""A real Prometheus scrapes a real cluster under load: every rule evaluates, no panel of the dashboards is empty, and no alert fires for nothing."""

import json
import re
import socket
import time
import unittest

import promql_parser
import yaml

import ports
from catalogue import walk
from chart import ROOT
from live import Cluster, eventually, get, missing, post

RULES = ROOT / "deploy/prometheus/headwater.rules.yaml"
GRAFANA = ROOT / "deploy/grafana"
# What Grafana would fill in; scraped every second.
WINDOW = "20s"

# Counters of faults by kinds that nobody can list before: what they count has to happen first, and doesn't here.
FAULTS = {
    "headwater_directory_watch_reopened_total", "headwater_origin_rtmp_rejected_total", "headwater_origin_rtmp_skipped_total",
}


def filled(expression):
    expression = re.sub(r"\$__(rate_)?interval", WINDOW, expression)
    return re.sub(r"\$\{?\w+\}?", ".*", expression)


class Prometheus:
    def __init__(self, cluster, targets):
        [self.port] = ports.free(1)
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
                               for job, ports in targets.items()],
        }
        file = cluster.directory / "prometheus.yaml"
        file.write_text(yaml.safe_dump(config))
        cluster.start("prometheus", ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={cluster.directory / 'tsdb'}",
                                     f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"])

    def ask(self, what, **query):
        answer = get(self.port, f"/api/v1/{what}", **query)
        return json.loads(answer)["data"] if answer else None

    def values(self, expression):
        return [float(series["value"][1]) for series in self.ask("query", query=expression)["result"]]

    def rules(self):
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def alerts(self, state):
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == state}


def empty_panels(prometheus):
    """Panels with a query that yields nothing.

    Quantiles of what didn't happen within the window are no number; those of what never happened aren't there at all.
    """
    for path in sorted(GRAFANA.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                metrics = {metric for metric, _, _ in walk(promql_parser.parse(filled(target["expr"])))}
                if not metrics <= FAULTS and not prometheus.values(filled(target["expr"])):
                    yield f"{path.stem}: {panel['title']}: {target['expr']}"


class Live(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        if why := missing("etcd", "ffmpeg", "prometheus"):
            self.skipTest(why)

    def test_panels_have_data_and_rules_evaluate(self):
        with Cluster() as cluster:
            # Each origin feeds one edge, which feeds the others.
            origins = [cluster.node("origin", f"o{n}", {"HEADWATER_ORIGIN__FANOUT": "1"}) for n in (1, 2)]
            edges = [cluster.node("edge", f"e{n}") for n in (1, 2, 3)]
            nodes = origins + edges
            for node in nodes:
                eventually(f"{node.name} is ready", 15, node.ready)
            prometheus = Prometheus(cluster, {"headwater": [node.admin for node in nodes], "headwater-etcd": [cluster.etcd_metrics]})
            eventually("all is scraped", 20, lambda: prometheus.ask("query", query="up") and prometheus.values("sum(up)") == [6.0])
            self.load(cluster, origins, edges)
            time.sleep(8)
            self.assertEqual(prometheus.alerts("firing"), set(), "nothing is wrong")

            # The edges below it look for another upstream.
            fed = next(edge for edge in edges if prometheus.values(f'headwater_edge_subscribers{{instance="127.0.0.1:{edge.admin}"}} > 0'))
            fed.kill()
            eventually("its end is noticed", 10, lambda: "HeadwaterNodeDown" in prometheus.alerts("pending"))
            time.sleep(3)
            self.assertEqual(list(empty_panels(prometheus)), [])
            rules = eventually("all rules were evaluated", 5, lambda: (r := prometheus.rules()) and all(rule["health"] != "unknown" for rule in r) and r)
            self.assertGreater(len(rules), 30)
            self.assertEqual([(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"], [])

    def load(self, cluster, origins, edges):
        """Two streams, viewers of both at each edge, and what is refused."""
        for n, origin in enumerate(origins, 1):
            cluster.publisher(f"publisher{n}", origin, f"live/s{n}")
        watching = [cluster.viewer(f"viewer{i}", edges[i % 3], f"live/s{1 + i % 2}", "--stay", *(["--transport", "tcp"] if i == 5 else []))
                    for i in range(6)]
        for viewer in watching:
            eventually(f"{viewer.name} sees pictures", 30, lambda viewer=viewer: viewer.frames() > 30)
        # A stream that has a publisher, one that nobody publishes, and what is no RTMP at all.
        cluster.publisher("another", origins[1], "live/s1")
        self.assertGreaterEqual(post(edges[0].http, "/whep/live/nothing", "v=0", {"Content-Type": "application/sdp"}), 400)
        # Probes don't report what they see.
        report = {"first_frame_ms": 400, "played_ms": 10000, "frozen_ms": 20, "freezes": 1, "latency_ms": [120, 130]}
        for edge in edges:
            self.assertEqual(post(edge.http, "/qoe", json.dumps(report), {"Content-Type": "application/json"}), 204)
        with socket.create_connection(("127.0.0.1", origins[0].rtmp)) as junk:
            junk.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        watching[0].kill()


if __name__ == "__main__":
    unittest.main()
