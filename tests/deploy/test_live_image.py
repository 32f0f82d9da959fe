"""The image, made from scratch by buildah and run by podman (runc) as the chart's pods are: an origin and an edge in it, and a viewer, are a cluster."""

import os
import shutil
import subprocess
import unittest

import ports
from chart import ROOT, Chart
from live import BINARY, Cluster, Node, eventually, missing

IMAGE = "localhost/headwater:test"


class Engine:
    """Images and containers of a directory."""

    def __init__(self, directory):
        self.directory = directory
        storage = directory / "storage.conf"
        storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{directory}/graph"\nrunroot = "{directory}/run"\n')
        self.environment = {"CONTAINERS_STORAGE_CONF": str(storage)}

    def call(self, *command):
        return subprocess.run([str(word) for word in command], env=os.environ | self.environment, capture_output=True, text=True, check=False, timeout=120)

    def build(self):
        binary, context = self.directory / "headwater", self.directory / "context"
        # Debug information is nothing to an image.
        if not shutil.which("strip") or self.call("strip", "-o", binary, BINARY).returncode != 0:
            shutil.copy(BINARY, binary)
        for command in (
            [ROOT / "deploy/image/rootfs.sh", binary, context / "rootfs"],
            ["buildah", "bud", "--isolation", "chroot", "--timestamp", "0", "-f", ROOT / "deploy/image/Dockerfile", "-t", IMAGE, context],
        ):
            done = self.call(*command)
            assert done.returncode == 0, done.stdout + done.stderr

    def run(self, name, security, environment=None):
        """What comes before the arguments of the image's entry point."""
        # What this machine allows may be more than a container may ask for.
        most = {"nofile": 4096, "nproc": 4096}
        ulimits = [f"--ulimit={limit}={count}:{count}" for limit, count in most.items()]
        return ["podman", "run", "--rm", f"--name={name}", "--runtime=runc", "--network=host", *ulimits, *security,
                *[f"--env={key}={value}" for key, value in (environment or {}).items()], IMAGE]


def restrictions(role):
    """What the chart allows this role, as podman's flags."""
    rendered, _ = Chart().render({})
    pod = rendered.workload(role)["spec"]["template"]["spec"]["securityContext"]
    container = rendered.container(role)["securityContext"]
    assert pod["runAsNonRoot"] and pod["seccompProfile"] == {"type": "RuntimeDefault"}, pod
    assert container == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, container
    return [f"--user={pod['runAsUser']}:{pod['runAsGroup']}", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--read-only-tmpfs=false"]


class Container(unittest.TestCase):
    def setUp(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")
        if why := missing("buildah", "podman", "runc", "etcd", "ffmpeg"):
            self.skipTest(why)

    def test_the_image_is_a_cluster_under_the_chart_s_restrictions(self):
        with Cluster() as cluster:
            engine = Engine(cluster.directory)
            engine.build()
            tried = engine.call(*engine.run("try", restrictions("edge")), "--version")
            if "not permitted" in tried.stderr or "ermission denied" in tried.stderr:
                self.skipTest(f"no containers may be run here: {tried.stderr.strip()}")
            self.assertEqual(tried.returncode, 0, tried.stderr)

            nodes = []
            for role in ("origin", "edge"):
                rtmp, http, admin, grpc, media = ports.free(5)
                own = ["--rtmp", f"127.0.0.1:{rtmp}"] if role == "origin" else [
                    "--http", f"127.0.0.1:{http}", "--media", f"127.0.0.1:{media}", "--public-ip", "127.0.0.1", "--shards", "1"]
                node = cluster.start(role, [
                    *engine.run(role, restrictions(role)), role, "--id", role, "--etcd", f"http://127.0.0.1:{cluster.etcd_port}", "--admin", f"127.0.0.1:{admin}",
                    "--grpc", f"127.0.0.1:{grpc}", "--advertise", f"http://127.0.0.1:{grpc}", *own,
                ], engine.environment, Node)
                node.rtmp, node.http, node.admin = rtmp, http, admin
                nodes.append(node)
            origin, edge = nodes
            for node in nodes:
                eventually(f"{node.name} is ready", 20, node.ready, node.tail)
            cluster.publisher("publisher", origin, "live/show")
            watched = engine.call(*engine.run("probe", restrictions("edge")), "probe", f"http://127.0.0.1:{edge.http}/whep/live/show", "--wait", "20s", "--duration", "3s", "--min-fps", "25")
            self.assertEqual(watched.returncode, 0, watched.stdout + watched.stderr + edge.tail() + origin.tail())
            for node in reversed(nodes):
                node.terminate()
                self.assertEqual(node.child.wait(timeout=20), 0, node.tail())


if __name__ == "__main__":
    unittest.main()
