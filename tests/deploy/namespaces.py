"""Two nodes with pods as network namespaces: pods behind their node, host ports and Services by iptables, names by a hosts file.

What Kubernetes would do with the rendered objects, without Kubernetes. Needs root.
"""

import ipaddress
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

NODES = {1: "10.66.0.1", 2: "10.66.0.2"}


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Cluster:
    """Ends all it started, and removes its namespaces, on leaving the `with`."""

    def __init__(self):
        self.tag = f"hw{os.getpid()}"
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=self.tag))
        self.directory.chmod(0o755)
        self.namespaces, self.processes, self.hosts, self.pods = [], [], {}, {}

    def __enter__(self):
        try:
            for node in NODES:
                self._namespace(f"node{node}")
            run("ip", "link", "add", "fabric", "netns", self._ns("node1"), "type", "veth", "peer", "name", "fabric", "netns", self._ns("node2"))
            for node, address in NODES.items():
                other = 3 - node
                self.on(f"node{node}", "ip", "address", "add", f"{address}/24", "dev", "fabric")
                self.on(f"node{node}", "ip", "link", "set", "fabric", "up")
                self.on(f"node{node}", "ip", "route", "add", f"10.67.{other}.0/24", "via", NODES[other])
                self.on(f"node{node}", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for _, process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for name in self.namespaces:
            subprocess.run(["ip", "netns", "delete", self._ns(name)], capture_output=True, check=False)
            shutil.rmtree(f"/etc/netns/{self._ns(name)}", ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _ns(self, name):
        return f"{self.tag}-{name}"

    def _namespace(self, name):
        run("ip", "netns", "add", self._ns(name))
        self.namespaces.append(name)
        self.on(name, "ip", "link", "set", "lo", "up")

    def on(self, name, *command):
        return run("ip", "netns", "exec", self._ns(name), *command)

    def pod(self, name, node):
        """A pod's network on this node; its address."""
        address = f"10.67.{node}.{len(self.pods) + 10}"
        self._namespace(name)
        device = f"v{len(self.pods)}"
        run("ip", "link", "add", device, "netns", self._ns(f"node{node}"), "type", "veth", "peer", "name", "eth0", "netns", self._ns(name))
        gateway = f"10.67.{node}.1"
        self.on(f"node{node}", "ip", "address", "add", f"{gateway}/32", "dev", device)
        self.on(f"node{node}", "ip", "link", "set", device, "up")
        self.on(f"node{node}", "ip", "route", "add", address, "dev", device)
        self.on(name, "ip", "address", "add", f"{address}/32", "dev", "eth0")
        self.on(name, "ip", "link", "set", "eth0", "up")
        self.on(name, "ip", "route", "add", gateway, "dev", "eth0")
        self.on(name, "ip", "route", "add", "default", "via", gateway)
        self.pods[name] = (node, address)
        return address

    def host_port(self, pod, port):
        """As the portmap plugin does: what comes to the node's port goes to the pod's."""
        node, address = self.pods[pod]
        self.on(f"node{node}", "iptables", "-t", "nat", "-A", "PREROUTING", "-d", NODES[node], "-p", port["protocol"].lower(),
                "--dport", str(port["hostPort"]), "-j", "DNAT", "--to-destination", f"{address}:{port['containerPort']}")

    def service(self, name, port, pod, target):
        """A Service with one endpoint, as kube-proxy makes it on each node."""
        address = str(ipaddress.ip_address("10.96.0.10") + len(self.hosts))
        self.hosts[name] = address
        for node in NODES:
            self.on(f"node{node}", "iptables", "-t", "nat", "-A", "PREROUTING", "-d", address, "-p", "tcp", "--dport", str(port),
                    "-j", "DNAT", "--to-destination", f"{self.pods[pod][1]}:{target}")

    def start(self, pod, name, command, environment, mounts=()):
        """Starts a container's command in its pod, as user 65532 without capabilities. `mounts`: directories that it finds at other places."""
        names = pathlib.Path(f"/etc/netns/{self._ns(pod)}")
        names.mkdir(parents=True, exist_ok=True)
        (names / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in self.hosts.items()))
        script = "".join(f"mount --bind {source} {place}; " for source, place in mounts)
        confined = ["setpriv", "--reuid", "65532", "--regid", "65532", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        log = self.directory / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._ns(pod), "sh", "-ec", script + 'exec "$@"', "sh", *confined, *command],
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **environment}, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.processes.append((name, process))
        return process

    def log(self, name):
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def ready(self, pod, port, path, seconds):
        """Waits until a probe's GET is answered by 200."""
        deadline = time.monotonic() + seconds
        url = f"http://{self.pods[pod][1]}:{port}{path}"
        while time.monotonic() < deadline:
            # From the node, as the kubelet does.
            code = subprocess.run(["ip", "netns", "exec", self._ns(f"node{self.pods[pod][0]}"), "curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", url],
                                  capture_output=True, text=True, check=False).stdout
            if code == "200":
                return
            time.sleep(0.1)
        raise AssertionError(f"{pod} isn't ready after {seconds} s:\n{self.log(pod)[-3000:]}")

    def stop(self, names):
        """SIGTERM to all of these at once; their exit codes."""
        processes = {name: dict(self.processes)[name] for name in names}
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(timeout=30) for name, process in processes.items()}
