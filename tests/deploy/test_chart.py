"""The Helm chart: what a table of values makes of it, good ones and bad ones.

The bad ones have the sentence that the user reads. `HEADWATER_BINARY` (or target/debug/headwater) checks the rendered settings.
"""

import base64
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
import unittest
import urllib.error
import urllib.request

import helm_python
import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator

import ports
from chart import CHART, NAMESPACE, ROOT, Chart, Refused, pod_of, settings_keys

# The oldest that the chart takes, one in the middle, the newest known.
KUBERNETES = ("1.26", "1.31", "1.37")
CUSTOM = {"PodMonitor", "PrometheusRule"}

EXTERNAL_ETCD = {"enabled": False, "endpoints": ["http://etcd-0.example.com:2379", "http://etcd-1.example.com:2379"]}
TLS_ETCD = {"enabled": False, "endpoints": ["https://etcd-0.example.com:2379"], "tls": {"existingSecret": "mine"}}
MONITORING = {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}, "rules": {"enabled": True}, "dashboards": {"enabled": True}}

GOOD = {
    "defaults": {},
    "host network": {"edge": {"media": {"exposure": "hostNetwork"}}},
    "node ports": {"edge": {"replicas": 3, "media": {"exposure": "nodePort", "shards": 4, "nodePort": {"first": 31000}}}},
    "node ports, no TCP, public addresses": {
        "edge": {"maxReplicas": 2, "media": {"exposure": "nodePort", "tcp": False, "advertise": "static", "addresses": ["198.51.100.1", "198.51.100.2"]}},
    },
    "load balancers": {
        "edge": {
            "maxReplicas": 2,
            "media": {
                "exposure": "loadBalancer", "advertise": "static", "addresses": ["198.51.100.1", "198.51.100.2"],
                "loadBalancer": {"class": "example.com/nlb", "annotations": {"example.com/kind": "network"}, "sourceRanges": ["0.0.0.0/0"]},
            },
        },
    },
    "load balancers' own addresses": {"edge": {"maxReplicas": 2, "media": {"exposure": "loadBalancer"}}},
    "external addresses of nodes": {"edge": {"media": {"advertise": "nodeExternalIP"}}},
    "external addresses of nodes, node ports": {"edge": {"media": {"exposure": "nodePort", "advertise": "nodeExternalIP"}}, "serviceAccount": {"create": False}},
    "addresses by STUN": {"edge": {"media": {"exposure": "hostNetwork", "advertise": "stun", "stunServer": "stun.example.com:3478"}}},
    "one public address for all": {"edge": {"replicas": 1, "media": {"advertise": "static", "addresses": ["198.51.100.1", "2001:db8::1"]}}},
    "everything at its smallest": {"origin": {"replicas": 1}, "edge": {"replicas": 1, "media": {"shards": 1, "tcp": False}}, "etcd": {"replicas": 1}},
    "five etcd members": {"etcd": {"replicas": 5}},
    "one etcd member without a disk": {"etcd": {"replicas": 1, "persistence": {"enabled": False}}},
    "an etcd that is there": {"etcd": {**EXTERNAL_ETCD, "auth": {"username": "headwater", "password": "hush-etcd"}}},
    "an etcd that is there, with a Secret": {"etcd": {**EXTERNAL_ETCD, "auth": {"username": "headwater", "existingSecret": "mine", "passwordKey": "pw"}}},
    "an etcd that is there, by TLS": {"etcd": TLS_ETCD},
    "an etcd that is there, by TLS with a certificate": {"etcd": {**TLS_ETCD, "tls": {"existingSecret": "mine", "clientCertificate": True}}},
    "tokens": {"auth": {"publishToken": "hush-publish", "playToken": "hush-play", "adminToken": "hush-admin"}},
    "tokens in a Secret": {"auth": {"existingSecret": "mine", "publishTokenKey": "in", "playTokenKey": "", "adminTokenKey": "admin"}},
    "ingress": {"edge": {"http": {"ingress": {"enabled": True, "className": "nginx", "host": "live.example.com", "tlsSecret": "live-tls"}}}},
    "node ports for publishers": {"origin": {"rtmp": {"service": {"type": "NodePort"}}}, "edge": {"iceServersSecret": "mine"}},
    "load balanced services": {
        "origin": {"rtmp": {"service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/24"], "externalTrafficPolicy": "Local"}}},
        "edge": {"http": {"service": {"type": "NodePort", "nodePort": 30080}, "publicUrl": "https://live.example.com"}},
    },
    "ingress for all below": {"edge": {"http": {"ingress": {"enabled": True, "host": "*.example.com", "tlsSecret": "live-tls"}}}},
    "TURN": {"edge": {"iceServers": [{"url": "stun:stun.example.com:3478"}, {"url": "turn:turn.example.com:3478?transport=udp", "username": "u", "credential": 'hush-"turn"<&>'}]}},
    "a small origin": {"origin": {"resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}}},
    "a large origin": {"origin": {"resources": {"requests": {"cpu": 4, "memory": "8Gi"}, "limits": {"cpu": 16, "memory": "64Gi"}}}},
    "an origin without renditions": {"origin": {"config": {"ladder.enabled": False}}},
    "an origin of many streams": {"config": {"origin.streams_max": 1000, "ladder.streams_max": 9}},
    "an origin with its own settings": {"config": {"ladder.enabled": True, "ladder.streams_max": 9}, "origin": {"config": {"ladder.enabled": False, "ladder.streams_max": 0}}},
    "an origin whose memory is a number": {"origin": {"resources": {"requests": {"cpu": 0.5, "memory": 1073741824}, "limits": {"memory": 1073741824}}}},
    "load balanced HTTP": {"edge": {"http": {"service": {"type": "LoadBalancer"}}}},
    "load balanced HTTP by way of other nodes": {"edge": {"http": {"service": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"}}}},
    "autoscaling": {"autoscaling": {"enabled": True, "maxReplicas": 12, "targetLoad": 0.65}},
    "autoscaling with node ports": {"edge": {"maxReplicas": 6, "media": {"exposure": "nodePort"}}, "autoscaling": {"enabled": True, "maxReplicas": 6}},
    "monitoring": {"monitoring": MONITORING},
    "monitoring without etcd": {"monitoring": MONITORING, "etcd": EXTERNAL_ETCD},
    "IPv6": {"global": {"ipv6": True}},
    "images by digest from a registry": {
        "global": {"imageRegistry": "registry.example.com"},
        "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["pull"]}, "origin": {"image": {"digest": "sha256:" + "1" * 64}},
    },
    "settings": {
        "config": {"rtmp.connections_max": 12000000, "edge.limits.keep_alive_seconds": 30},
        "origin": {"config": {"ladder.rungs": ["480:1000", "240:400"], "ladder.enabled": True}},
        "edge": {"config": {"edge.egress_mbps_max": 8000, "edge.limits.requests_per_second": 20, "edge.playout_delay_ms": [0, 200]}, "http": {"behindProxy": True}},
    },
    "no policies, no accounts, no test": {
        "networkPolicy": {"enabled": False}, "serviceAccount": {"create": False}, "test": {"enabled": False},
        "monitoring": {"annotations": False}, "origin": {"podDisruptionBudget": {"enabled": False}}, "etcd": {"scrapeAnnotations": False},
    },
    "placement": {
        role: {
            "nodeSelector": {"pool": "media"}, "tolerations": [{"key": "media", "operator": "Exists"}], "priorityClassName": "high",
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["media"]}]}]}}},
            "podAnnotations": {"example.com/a": "b", "prometheus.io/scrape": "false"}, **more,
        }
        for role, more in {
            "etcd": {},
            "origin": {"podLabels": {"team": "live"}, "extraEnv": [{"name": "TZ", "value": "UTC"}]},
            "edge": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
                     "extraVolumes": [{"name": "scratch", "emptyDir": {}}], "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]},
        }.items()
    },
    "long names": {"fullnameOverride": "a" * 32},
    "a cluster of several releases": {
        "cluster": "live", "etcd": EXTERNAL_ETCD, "networkPolicy": {"grpcFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "media-2"}}}]},
    },
}

