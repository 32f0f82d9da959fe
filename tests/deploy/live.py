"""A cluster of real processes on loopback: etcd, origins, edges, ffmpeg as publishers and `headwater probe` as viewers."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import ports
from chart import ROOT

BINARY = pathlib.Path(os.environ.get("HEADWATER_BINARY") or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/headwater")


def missing(*programs):
    """What of these, and of Headwater itself, isn't there to be run; None if all is."""
    if not BINARY.exists():
        return f"{BINARY} isn't built"
    absent = [program for program in programs if not shutil.which(program)]
    return f"needs {', '.join(absent)}" if absent else None


def eventually(what, seconds, ask, said=None):
    """What `ask` says as soon as that is true; `said` is what to show if it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"after {seconds} s it isn't so that {what}{said() if said else ''}")


def get(port, path, **query):
    """The body at a port of this machine; None if there is no good answer."""
    url = f"http://127.0.0.1:{port}{path}" + ("?" + urllib.parse.urlencode(query) if query else "")
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


def post(port, path, body="", headers=None):
    """The status of a POST."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body.encode(), headers=headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


class Process:
    def __init__(self, cluster, name, command, environment=None):
        self.name, self.log = name, cluster.directory / f"{name}.log"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADWATER_")}
        with self.log.open("ab") as out:
            self.child = subprocess.Popen(command, env=kept | (environment or {}), stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    @property
    def running(self):
        return self.child.poll() is None

    def terminate(self):
        self.child.send_signal(signal.SIGTERM)

    def kill(self):
        self.child.kill()
        self.child.wait()

    def tail(self):
        return "\n" + "\n".join(self.lines()[-10:])

    def lines(self):
        return self.log.read_text(errors="replace").splitlines()


class Node(Process):
    """A node of Headwater, and the ports it has."""

    def ready(self):
        assert self.running, "\n".join(self.lines()[-20:])
        return get(self.admin, "/readyz")


class Viewer(Process):
    def report(self):
        """The newest line that it printed."""
        for line in reversed(self.lines()):
            if line.startswith("{") and line.endswith("}"):
                return json.loads(line)
        return None

    def leave(self):
        """As who closes the page."""
        self.child.send_signal(signal.SIGINT)

    def frames(self):
        return ((self.report() or {}).get("video") or {}).get("decodable") or 0

    def goes_on(self, more=30):
        """Asks whether so many pictures came since the first time it was asked. Each session counts its own."""
        begun = {}

        def ask():
            report = self.report()
            if report is None:
                return False
            frames = begun.setdefault(report["moved"], self.frames())
            return self.frames() >= frames + more
        return ask


class Cluster:
    """Ends all it started on leaving the `with`."""

    def __enter__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="headwater"))
        self.processes = []
        self.etcd_port, self.etcd_metrics, peer = ports.free(3)
        peers = f"http://127.0.0.1:{peer}"
        url = f"http://127.0.0.1:{self.etcd_port}"
        try:
            self.start("etcd", [
                "etcd", f"--data-dir={self.directory / 'etcd'}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}",
                f"--listen-metrics-urls=http://127.0.0.1:{self.etcd_metrics}", "--log-level=warn",
            ], {"ETCD_UNSUPPORTED_ARCH": "arm64"})
            eventually("etcd is healthy", 15, lambda: "true" in (get(self.etcd_port, "/health") or ""))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.running:
                process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, name, command, environment=None, kind=Process):
        process = kind(self, name, [str(word) for word in command], environment)
        self.processes.append(process)
        return process

    def node(self, role, name, environment=None):
        rtmp, http, admin, grpc, media = ports.free(5)
        command = [BINARY, role, "--id", name, "--etcd", f"http://127.0.0.1:{self.etcd_port}", "--admin", f"127.0.0.1:{admin}",
                   "--grpc", f"127.0.0.1:{grpc}", "--advertise", f"http://127.0.0.1:{grpc}"]
        if role == "origin":
            command += ["--rtmp", f"127.0.0.1:{rtmp}"]
        else:
            command += ["--http", f"127.0.0.1:{http}", "--media", f"127.0.0.1:{media}", "--public-ip", "127.0.0.1", "--shards", "1",
                        "--public-url", f"http://127.0.0.1:{http}"]
        node = self.start(name, command, environment, Node)
        node.rtmp, node.http, node.admin, node.grpc, node.media = rtmp, http, admin, grpc, media
        return node

    def publisher(self, name, origin, stream):
        return self.start(name, [
            "ffmpeg", "-hide_banner", "-loglevel", "warning", "-nostdin", "-re", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=30",
            "-re", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-c:a", "aac", "-ac", "2", "-b:a", "128k",
            "-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p", "-bf", "0", "-g", "30",
            "-b:v", "800k", "-maxrate", "1200k", "-bufsize", "1200k", "-f", "flv", f"rtmp://127.0.0.1:{origin.rtmp}/{stream}",
        ])

    def viewer(self, name, edge, stream, *flags):
        return self.start(name, [
            BINARY, "probe", f"http://127.0.0.1:{edge.http}/whep/{stream}", "--json", "--interval", "500ms", "--duration", "10m",
            "--wait", "20s", "--join-timeout", "20s", *flags,
        ], kind=Viewer)
