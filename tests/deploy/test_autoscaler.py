"""The stand-in for Kubernetes' autoscaler that `make autoscaling` runs edges by, with the chart's own manifest, at Kubernetes' pace."""

import unittest

from autoscaler import Autoscaler
from chart import Chart


def manifest():
    rendered, _ = Chart().render({"autoscaling": {"enabled": True}})
    [found] = rendered.of("HorizontalPodAutoscaler")
    return found


class Algorithm(unittest.TestCase):
    def run_for(self, scaler, now, seconds, loads):
        for _ in range(int(seconds / scaler.interval)):
            now += scaler.interval
            wanted = scaler.replicas(now, loads(self.count))
            if wanted != self.count:
                self.steps.append((round(now), wanted))
                self.count = wanted
        return now

    def test_edges_come_at_once_and_leave_one_by_one_after_a_quarter_of_an_hour(self):
        scaler = Autoscaler(manifest(), 1)
        self.count, self.steps = 2, []
        now = self.run_for(scaler, 0, 120, lambda count: [0.5] * count)
        self.assertEqual(self.steps, [], "at ease")
        now = self.run_for(scaler, now, 60, lambda count: [2 / count] * count)
        self.assertEqual(self.steps, [(135, 3)], "two full edges' viewers are three edges' at 0.7")
        now = self.run_for(scaler, now, 120, lambda count: [4 / count] * count)
        self.assertEqual(self.steps[1:], [(195, 4)], "not above the most")
        low = now
        self.run_for(scaler, now, 2000, lambda count: [0.2 / count] * count)
        times = [at - low for at, _ in self.steps[2:]]
        self.assertEqual([count for _, count in self.steps[2:]], [3, 2], "not below the fewest")
        self.assertTrue(900 <= times[0] <= 930 and 300 <= times[1] - times[0] <= 330, times)


if __name__ == "__main__":
    unittest.main()
