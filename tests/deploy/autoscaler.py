"""What Kubernetes' HorizontalPodAutoscaler does with a rendered manifest of one metric of pods, by its documented algorithm.

Times of the manifest are divided by `pace`, so that a quarter of an hour passes in seconds; nothing else is changed.
"""

import math

# The controller's own, which no manifest sets: how often it looks (seconds), and the deviation that it lets pass.
SYNC_SECONDS = 15
TOLERANCE = 0.1


class Autoscaler:
    def __init__(self, manifest, pace):
        self.spec, self.pace = manifest["spec"], pace
        [metric] = self.spec["metrics"]
        self.metric = metric["pods"]["metric"]["name"]
        target = metric["pods"]["target"]["averageValue"]
        self.target = float(target.removesuffix("m")) / (1000 if target.endswith("m") else 1)
        # Recommendations with their time, and replicas with the time since when they were so many.
        self.recommended, self.changes = [], []

    @property
    def interval(self):
        return SYNC_SECONDS / self.pace

    def replicas(self, now, loads):
        """How many there should be, by what the ready ones measure."""
        current = len(loads)
        self.changes = self.changes or [(now, current)]
        ratio = sum(loads) / len(loads) / self.target
        wanted = current if abs(ratio - 1) <= TOLERANCE else math.ceil(current * ratio)
        self.recommended.append((now, wanted))
        behavior = self.spec["behavior"]
        for direction, choose in (("scaleUp", min), ("scaleDown", max)):
            window = behavior[direction]["stabilizationWindowSeconds"] / self.pace
            within = [count for at, count in self.recommended if at >= now - window]
            stable = choose([*within, wanted])
            if (direction == "scaleUp") == (wanted > current):
                wanted = max(stable, current) if direction == "scaleUp" else min(stable, current)
        if wanted > current:
            wanted = min(wanted, max(self._limit(now, policy, current, +1) for policy in behavior["scaleUp"]["policies"]))
        elif wanted < current:
            wanted = max(wanted, min(self._limit(now, policy, current, -1) for policy in behavior["scaleDown"]["policies"]))
        wanted = min(max(wanted, self.spec["minReplicas"]), self.spec["maxReplicas"])
        if wanted != current:
            self.changes.append((now, wanted))
        return wanted

    def _limit(self, now, policy, current, sign):
        """How many a policy allows: by how many there were when its period began."""
        begin = now - policy["periodSeconds"] / self.pace
        before = [count for at, count in self.changes if at <= begin]
        start = before[-1] if before else self.changes[0][1]
        start = min(start, current) if sign > 0 else max(start, current)
        if policy["type"] == "Pods":
            return start + sign * policy["value"]
        share = start * (1 + sign * policy["value"] / 100)
        return math.ceil(share) if sign > 0 else math.floor(share)