BAD = {
    "a value that isn't there": ({"edge": {"replica": 3}}, "replica"),
    "a section that isn't there": ({"edges": {}}, "edges"),
    "a value that etcd hasn't": ({"etcd": {"replica": 3}}, "replica"),
    "an even etcd": ({"etcd": {"replicas": 2}}, "must be one of 1, 3, 5"),
    "an unknown exposure": ({"edge": {"media": {"exposure": "ingress"}}}, "exposure"),
    "a number as text": ({"edge": {"replicas": "2"}}, "replicas"),
    "a port out of range": ({"edge": {"media": {"port": 70000}}}, "65,?535"),
    "an address that is none": ({"edge": {"media": {"advertise": "static", "addresses": ["live.example.com"]}}}, "addresses"),
    "a URL with a path": ({"edge": {"http": {"publicUrl": "https://live.example.com/x"}}}, "publicUrl"),
    "an endpoint without a scheme": ({"etcd": {"enabled": False, "endpoints": ["etcd:2379"]}}, "endpoints"),
    "edges that hardly drain": ({"edge": {"drainSeconds": 4}}, "drainSeconds"),
    "no etcd": ({"etcd": {"enabled": False}}, "etcd.endpoints has to name the members"),
    "etcd members that lose their data": ({"etcd": {"persistence": {"enabled": False}}}, "works with etcd.replicas=1 only"),
    "two etcds": ({"etcd": {"endpoints": ["http://etcd:2379"]}}, "set etcd.enabled=false"),
    "a password at the release's etcd": ({"etcd": {"auth": {"username": "u", "password": "p"}}}, "etcd.auth is for an etcd that is there"),
    "a name without a password": ({"etcd": {**EXTERNAL_ETCD, "auth": {"username": "u"}}}, "needs etcd.auth.password"),
    "a password without a name": ({"etcd": {**EXTERNAL_ETCD, "auth": {"password": "p"}}}, "need etcd.auth.username"),
    "TLS at one member": ({"etcd": {**TLS_ETCD, "endpoints": ["http://a:1", "https://b:1"]}}, "not both"),
    "TLS without authorities": ({"etcd": {**TLS_ETCD, "tls": {}}}, "etcd.tls.existingSecret, a Secret"),
    "authorities without TLS": ({"etcd": {**EXTERNAL_ETCD, "tls": {"existingSecret": "mine"}}}, "go together"),
    "a certificate from nowhere": ({"etcd": {**EXTERNAL_ETCD, "tls": {"clientCertificate": True}}}, "needs etcd.tls.existingSecret"),
    "tokens twice": ({"auth": {"existingSecret": "mine", "playToken": "t"}}, "leave auth.publishToken, playToken and adminToken empty"),
    "STUN without a server": ({"edge": {"media": {"advertise": "stun"}}}, "edge.media.stunServer go together"),
    "a STUN server without STUN": ({"edge": {"media": {"stunServer": "stun.example.com:3478"}}}, "edge.media.stunServer go together"),
    "a STUN server without a port": ({"edge": {"media": {"advertise": "stun", "stunServer": "stun.example.com"}}}, "stunServer"),
    "load balancers at the node's address": ({"edge": {"media": {"exposure": "loadBalancer", "advertise": "hostIP"}}}, "not its node's"),
    "static without addresses": ({"edge": {"media": {"advertise": "static"}}}, "needs edge.media.addresses"),
    "addresses that nobody is told": ({"edge": {"media": {"addresses": ["198.51.100.1"]}}}, "only with edge.media.advertise=static"),
    "too few addresses": ({"edge": {"media": {"exposure": "loadBalancer", "advertise": "static", "addresses": ["198.51.100.1", "198.51.100.2"]}}}, "one for each of edge.maxReplicas=4"),
    "ports past the end": ({"edge": {"media": {"port": 65530, "shards": 8}}}, "would end at 65537"),
    "node ports past the end": ({"edge": {"media": {"exposure": "nodePort", "shards": 64, "nodePort": {"first": 65400}}}}, "would end at 65655"),
    "media on the port of HTTP": ({"edge": {"media": {"port": 8079}}}, r"include edge\.http\.port"),
    "media on the admin port": ({"edge": {"media": {"port": 9590, "shards": 16}}}, "include admin's 9600"),
    "node ports on the port of HTTP": ({"edge": {"http": {"port": 30041}, "media": {"exposure": "nodePort"}}}, r"include edge\.http\.port"),
    "node ports on another Service's": (
        {"edge": {"media": {"exposure": "nodePort"}}, "origin": {"rtmp": {"service": {"type": "NodePort", "nodePort": 30047}}}}, "30040 to 30047 include origin.rtmp.service.nodePort=30047"),
    "HTTP on the admin port": ({"edge": {"http": {"port": 9600}}}, "edge.http.port=9600 is the port of admin"),
    "HTTP on the port of gRPC": ({"edge": {"http": {"port": 7071}}}, "edge.http.port=7071 is the port of gRPC"),
    "RTMP on the port of gRPC": ({"origin": {"rtmp": {"port": 7070}}}, "origin.rtmp.port=7070 is the port of gRPC"),
    "RTMP on the admin port": ({"origin": {"rtmp": {"port": 9600}}}, "origin.rtmp.port=9600 is the port of admin"),
    "HTTP on a port that needs root": ({"edge": {"http": {"port": 80}}}, "(?s)edge.http.port.*1,?024"),
    "RTMP on a port that needs root": ({"origin": {"rtmp": {"port": 1023}}}, "(?s)origin.rtmp.port.*1,?024"),
    "a budget of nothing": ({"edge": {"podDisruptionBudget": {"maxUnavailable": 0}}}, "podDisruptionBudget.maxUnavailable"),
    "a budget of more than all": ({"origin": {"podDisruptionBudget": {"maxUnavailable": "500%"}}}, "podDisruptionBudget.maxUnavailable"),
    "a network that is none": ({"edge": {"http": {"service": {"loadBalancerSourceRanges": ["999.1.1.1/99"]}}}}, "loadBalancerSourceRanges"),
    "a network of slashes": ({"edge": {"http": {"service": {"loadBalancerSourceRanges": ["1/1/1/1/8"]}}}}, "loadBalancerSourceRanges"),
    "a network too long": ({"edge": {"http": {"service": {"loadBalancerSourceRanges": ["10.0.0.0/33"]}}}}, "loadBalancerSourceRanges"),
    "any host": ({"edge": {"http": {"ingress": {"enabled": True, "host": "*"}}}}, "ingress.host"),
    "a label by which pods are selected": ({"edge": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "edge.podLabels sets app.kubernetes.io/component, by which"),
    "no repository": ({"image": {"repository": ""}}, "image.repository"),
    "an account that can't be": ({"serviceAccount": {"name": "Bad Name"}}, "serviceAccount.name"),
    "a TURN server in the settings": ({"edge": {"config": {"edge.ice_servers": "[]"}}}, "use edge.iceServers: credentials don't belong"),
    "a TURN server without a credential": ({"edge": {"iceServers": [{"url": "turn:t:1", "username": "u"}]}}, "turn:t:1 has a username without"),
    "TURN servers twice": ({"edge": {"iceServers": [{"url": "stun:s:1"}], "iceServersSecret": "mine"}}, "leave edge.iceServers empty"),
    "a token that breaks URLs": ({"auth": {"publishToken": "a&b"}}, "publishToken"),
    "more edges away than a StatefulSet takes": ({"edge": {"maxUnavailable": 2, "media": {"exposure": "nodePort"}}}, "edge.maxUnavailable does nothing with exposure=nodePort"),
    "one address for two edges": ({"edge": {"media": {"advertise": "static", "addresses": ["198.51.100.1"]}}}, "all 2 edges would tell viewers the same address"),
    "one address for edges to come": (
        {"edge": {"replicas": 1, "media": {"advertise": "static", "addresses": ["198.51.100.1"]}}, "autoscaling": {"enabled": True}}, "all 4 edges would tell"),
    "one address for four load balancers": ({"edge": {"media": {"exposure": "loadBalancer", "advertise": "static", "addresses": ["198.51.100.1"]}}}, "one address for edge.maxReplicas=4"),
    "more edges than Services": ({"edge": {"replicas": 5, "media": {"exposure": "nodePort"}}}, "edge.replicas=5 is more than edge.maxReplicas=4"),
    "scaling past the Services": (
        {"edge": {"media": {"exposure": "nodePort"}}, "autoscaling": {"enabled": True, "maxReplicas": 9}}, "autoscaling.maxReplicas=9 is more than edge.maxReplicas=4"),
    "scaling downwards": ({"autoscaling": {"enabled": True, "minReplicas": 5}}, "less than autoscaling.minReplicas"),
    "a target at which joins are refused": ({"autoscaling": {"targetLoad": 1}}, "targetLoad"),
    "an Ingress without a host": ({"edge": {"http": {"ingress": {"enabled": True}}}}, "needs a host"),
    "one flavour's digest": ({"image": {"digest": "sha256:" + "0" * 64}}, "give origin.image.digest"),
    "a setting that the chart makes": ({"edge": {"config": {"edge.media": "0.0.0.0:9"}}}, "edge.config sets edge.media, which the chart sets: use edge.media.port"),
    "a secret among the settings": ({"config": {"auth.play_token": "t"}}, "doesn't belong into a pod's specification"),
    "operators' secret among the settings": ({"config": {"auth.admin_token": "t"}}, "doesn't belong into a pod's specification"),
    "a setting that is no key": ({"config": {"RTMP.Listen": "x"}}, "RTMP.Listen"),
    "a setting that is misspelt": ({"edge": {"config": {"edge.egress_mpbs_max": 8000}}}, "edge.egress_mpbs_max"),
}


def there(kind, name, spec, version="apps/v1"):
    """An object of the release as the API server has it."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": f"live-{name}", "namespace": NAMESPACE}, "spec": spec}


def edges(replicas, kind="Deployment"):
    return there(kind, "headwater-edge", {"replicas": replicas})


def etcd(replicas=3, size="2Gi", storage_class=None):
    claim = {"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": size}}, **({"storageClassName": storage_class} if storage_class else {})}}
    return there("StatefulSet", "etcd", {"replicas": replicas, **({"volumeClaimTemplates": [claim]} if size else {})})


SCALER = there("HorizontalPodAutoscaler", "headwater-edge", {}, "autoscaling/v2")
SCALED = {"autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 8}}

# Upgrades that would break what runs: what is there, the new values, and the sentence.
BAD_UPGRADES = {
    "other members": ([etcd(3)], {"etcd": {"replicas": 5}}, "etcd.replicas was 3 when"),
    "larger disks": ([etcd()], {"etcd": {"persistence": {"size": "4Gi"}}}, "etcd.persistence.size was 2Gi when this release was installed and can't become 4Gi"),
    "another class": ([etcd()], {"etcd": {"persistence": {"storageClass": "fast"}}}, 'storageClass was "" when .* can\'t become "fast"'),
    "the default class": ([etcd(storage_class="fast")], {}, 'storageClass was "fast" when .* can\'t become ""'),
    "no disks": ([etcd(1)], {"etcd": {"replicas": 1, "persistence": {"enabled": False}}}, "etcd.persistence.enabled was true when"),
    "disks": ([etcd(1, size=None)], {"etcd": {"replicas": 1}}, "etcd.persistence.enabled was false when"),
    "six edges become two": ([edges(6), SCALER], {}, "the 6 edges that run would become edge.replicas=2 at once: set edge.replicas=6"),
}


class Upgrades(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.chart = Chart()

    def test_those_that_would_break_what_runs_are_refused(self):
        for name, (objects, values, sentence) in BAD_UPGRADES.items():
            with self.subTest(upgrade=name), self.assertRaises(Refused) as refused:
                self.chart.render(values, there=objects)
            self.assertRegex(str(refused.exception), sentence, name)

    def test_etcd_stays_as_it_was_installed(self):
        for objects, persistence in (([etcd()], {}), ([etcd()], {"size": "2048Mi"}), ([etcd()], {"size": 2147483648}), ([etcd(storage_class="fast")], {"storageClass": "fast"}), ([], {"size": "4Gi"})):
            self.chart.render({"etcd": {"persistence": persistence}}, there=objects)

    def test_the_autoscalers_edges_stay(self):
        for running, rendered in ((6, 6), (1, 2), (20, 8), (0, 2)):
            for kind, exposure in (("Deployment", "hostPort"), ("StatefulSet", "loadBalancer")):
                objects, _ = self.chart.render({**SCALED, "edge": {"maxReplicas": 8, "media": {"exposure": exposure}}}, there=[edges(running, kind), SCALER])
                self.assertEqual(objects.workload("edge")["spec"]["replicas"], rendered)
        # Nothing is there before the first install, and nothing is known to `helm template`.
        self.assertEqual(self.chart.render(SCALED)[0].workload("edge")["spec"]["replicas"], 2)

    def test_without_the_autoscaler_edges_are_as_many_as_said(self):
        for objects, replicas in (([edges(6), SCALER], 6), ([edges(6), SCALER], 7), ([edges(6)], 2)):
            self.assertEqual(self.chart.render({"edge": {"replicas": replicas}}, there=objects)[0].workload("edge")["spec"]["replicas"], replicas)


class Rendering(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.chart = Chart()
        cls.rendered = {name: cls.chart.render(values) for name, values in GOOD.items()}

    def test_kubernetes_takes_every_object(self):
        seen = set()
        for name, (rendered, _) in self.rendered.items():
            for thing in rendered.objects:
                text = json.dumps(thing, sort_keys=True)
                if thing["kind"] in CUSTOM or text in seen:
                    continue
                seen.add(text)
                for version in KUBERNETES:
                    with self.subTest(values=name, kind=thing["kind"], name=thing["metadata"]["name"], version=version):
                        # An unknown kind or version is an exception, too.
                        kubernetes_validate.validate(thing, version, strict=True)
        self.assertGreater(len(seen), 90)

    def test_the_prometheus_operator_takes_its_objects(self):
        kinds = set()
        for name, (rendered, _) in self.rendered.items():
            for thing in rendered.objects:
                if thing["kind"] in CUSTOM:
                    with self.subTest(values=name, kind=thing["kind"], name=thing["metadata"]["name"]):
                        kinds.add(thing["kind"])
                        # What the definition doesn't have is dropped without a word, by its types as by the API server.
                        taken = getattr(prometheus_operator, thing["kind"]).model_validate(thing)
                        self.assertEqual(taken.model_dump(mode="json", by_alias=True, exclude_unset=True), thing)
        self.assertEqual(kinds, CUSTOM)

    def test_objects_fit_together(self):
        for name, (rendered, _) in self.rendered.items():
            with self.subTest(values=name):
                self.assertEqual(rendered.faults(external={"mine"}), [])

    def test_wrong_values_are_refused_with_a_sentence(self):
        for name, (values, sentence) in BAD.items():
            with self.subTest(values=name):
                with self.assertRaises(Refused) as refused:
                    self.chart.render(values)
                self.assertRegex(str(refused.exception), sentence)

    def test_lint_has_nothing_to_say(self):
        for name in ("defaults", "monitoring", "load balancers"):
            report = helm_python.lint(str(self.chart.path), GOOD[name], strict=True, with_subcharts=True)
            worse = [m for m in report["messages"] if m["severity"] > 1]
            self.assertEqual((worse, report.get("errors") or []), ([], []))

    def test_what_follows_from_the_values_is_up_to_date(self):
        done = subprocess.run(["python3", str(CHART.parent / "generate.py"), "--check"], capture_output=True, text=True, check=False,
                              env={**os.environ, "PATH": os.path.dirname(os.sys.executable) + os.pathsep + os.environ["PATH"]})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_secrets_stand_in_secrets_only(self):
        for name, (rendered, notes) in self.rendered.items():
            elsewhere = json.dumps([o for o in rendered.objects if o["kind"] != "Secret"]) + notes
            self.assertNotIn("hush-", elsewhere, name)

    def test_each_node_is_given_the_tokens_that_it_asks_for(self):
        for name, secret, keys in (
            ("tokens", "live-headwater-auth", {"origin": {"PUBLISH": "publish-token", "ADMIN": "admin-token"}, "edge": {"PLAY": "play-token", "ADMIN": "admin-token"}}),
            ("tokens in a Secret", "mine", {"origin": {"PUBLISH": "in", "ADMIN": "admin"}, "edge": {"ADMIN": "admin"}}),
            ("defaults", "", {"origin": {}, "edge": {}}),
        ):
            for role, expected in keys.items():
                variables = self.rendered[name][0].container(role)["env"]
                given = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in variables if v["name"].startswith("HEADWATER_AUTH__")}
                self.assertEqual(given, {f"HEADWATER_AUTH__{token}_TOKEN": {"name": secret, "key": key} for token, key in expected.items()}, (name, role))

    def test_settings_that_the_chart_makes_are_keys_of_the_binary(self):
        ours = re.findall(r'"([a-z_]+(?:\.[a-z_]+)*)" "', (CHART / "templates/validate.yaml").read_text().split("$ours := dict")[1].split("}}")[0])
        self.assertGreater(len(ours), 20)
        self.assertLessEqual(set(ours), settings_keys())

    def test_ports_are_those_of_the_exposure(self):
        def media(name):
            ports = self.rendered[name][0].container("edge")["ports"]
            return [(p["containerPort"], p.get("hostPort"), p["protocol"]) for p in ports if p["name"].startswith("media")]

        host = [(8700, 8700, "UDP"), (8701, 8701, "UDP"), (8700, 8700, "TCP")]
        self.assertEqual(media("defaults"), host)
        self.assertEqual(media("host network"), host)
        self.assertEqual(media("node ports"), [])
        self.assertEqual(media("load balancers"), [(8700, None, "UDP"), (8701, None, "UDP"), (8700, None, "TCP")])
        self.assertEqual(media("everything at its smallest"), [(8700, 8700, "UDP")])

    def test_host_ports_never_surge(self):
        edge = self.rendered["defaults"][0].workload("edge")
        self.assertEqual(edge["spec"]["strategy"]["rollingUpdate"], {"maxSurge": 0, "maxUnavailable": 1})
        self.assertEqual(edge["spec"]["progressDeadlineSeconds"], 720)

    def test_origins_take_what_they_have_memory_for(self):
        for name, ladders, streams in (
            ("defaults", "4", "69"), ("a small origin", "1", "7"), ("a large origin", "64", "500"), ("an origin without renditions", None, "89"),
            ("an origin of many streams", "9", "1000"), ("an origin with its own settings", "0", "89"), ("an origin whose memory is a number", "1", "7"),
        ):
            environment = self.rendered[name][0].environment("origin", "o-0")
            self.assertEqual((environment.get("HEADWATER_LADDER__STREAMS_MAX"), environment["HEADWATER_ORIGIN__STREAMS_MAX"]), (ladders, streams), name)

    def test_pods_are_replaced_for_secrets_of_their_own_only(self):
        def sums(values):
            rendered, _ = self.chart.render(values)
            return [pod_of(rendered.workload(role))["metadata"]["annotations"]["checksum/secrets"] for role in ("origin", "edge")]

        plain = sums({})
        for values, changed in (
            ({"auth": {"publishToken": "a"}}, [True, False]), ({"auth": {"playToken": "a"}}, [False, True]), ({"auth": {"adminToken": "a"}}, [True, True]), (GOOD["TURN"], [False, True]),
            ({"etcd": {**EXTERNAL_ETCD, "auth": {"username": "u", "password": "p"}}}, [True, True]),
        ):
            self.assertEqual([a != b for a, b in zip(plain, sums(values), strict=True)], changed)

    def test_viewers_are_told_the_address_they_reach(self):
        def told(name, pod="live-headwater-edge-1"):
            rendered = self.rendered[name][0]
            environment = rendered.environment("edge", pod)
            own = {}
            if "HEADWATER_CONFIG" in environment:
                files = rendered.get("ConfigMap", "live-headwater-edge-pods")["data"]
                own = tomllib.loads(files[pathlib.PurePath(environment["HEADWATER_CONFIG"]).name])["edge"]
            address = (environment.get("HEADWATER_EDGE__PUBLIC_IP") or environment.get("HEADWATER_EDGE__PUBLIC_IP_FROM")
                       or own.get("public_ip_from") or ",".join(own["public_ip"]))
            return address, environment.get("HEADWATER_EDGE__MEDIA") or own["media"]

        self.assertEqual(told("defaults"), ("192.0.2.7", "0.0.0.0:8700"))
        self.assertEqual(told("host network"), ("192.0.2.7", "0.0.0.0:8700"))
        self.assertEqual(told("node ports"), ("192.0.2.7", "0.0.0.0:31004"))
        self.assertEqual(told("node ports, no TCP, public addresses"), ("198.51.100.2", "0.0.0.0:30042"))
        self.assertEqual(told("load balancers"), ("198.51.100.2", "0.0.0.0:8700"))
        self.assertEqual(told("load balancers' own addresses"), ("service:media/live-headwater-edge-media-1", "0.0.0.0:8700"))
        self.assertEqual(told("external addresses of nodes"), ("node:node-1", "0.0.0.0:8700"))
        self.assertEqual(told("external addresses of nodes, node ports"), ("node:node-1", "0.0.0.0:30042"))
        self.assertEqual(told("addresses by STUN"), ("stun:stun.example.com:3478", "0.0.0.0:8700"))
        self.assertEqual(told("one public address for all"), ("198.51.100.1,2001:db8::1", "0.0.0.0:8700"))
        self.assertEqual(told("IPv6"), ("192.0.2.7", "[::]:8700"))

    def test_each_numbered_edge_has_a_service_with_its_ports(self):
        rendered = self.rendered["node ports"][0]
        for i in range(4):
            service = rendered.get("Service", f"live-headwater-edge-media-{i}")["spec"]
            self.assertEqual(service["selector"]["statefulset.kubernetes.io/pod-name"], f"live-headwater-edge-{i}")
            self.assertTrue(service["publishNotReadyAddresses"])
            self.assertEqual(sorted((p["nodePort"], p["protocol"]) for p in service["ports"]),
                             sorted([(31000 + 4 * i + s, "UDP") for s in range(4)] + [(31000 + 4 * i, "TCP")]))

    def test_pods_read_at_the_api_what_they_need_and_no_more(self):
        for name, (rendered, _) in self.rendered.items():
            with self.subTest(values=name):
                with_token = [o for o in rendered.objects if o["kind"] in ("Deployment", "StatefulSet", "Pod") and pod_of(o)["spec"]["automountServiceAccountToken"]]
                rules = [(r["resources"], r["verbs"], r.get("resourceNames")) for kind in ("Role", "ClusterRole") for o in rendered.of(kind) for r in o["rules"]]
                wanted = {
                    "load balancers' own addresses": [(["services"], ["get"], ["live-headwater-edge-media-0", "live-headwater-edge-media-1"])],
                    "external addresses of nodes": [(["nodes"], ["get"], None)],
                    "external addresses of nodes, node ports": [(["nodes"], ["get"], None)],
                }.get(name, [])
                self.assertEqual(rules, wanted)
                self.assertEqual([o["metadata"]["name"] for o in with_token], ["live-headwater-edge"] if wanted else [])

    def test_settings_reach_the_nodes_as_they_were_written(self):
        rendered = self.rendered["settings"][0]
        origin, edge = rendered.environment("origin", "o-0"), rendered.environment("edge", "e-0")
        self.assertEqual(origin["HEADWATER_RTMP__CONNECTIONS_MAX"], "12000000")
        self.assertEqual(origin["HEADWATER_LADDER__RUNGS"], "480:1000,240:400")
        self.assertEqual(origin["HEADWATER_LADDER__ENABLED"], "true")
        self.assertEqual(edge["HEADWATER_EDGE__EGRESS_MBPS_MAX"], "8000")
        self.assertNotIn("HEADWATER_EDGE__EGRESS_MBPS_MAX", origin)
        # Behind a proxy limits per address are off, unless they are given.
        self.assertEqual(edge["HEADWATER_EDGE__LIMITS__REQUESTS_PER_SECOND"], "20")
        self.assertEqual(edge["HEADWATER_EDGE__LIMITS__CONNECTIONS_PER_ADDRESS"], "0")

    def test_limits_per_address_hold_where_viewers_addresses_are_known(self):
        limits = ("HEADWATER_EDGE__LIMITS__REQUESTS_PER_SECOND", "HEADWATER_EDGE__LIMITS__CONNECTIONS_PER_ADDRESS")
        for name, policy, off in (
            ("defaults", None, False), ("load balanced HTTP", "Local", False), ("load balanced HTTP by way of other nodes", "Cluster", True),
            ("load balanced services", "Cluster", True), ("ingress", None, True),
        ):
            rendered = self.rendered[name][0]
            environment = rendered.environment("edge", "e-0")
            self.assertEqual([environment.get(limit) for limit in limits], ["0", "0"] if off else [None, None], name)
            self.assertEqual(rendered.get("Service", "live-headwater-http")["spec"].get("externalTrafficPolicy"), policy, name)

    def test_publishers_come_back_to_their_origin_where_clouds_allow_it(self):
        for name, affinity in (("defaults", "ClientIP"), ("load balanced services", "None")):
            self.assertEqual(self.rendered[name][0].get("Service", "live-headwater-rtmp")["spec"]["sessionAffinity"], affinity)

    def test_etcds_disks_go_with_the_release(self):
        kept = {name: self.rendered[name][0].get("StatefulSet", "live-etcd")["spec"].get("persistentVolumeClaimRetentionPolicy")
                for name in ("defaults", "one etcd member without a disk")}
        self.assertEqual(kept, {"defaults": {"whenDeleted": "Delete", "whenScaled": "Retain"}, "one etcd member without a disk": None})

    def test_an_etcd_at_its_quota_is_not_killed(self):
        if not shutil.which("etcd"):
            self.skipTest("no etcd")
        container = self.rendered["defaults"][0].container("etcd")
        with tempfile.TemporaryDirectory() as directory:
            client, peer, metrics = (f"http://127.0.0.1:{port}" for port in ports.free(3))
            given = {"data-dir": f"{directory}/data", "listen-client-urls": client, "advertise-client-urls": client, "listen-peer-urls": peer,
                     "initial-advertise-peer-urls": peer, "initial-cluster": f"default={peer}", "listen-metrics-urls": metrics, "quota-backend-bytes": 1 << 20}
            # Full after a few writes.
            process = subprocess.Popen(["etcd", *(f"--{key}={value}" for key, value in given.items())], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                def health(probe):
                    try:
                        return urllib.request.urlopen(metrics + container[probe]["httpGet"]["path"], timeout=2).status
                    except urllib.error.HTTPError as error:
                        return error.code
                    except OSError:
                        return None

                self.until(lambda: health("readinessProbe") == 200)
                put = json.dumps({"key": "a2V5", "value": base64.b64encode(bytes(1 << 19)).decode()}).encode()

                def full():
                    try:
                        urllib.request.urlopen(client + "/v3/kv/put", put, timeout=5)
                    except urllib.error.HTTPError as error:
                        return b"space exceeded" in error.read()
                    return False

                self.until(full)
                self.until(lambda: health("readinessProbe") == 503)
                self.assertEqual((health("livenessProbe"), health("startupProbe")), (200, 200))
            finally:
                process.kill()
                process.wait()

    def until(self, holds):
        end = time.monotonic() + 20
        while not holds():
            self.assertLess(time.monotonic(), end, "it took longer than 20 s")
            time.sleep(0.05)

    def test_edges_scale_by_their_load(self):
        scaler = self.rendered["autoscaling"][0].of("HorizontalPodAutoscaler")[0]["spec"]
        self.assertEqual((scaler["minReplicas"], scaler["maxReplicas"]), (2, 12))
        self.assertEqual(scaler["metrics"][0]["pods"]["target"], {"type": "AverageValue", "averageValue": "650m"})
        self.assertEqual(scaler["behavior"]["scaleDown"]["policies"], [{"type": "Pods", "value": 1, "periodSeconds": 300}])
        self.assertGreaterEqual(scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 600)

    def test_an_etcd_that_is_there_takes_the_place_of_ours(self):
        rendered = self.rendered["an etcd that is there"][0]
        self.assertFalse([o for o in rendered.objects if "etcd" in o["metadata"]["name"]])
        origin = rendered.environment("origin", "o-0")
        self.assertEqual(origin["HEADWATER_DIRECTORY__ETCD"], ",".join(EXTERNAL_ETCD["endpoints"]))
        self.assertEqual(origin["HEADWATER_DIRECTORY__USERNAME"], "headwater")

    def test_nodes_know_all_members_of_etcd(self):
        environment = self.rendered["five etcd members"][0].environment("edge", "e")
        self.assertEqual(environment["HEADWATER_DIRECTORY__ETCD"].split(","),
                         [f"http://live-etcd-{i}.live-etcd.{NAMESPACE}.svc:2379" for i in range(5)])

    def test_pods_meet_the_restricted_standard_where_the_exposure_allows_it(self):
        for name in ("node ports", "load balancers"):
            for workload in self.rendered[name][0].of("StatefulSet"):
                spec = pod_of(workload)["spec"]
                self.assertFalse(spec.get("hostNetwork"))
                self.assertFalse([p for c in spec["containers"] for p in c["ports"] if "hostPort" in p])

    def test_rules_and_dashboards_are_those_of_deploy(self):
        rendered = self.rendered["monitoring"][0]
        groups = [g for path in sorted((ROOT / "deploy/prometheus").glob("*.rules.yaml")) for g in yaml.safe_load(path.read_text())["groups"]]
        ours = rendered.of("PrometheusRule")[0]["spec"]["groups"]
        for group, original in zip(ours, groups, strict=True):
            for rule, plain in zip(group["rules"], original["rules"], strict=True):
                # Each selector asks for the namespace, and nothing else is different.
                for selector in re.findall(r"(?<![\w:])(?:headwater_|headwater:|etcd_|kube_|up\b)[\w:]*(.{17})", rule["expr"]):
                    self.assertEqual(selector, '{namespace="media', rule["expr"])
                rest = rule["expr"].replace('{namespace="media"}', "").replace('namespace="media",', "").replace('"live-headwater-', '".*headwater-')
                self.assertEqual(rest, plain["expr"])
                self.assertEqual(rule["labels"], {**plain.get("labels", {}), "namespace": "media"})
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / "rules.yaml"
            file.write_text(yaml.safe_dump({"groups": ours}))
            done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for path in (ROOT / "deploy/grafana").glob("*.json"):
            data = rendered.get("ConfigMap", f"live-headwater-{path.stem}")["data"][path.name]
            self.assertEqual(json.loads(data), json.loads(path.read_text()))

    def test_notes_say_what_is_missing(self):
        notes = {name: notes for name, (_, notes) in self.rendered.items()}
        for text in ("anyone may publish", "anyone may watch", "UDP 8700 to 8701 and TCP 8700", "no alerts"):
            self.assertIn(text, notes["defaults"])
        self.assertNotIn("anyone", notes["tokens"])
        self.assertIn("prometheus-adapter", notes["autoscaling"])
        self.assertIn("any pod may write to etcd", notes["no policies, no accounts, no test"])
        self.assertIn("nothing tells Prometheus", notes["no policies, no accounts, no test"])
        self.assertIn("firewall", notes["host network"])
        self.assertIn("http://ADDRESS/play/live/NAME", notes["load balanced HTTP"])
        self.assertIn("rtmp://ADDRESS:PORT/live/NAME", notes["node ports for publishers"])
        self.assertIn("2 edges want 2 nodes", notes["defaults"])
        self.assertNotIn("A node takes one edge", notes["everything at its smallest"])
        self.assertIn("UDP and TCP 31000 to 31015", notes["node ports"])
        self.assertIn("https://live.example.com/play/live/NAME", notes["ingress"])
        self.assertIn("edge.media.addresses, in the order", notes["load balancers"])

    def test_nodes_of_all_namespaces_differ_in_an_etcd_that_they_share(self):
        environments = {}
        for namespace, values in (("media", {}), ("media", {"etcd": EXTERNAL_ETCD}), ("n" * 63, {"etcd": EXTERNAL_ETCD, "fullnameOverride": "a" * 32})):
            rendered, _ = self.chart.render(values, namespace=namespace)
            # As long as a Deployment's pods can be called.
            pod = rendered.workload("edge")["metadata"]["name"] + "-0123456789-abcde"
            environment = rendered.environment("edge", pod)
            environments[namespace, not values] = environment["HEADWATER_ID"].removesuffix(pod), environment["HEADWATER_CLUSTER"]
            self.assertRegex(environment["HEADWATER_ID"] + " " + environment["HEADWATER_CLUSTER"], r"^[\w.-]{1,63} [\w.-]{1,63}$")
        hashed = hashlib.sha256(b"n" * 63).hexdigest()[:8] + "."
        self.assertEqual(list(environments.values()), [("", "live-headwater"), ("media.", "media.live-headwater"), (hashed, hashed + "a" * 32)])

    def test_only_those_who_need_it_reach_admin_and_grpc(self):
        def peers(name, role, port):
            [rule] = [r for r in self.rendered[name][0].get("NetworkPolicy", role)["spec"]["ingress"] if r["ports"][0]["port"] == port]
            return rule["from"]

        own = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "headwater", "app.kubernetes.io/instance": "live"}}}
        for role, port in (("live-headwater-origin", "admin"), ("live-headwater-edge", "admin"), ("live-etcd", "metrics")):
            self.assertEqual(peers("defaults", role, port), [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}])
        for role in ("live-headwater-origin", "live-headwater-edge"):
            self.assertEqual(peers("defaults", role, "grpc"), [own])
            self.assertEqual(peers("a cluster of several releases", role, "grpc"), [own, {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "media-2"}}}])

    def test_every_pod_that_has_metrics_can_be_found(self):
        for name, wanted in (("defaults", {"etcd": "2381", "origin": "9600", "edge": "9600"}), ("no policies, no accounts, no test", {"etcd": None, "origin": None, "edge": None})):
            for role, port in wanted.items():
                self.assertEqual(pod_of(self.rendered[name][0].workload(role))["metadata"].get("annotations", {}).get("prometheus.io/port"), port)

    def test_a_long_release_name_is_cut(self):
        rendered, _ = self.chart.render({"autoscaling": {"enabled": True}, "monitoring": MONITORING}, release="r" * 53)
        self.assertEqual(rendered.faults(), [])

    def test_the_binary_takes_the_settings(self):
        binary = pathlib.Path(os.environ.get("HEADWATER_BINARY") or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/headwater")
        if not binary.exists():
            self.skipTest(f"{binary} isn't built")
        seen = set()
        for name, (rendered, _) in self.rendered.items():
            for role in ("origin", "edge"):
                environment = rendered.environment(role, f"live-headwater-{role}-1")
                settings = json.dumps([role, environment] + [o["data"] for o in rendered.of("ConfigMap") if "HEADWATER_CONFIG" in environment])
                if settings in seen:
                    continue
                seen.add(settings)
                with self.subTest(values=name, role=role), tempfile.TemporaryDirectory() as directory:
                    if "HEADWATER_CONFIG" in environment:
                        file = pathlib.Path(directory) / "node.toml"
                        pods = rendered.get("ConfigMap", f"{rendered.workload('edge')['metadata']['name']}-pods")["data"]
                        file.write_text(pods[pathlib.PurePath(environment["HEADWATER_CONFIG"]).name])
                        environment["HEADWATER_CONFIG"] = str(file)
                    for variable in ("HEADWATER_DIRECTORY__CA", "HEADWATER_DIRECTORY__CERT", "HEADWATER_DIRECTORY__KEY"):
                        if variable in environment:
                            # What the Secret holds there.
                            mounted = pathlib.Path(directory) / pathlib.PurePath(environment[variable]).name
                            mounted.touch()
                            environment[variable] = str(mounted)
                    command = [str(binary), *rendered.container(role)["args"], "--check-config"]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
