"""Image and compose file: what can be said of them without building or starting them."""

import json
import re
import subprocess
import sys
import tomllib
import unittest

import yaml

from chart import ROOT, settings_keys

DEPLOY = ROOT / "deploy"


class Image(unittest.TestCase):
    def test_both_ways_to_build_it_make_the_same(self):
        parts = [part for name in ("Dockerfile", "image/Dockerfile")
                 for part in re.findall(r"(?ms)^# -- the same in [^\n]*\n(.*?)^# --$", (DEPLOY / name).read_text())]
        self.assertEqual(len(parts), 2)
        self.assertEqual(len(set(parts)), 1)
        self.assertIn("USER 65532:65532", parts[0])

    def test_versions_are_the_workspace_s(self):
        workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
        text = (DEPLOY / "Dockerfile").read_text()
        self.assertEqual(set(re.findall(r"ARG VERSION=(\S+)", text)), {workspace["version"]})
        self.assertEqual(re.findall(r"library/rust:(\S+?)-", text), [".".join(workspace["rust-version"].split(".")[:2])])
        chart = yaml.safe_load((ROOT / "helm/headwater/Chart.yaml").read_text())
        self.assertEqual(chart["appVersion"], workspace["version"])

    def test_the_bill_of_materials_has_every_crate(self):
        lock = ROOT / "Cargo.lock"
        done = subprocess.run([sys.executable, str(DEPLOY / "image/sbom.py"), str(lock)], capture_output=True, text=True, check=True)
        crates = [p for p in tomllib.loads(lock.read_text())["package"] if "source" in p]
        components = json.loads(done.stdout)["components"]
        self.assertEqual(len(components), len(crates))
        self.assertTrue(all(c["purl"].startswith("pkg:cargo/") and c["hashes"] for c in components))


class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        cls.services = cls.compose["services"]

    def test_nodes_are_what_prometheus_scrapes(self):
        jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]}
        for job, names in (("headwater", r"(origin|edge)-\d"), ("headwater-etcd", r"etcd-\d")):
            self.assertEqual({target.split(":")[0] for target in jobs[job]}, {name for name in self.services if re.fullmatch(names, name)})

    def test_settings_are_keys_of_the_binary(self):
        keys = {"HEADWATER_" + key.upper().replace(".", "__") for key in settings_keys()}
        for name, service in self.services.items():
            used = {key for key in service.get("environment", {}) if key.startswith("HEADWATER_")}
            self.assertLessEqual(used, keys, name)

    def test_members_of_etcd_differ_in_their_names_only(self):
        commands = [[argument.replace(f"etcd-{i}", "etcd-N") if "initial-cluster" not in argument else argument for argument in self.services[f"etcd-{i}"]["command"]] for i in (1, 2, 3)]
        self.assertEqual(commands[0], commands[1])
        self.assertEqual(commands[0], commands[2])

    def test_no_two_services_want_one_port(self):
        ports = [(re.match(r"(?:127\.0\.0\.1:)?([\d-]+):", port)[1], port.endswith("/udp")) for service in self.services.values() for port in service.get("ports", [])]
        self.assertEqual(len(ports), len(set(ports)))

    def test_media_ports_are_those_that_edges_listen_on(self):
        for name in ("edge-1", "edge-2"):
            service = self.services[name]
            first = int(service["environment"]["HEADWATER_EDGE__MEDIA"].split(":")[1])
            shards = int(service["environment"]["HEADWATER_EDGE__SHARDS"])
            self.assertIn(f"{first}-{first + shards - 1}:{first}-{first + shards - 1}/udp", service["ports"])
            self.assertIn(f"{first}:{first}/tcp", service["ports"])

    def test_mounted_files_exist(self):
        for service in self.services.values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                self.assertTrue((DEPLOY / source).exists() if source.startswith(".") else source in self.compose["volumes"], source)


if __name__ == "__main__":
    unittest.main()
