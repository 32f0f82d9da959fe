"""The default chart's own commands, variables and ports make a working cluster: publish through the RTMP Service, watch at an edge's host port.

Every container is started as the rendered objects say, in network namespaces: etcd, origins, edges, and the pod of `helm test`.
"""

import os
import pathlib
import shutil
import unittest

from chart import NAMESPACE, ROOT, Chart, pod_of
from namespaces import NODES, Cluster

BINARY = pathlib.Path(os.environ.get("HEADWATER_BINARY") or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/headwater")


class Defaults(unittest.TestCase):
    def setUp(self):
        if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("iptables"):
            self.skipTest("needs root, ip and iptables")
        if not BINARY.exists():
            self.skipTest(f"{BINARY} isn't built")

    def test_its_containers_are_a_cluster(self):
        # One edge at the origin itself: the other one has to find it by the address that the chart lets it advertise.
        rendered, _ = Chart().render({"config": {"origin.fanout": 1}})
        with Cluster() as cluster:
            self.binary = cluster.directory / "headwater"
            shutil.copy(BINARY, self.binary)
            self.binary.chmod(0o755)

            pods = {}
            for role in ("etcd", "origin", "edge"):
                workload = rendered.workload(role)
                for i in range(workload["spec"]["replicas"]):
                    # An edge for each node: their host ports want it so.
                    name = f"{workload['metadata']['name']}-{i}"
                    pods[name] = (role, 1 + i % 2, cluster.pod(name, 1 + i % 2))
            cluster.pod("test", 1)

            etcd = rendered.workload("etcd")
            for name, (role, _, address) in pods.items():
                if role == "etcd":
                    cluster.hosts[f"{name}.{etcd['spec']['serviceName']}.{NAMESPACE}.svc"] = address
            for name, role in (("live-headwater-rtmp", "origin"), ("live-headwater-http", "edge")):
                port = rendered.get("Service", name)["spec"]["ports"][0]
                chosen = f"live-headwater-{role}-1"
                target = next(p["containerPort"] for p in rendered.container(role)["ports"] if p["name"] == port["targetPort"])
                cluster.service(name, port["port"], chosen, target)

            for name, (role, node, address) in pods.items():
                self.start(cluster, rendered, role, name, node, address)
            for name, (role, _, _) in pods.items():
                probe = rendered.container(role)["readinessProbe"]["httpGet"]
                port = next(p["containerPort"] for p in rendered.container(role)["ports"] if p["name"] == probe["port"])
                cluster.ready(name, port, probe["path"], 30)

            test = rendered.get("Pod", "live-headwater-test")
            containers = {c["name"]: c for c in test["spec"]["containers"]}
            publisher = cluster.start("test", "publisher", [*containers["publisher"]["command"], *containers["publisher"]["args"]], {})
            viewer = cluster.start("test", "viewer", [str(self.binary), *containers["viewer"]["args"], "--json"], {})
            self.assertEqual(viewer.wait(timeout=60), 0, cluster.log("viewer") + cluster.log("publisher"))

            [other] = {p for p, (role, _, _) in pods.items() if role == "edge"} - {"live-headwater-edge-1"}
            path = containers["viewer"]["args"][-1].split("/whep/")[1]
            below = cluster.start("test", "below", [str(self.binary), "probe", f"http://{pods[other][2]}:8080/whep/{path}", "--duration", "3s"], {})
            self.assertEqual(below.wait(timeout=30), 0, cluster.log("below"))
            metrics = cluster.on(f"node{pods[other][1]}", "curl", "-s", f"http://{pods[other][2]}:9600/metrics")
            self.assertIn('headwater_edge_upstreams_by_depth{depth="2"} 1', metrics)
            publisher.kill()

            # It came through the edge's node, where the chart's host ports are.
            log = cluster.on("node2", "iptables", "-t", "nat", "-L", "PREROUTING", "-n", "-v", "-x")
            forwarded = [line.split() for line in log.splitlines() if NODES[2] in line and "DNAT" in line]
            self.assertTrue(any(int(line[0]) > 0 for line in forwarded), log)

            for name, code in cluster.stop([name for name, (role, _, _) in pods.items() if role != "etcd"]).items():
                self.assertEqual(code, 0, cluster.log(name)[-2000:])

    def start(self, cluster, rendered, role, name, node, address):
        spec = pod_of(rendered.workload(role))["spec"]
        container = rendered.container(role)
        environment = rendered.environment(role, name, {"status.podIP": address, "status.hostIP": NODES[node]})
        arguments = [argument.replace("$(POD_NAME)", name) for argument in container.get("args", [])]
        mounts = []
        for mount in container.get("volumeMounts", []):
            own = cluster.directory / f"{name}-{mount['name']}"
            own.mkdir()
            os.chown(own, spec["securityContext"]["runAsUser"], spec["securityContext"]["fsGroup"])
            pathlib.Path(mount["mountPath"]).mkdir(parents=True, exist_ok=True)
            mounts.append((own, mount["mountPath"]))
        command = container.get("command", [str(self.binary)])
        # What is in /tmp would be gone under the mount.
        mounts = [m for m in mounts if m[1] != "/tmp"]
        cluster.start(name, name, [*command, *arguments], environment, mounts)
        for port in container["ports"]:
            if "hostPort" in port:
                cluster.host_port(name, port)


if __name__ == "__main__":
    unittest.main()
