"""`make autoscaling`: the chart's autoscaler, on real edges: a crowd that comes makes edges come, they leave after the crowd has, and nobody who stays loses a picture.

Its manifest is rendered from the chart's defaults; its times pass a hundred times as fast. What it would do to pods is done to processes.
"""

import re
import time
import unittest

from autoscaler import Autoscaler
from live import Cluster, eventually, get, missing
from test_autoscaler import manifest

PACE = 100
STREAM = "live/show"
# Viewers that an edge takes: few, so that few make a crowd.
ROOM = 8
# What is left of a picture's pause if an edge leaves: less than the eye takes for one.
FREEZE_MAX_MS = 250


class Autoscaling(unittest.TestCase):
    def setUp(self):
        if why := missing("etcd", "ffmpeg"):
            self.skipTest(why)

    def test_edges_come_and_go_with_a_crowd_and_nobody_is_cut(self):
        scaler = Autoscaler(manifest(), PACE)
        with Cluster() as cluster:
            self.cluster, self.scaler, self.edges, self.started, self.peak = cluster, scaler, [], 0, 0
            origin = cluster.node("origin", "o1", {"HEADWATER_LADDER__ENABLED": "false"})
            while len(self.edges) < scaler.spec["minReplicas"]:
                self.add()
            for node in (origin, *self.edges):
                eventually(f"{node.name} is ready", 15, node.ready)
            cluster.publisher("publisher", origin, STREAM)

            staying = self.arrive("stays", 4)
            self.reconcile(2, lambda: False)
            self.assertEqual(len(self.edges), 2, "four viewers are no crowd")

            # More than two edges' room to the target, then more than three's: each time an edge comes.
            crowd = self.arrive("crowd", 10)
            self.reconcile(15, lambda: len(self.edges) == 3 and all(edge.ready() for edge in self.edges))
            staying += self.arrive("late", 8)
            self.reconcile(15, lambda: len(self.edges) == 4 and all(edge.ready() for edge in self.edges))
            staying += self.arrive("last", 3, edge=self.edges[-1])
            self.assertGreater(self.peak, scaler.target)
            self.assertLessEqual(len(self.edges), scaler.spec["maxReplicas"])
            grown = list(self.edges)

            for viewer in crowd + staying[6:12]:
                viewer.leave()
            staying = staying[:6] + staying[12:]
            self.reconcile(60, lambda: len(self.edges) == scaler.spec["minReplicas"] and not any(edge.running for edge in grown[2:]))
            self.assertEqual([edge.name for edge in self.edges], ["e1", "e2"])
            for edge in grown[2:]:
                self.assertEqual(edge.child.returncode, 0, edge.lines()[-5:])
            self.unharmed(staying)

    def unharmed(self, staying):
        """They see pictures still, have not joined anew but when they were asked to, and have missed nothing."""
        for viewer in staying:
            eventually(f"{viewer.name} sees pictures", 5, viewer.goes_on(), viewer.tail)
        reports = {viewer.name: viewer.report() for viewer in staying}
        self.assertTrue(all(viewer.running for viewer in staying))
        self.assertTrue(any(report["moved"] for report in reports.values()), "nobody was on an edge that left")
        for name, report in reports.items():
            self.assertLessEqual(report["video"]["longest_freeze_ms"], FREEZE_MAX_MS, f"{name}: {report}")
            self.assertEqual(report["video"]["lost"], 0, f"{name}: {report}")

    def add(self):
        self.started += 1
        edge = self.cluster.node("edge", f"e{self.started}", {"HEADWATER_EDGE__VIEWERS_PER_SHARD": str(ROOM)})
        self.edges.append(edge)

    def arrive(self, name, count, edge=None):
        """Viewers by the Service, which hands them round."""
        came = [self.cluster.viewer(f"{name}{i}", edge or self.edges[i % len(self.edges)], STREAM) for i in range(count)]
        for viewer in came:
            eventually(f"{viewer.name} sees pictures", 30, lambda viewer=viewer: viewer.frames() > 30)
        return came

    def reconcile(self, seconds, until):
        """Acts for the autoscaler and the Deployment until it is so, or for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not until():
            loads = [self.load(edge) for edge in self.edges]
            # One that isn't ready yet counts as idle when edges come, as Kubernetes has it.
            known = [load or 0.0 for load in loads]
            self.peak = max(self.peak, sum(known) / len(known))
            wanted = self.scaler.replicas(time.monotonic(), known)
            while len(self.edges) < wanted:
                self.add()
            while len(self.edges) > wanted:
                # A Deployment ends the youngest of its pods first.
                self.edges.pop().terminate()
            time.sleep(self.scaler.interval)

    def load(self, edge):
        found = re.search(rf"^{self.scaler.metric} (\S+)$", get(edge.admin, "/metrics") or "", re.M)
        return float(found[1]) if found else None


if __name__ == "__main__":
    unittest.main()
