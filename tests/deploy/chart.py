"""Renders helm/headwater with Helm's own engine, and finds faults in what comes out that Kubernetes' schemas don't know of."""

import atexit
import pathlib
import re
import shutil
import tempfile
import tomllib

import helm_python
import yaml

from kubernetes import Kubernetes

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/headwater"
RELEASE, NAMESPACE = "live", "media"
WORKLOADS = ("Deployment", "StatefulSet", "Pod")

helm_python.disable_logging()


class Refused(Exception):
    """The chart doesn't take these values; the text is what the user reads."""


class Chart:
    def __init__(self):
        # A copy has files in the place of links, each of which Helm mentions on every load.
        directory = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        self.path = pathlib.Path(directory) / "headwater"
        shutil.copytree(CHART, self.path)

    def render(self, values, release=RELEASE, there=None, namespace=NAMESPACE):
        """The objects that these values make, and NOTES.txt. `there`: what runs already, for an upgrade; without it an install."""
        try:
            # Rendering removes disabled sub-charts from a loaded chart: each time a fresh one.
            with helm_python.Chart.load(str(self.path)) as chart:
                chart.validate_schema(values)
                if there is None:
                    files = chart.render(values, name=release, namespace=namespace, is_install=True)
                else:
                    with Kubernetes(there) as kubeconfig, helm_python.Config(kubeconfig_content=kubeconfig, namespace=namespace) as config:
                        files = config.render(chart, values, name=release, namespace=namespace, is_upgrade=True)
        except helm_python.HelmError as error:
            raise Refused(str(error)) from None
        objects, notes = [], ""
        for path, text in sorted(files.items()):
            if path.endswith("NOTES.txt"):
                notes = text
            elif path.endswith(".yaml") and not path.endswith("headwater/values.yaml"):
                objects += [document for document in yaml.safe_load_all(text) if document]
        return Rendered(objects), notes


def settings_keys():
    """The keys of deploy/headwater.toml, those in comments included."""
    text = (ROOT / "deploy/headwater.toml").read_text()
    keys, section = set(), ""
    for line in text.splitlines():
        if match := re.match(r"\[([a-z_.]+)\]", line):
            section = match[1] + "."
        elif match := re.match(r"(?:# )?([a-z_]+) = ", line):
            keys.add(section + match[1])
    return keys


def pod_of(workload):
    return workload if workload["kind"] == "Pod" else workload["spec"]["template"]


def quantity(value):
    number, unit = re.fullmatch(r"([0-9.]+)(m|[KMGT]i?|k)?", str(value)).groups()
    scale = {None: 1, "m": 1e-3, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(number) * scale[unit]


class Rendered:
    def __init__(self, objects):
        self.objects = objects

    def of(self, kind):
        return [o for o in self.objects if o["kind"] == kind]

    def get(self, kind, name):
        found = [o for o in self.of(kind) if o["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind} {name}: {[o['metadata']['name'] for o in self.of(kind)]}"
        return found[0]

    def workload(self, role):
        found = [o for o in self.objects if o["kind"] in WORKLOADS and o["metadata"]["name"].endswith("-" + role)]
        assert len(found) == 1, f"{len(found)} workloads of {role}"
        return found[0]

    def container(self, role):
        return pod_of(self.workload(role))["spec"]["containers"][0]

    def environment(self, role, pod, addresses=None):
        """The container's variables as the kubelet would set them in a pod of this name; those of the user's Secrets are `secret`."""
        fields = {"metadata.name": pod, "status.podIP": "10.1.2.3", "status.hostIP": "192.0.2.7", "spec.nodeName": "node-1"} | (addresses or {})
        out = {}
        for variable in self.container(role)["env"]:
            if "value" in variable:
                value = re.sub(r"\$\((\w+)\)", lambda m: out.get(m[1], m[0]), variable["value"])
            elif "fieldRef" in variable["valueFrom"]:
                value = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                wanted = variable["valueFrom"]["secretKeyRef"]
                own = [s["stringData"][wanted["key"]] for s in self.of("Secret") if s["metadata"]["name"] == wanted["name"]]
                value = own[0] if own else "[]" if wanted["key"] == "ice-servers" else "secret"
            out[variable["name"]] = value
        return out

    def faults(self, external=()):
        """What is wrong, in sentences. `external`: names of Secrets and ServiceAccounts that the user has."""
        self.found = []
        names = {(o["kind"], o["metadata"]["name"]) for o in self.objects}
        if len(names) != len(self.objects):
            self.found.append("two objects share kind and name")
        for o in self.objects:
            self._common(o)
        for o in self.objects:
            if o["kind"] in WORKLOADS:
                self._workload(o, names, external)
            else:
                getattr(self, "_" + o["kind"].lower(), lambda _: None)(o)
        return self.found

    def _fault(self, o, text):
        self.found.append(f"{o['kind']} {o['metadata']['name']}: {text}")

    def _common(self, o):
        if len(o["metadata"]["name"]) > 63:
            self._fault(o, "the name is longer than 63 characters")
        labels = o["metadata"].get("labels", {})
        for label in ("app.kubernetes.io/name", "app.kubernetes.io/instance"):
            if label not in labels:
                self._fault(o, f"no label {label}")
        for key, value in {**labels, **o["metadata"].get("annotations", {})}.items():
            if not isinstance(value, str):
                self._fault(o, f"{key} is no string")
        for key, value in labels.items():
            if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value):
                self._fault(o, f"{key}={value} can't be a label")
        self._nulls(o, o, "")

    def _nulls(self, o, node, path):
        if node is None or node == {} and not path.endswith(("Selector", "emptyDir", "labels")):
            self._fault(o, f"{path} is empty")
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            self._nulls(o, value, f"{path}.{key}")

    def _selected(self, labels):
        """Workloads whose pods have these labels. A StatefulSet's pods also have their name as one."""
        chosen = []
        for o in self.objects:
            if o["kind"] not in WORKLOADS:
                continue
            have = dict(pod_of(o)["metadata"].get("labels", {}))
            wanted = dict(labels)
            pod = wanted.pop("statefulset.kubernetes.io/pod-name", None)
            if pod and not (o["kind"] == "StatefulSet" and re.fullmatch(re.escape(o["metadata"]["name"]) + r"-\d+", pod)):
                continue
            if wanted.items() <= have.items():
                chosen.append(o)
        return chosen

    def _workload(self, o, names, external):
        spec = pod_of(o)["spec"]
        if "selector" in o["spec"] and o not in self._selected(o["spec"]["selector"]["matchLabels"]):
            self._fault(o, "its selector doesn't match its pods")
        if o["kind"] == "StatefulSet" and ("Service", o["spec"]["serviceName"]) not in names:
            self._fault(o, "its serviceName is no Service")
        account = spec.get("serviceAccountName", "default")
        if account != "default" and ("ServiceAccount", account) not in names and account not in external:
            self._fault(o, f"ServiceAccount {account} isn't there")
        bound = {s["name"] for kind in ("RoleBinding", "ClusterRoleBinding") for b in self.of(kind) for s in b["subjects"]}
        if spec.get("automountServiceAccountToken") is not (account in bound):
            self._fault(o, "its pods get a token of Kubernetes' API and may do nothing with it, or the other way round")
        volumes = {claim["metadata"]["name"] for claim in o["spec"].get("volumeClaimTemplates", [])}
        for volume in spec.get("volumes", []):
            volumes.add(volume["name"])
            if "hostPath" in volume:
                self._fault(o, "mounts a path of the node")
            if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in names:
                self._fault(o, f"ConfigMap {volume['configMap']['name']} isn't there")
            if "secret" in volume and volume["secret"]["secretName"] not in external:
                self._fault(o, f"Secret {volume['secret']['secretName']} isn't there")
        for container in spec["containers"]:
            self._container(o, spec, container, volumes, names, external)

    def _container(self, o, spec, container, volumes, names, external):
        pod, own = spec.get("securityContext", {}), container.get("securityContext", {})
        restricted = {
            "runs as root": pod.get("runAsNonRoot") is True and pod.get("runAsUser", 0) > 0,
            "may escalate": own.get("allowPrivilegeEscalation") is False,
            "has capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "can write to its root": own.get("readOnlyRootFilesystem") is True,
            "has no seccomp profile": pod.get("seccompProfile") == {"type": "RuntimeDefault"},
        }
        for text, holds in restricted.items():
            if not holds:
                self._fault(o, f"{container['name']} {text}")
        resources = container.get("resources", {})
        if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
            self._fault(o, f"{container['name']} has no memory limit or CPU request")
        for name, value in resources.get("requests", {}).items():
            if name in resources.get("limits", {}) and quantity(value) > quantity(resources["limits"][name]):
                self._fault(o, f"requests more {name} than its limit")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                self._fault(o, f"volume {mount['name']} isn't there")
        seen = set()
        for port in container.get("ports", []):
            key = (port["containerPort"], port["protocol"])
            if key in seen or len(port["name"]) > 15:
                self._fault(o, f"port {port['name']} is there twice or its name too long")
            seen.add(key)
            if spec.get("hostNetwork") and port.get("hostPort") != port["containerPort"]:
                self._fault(o, f"port {port['name']} isn't the node's")
        defined = set()
        keys = {"HEADWATER_" + key.upper().replace(".", "__") for key in settings_keys()}
        for variable in container.get("env", []):
            name = variable["name"]
            if name in defined:
                self._fault(o, f"{name} is there twice")
            for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                if used not in defined:
                    self._fault(o, f"{name} refers to {used}, which isn't set before it")
            defined.add(name)
            if name.startswith("HEADWATER_") and name not in keys | {"HEADWATER_CONFIG", "HEADWATER_PROBE_BEARER"}:
                self._fault(o, f"{name} sets no key of deploy/headwater.toml")
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret and secret["name"] not in external:
                there = [s for s in self.of("Secret") if s["metadata"]["name"] == secret["name"]]
                if not there or secret["key"] not in there[0]["stringData"]:
                    self._fault(o, f"Secret {secret['name']} with {secret['key']} isn't there")
        for argument in container.get("args", []):
            for used in re.findall(r"\$\((\w+)\)", argument):
                if used not in defined:
                    self._fault(o, f"an argument refers to {used}, which isn't set")
        own = [int(v["value"]) for v in container.get("env", []) if v["name"] in ("HEADWATER_DRAIN_SECONDS", "HEADWATER_STOP_SECONDS")]
        if own and spec["terminationGracePeriodSeconds"] <= sum(own):
            self._fault(o, "is killed before its own deadline")

    def _service(self, o):
        chosen = self._selected(o["spec"]["selector"])
        if len(chosen) != 1:
            return self._fault(o, f"selects {len(chosen)} workloads")
        container = pod_of(chosen[0])["spec"]["containers"][0]
        listening = {(p["name"], p["protocol"]) for p in container["ports"]} | {(p["containerPort"], p["protocol"]) for p in container["ports"]}
        pod = o["spec"]["selector"].get("statefulset.kubernetes.io/pod-name")
        if pod:
            # Edges with ports of their own listen where their configuration file says.
            for config in self.of("ConfigMap"):
                own = tomllib.loads(config["data"].get(f"{pod}.toml", "")).get("edge", {})
                if "media" in own:
                    first = int(own["media"].rsplit(":", 1)[1])
                    shards = int(self.environment("edge", pod)["HEADWATER_EDGE__SHARDS"])
                    listening |= {(first + shard, "UDP") for shard in range(shards)} | {(first, "TCP")}
        for port in o["spec"]["ports"]:
            if (port["targetPort"], port["protocol"]) not in listening:
                self._fault(o, f"nobody listens on {port['targetPort']}/{port['protocol']}")
        if o["spec"].get("clusterIP") == "None" and "type" in o["spec"]:
            self._fault(o, "is headless and has a type")
        return None

    def _poddisruptionbudget(self, o):
        if len(self._selected(o["spec"]["selector"]["matchLabels"])) != 1:
            self._fault(o, "doesn't select one workload")

    def _networkpolicy(self, o):
        chosen = self._selected(o["spec"]["podSelector"]["matchLabels"])
        if len(chosen) != 1:
            return self._fault(o, "doesn't select one workload")
        ports = {p["name"] for p in pod_of(chosen[0])["spec"]["containers"][0]["ports"]}
        for rule in o["spec"]["ingress"]:
            for port in rule["ports"]:
                if isinstance(port["port"], str) and port["port"] not in ports:
                    self._fault(o, f"port {port['port']} isn't there")
                if port.get("endPort", 65535) < (port["port"] if isinstance(port["port"], int) else 0):
                    self._fault(o, "a range of ports ends before it begins")
            for peer in rule.get("from", []):
                if "podSelector" in peer and not self._selected(peer["podSelector"].get("matchLabels", {})):
                    self._fault(o, "lets in pods that don't exist")
        return None

    def _horizontalpodautoscaler(self, o):
        target = o["spec"]["scaleTargetRef"]
        replicas = self.get(target["kind"], target["name"])["spec"].get("replicas", 1)
        if not o["spec"]["minReplicas"] <= replicas <= o["spec"]["maxReplicas"]:
            self._fault(o, "fights with replicas of what it scales")

    def _ingress(self, o):
        for rule in o["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                service = self.get("Service", backend["name"])
                if backend["port"]["name"] not in [p["name"] for p in service["spec"]["ports"]]:
                    self._fault(o, "its Service has no such port")

    def _rolebinding(self, o):
        if not any(s["kind"] == "ServiceAccount" and s["namespace"] == NAMESPACE for s in o["subjects"]):
            self._fault(o, "binds no account of the namespace")
        self.get(o["roleRef"]["kind"], o["roleRef"]["name"])
        for subject in o["subjects"]:
            self.get("ServiceAccount", subject["name"])

    _clusterrolebinding = _rolebinding

    def _podmonitor(self, o):
        chosen = self._selected(o["spec"]["selector"]["matchLabels"])
        for endpoint in o["spec"]["podMetricsEndpoints"]:
            ports = [{p["name"] for p in pod_of(w)["spec"]["containers"][0].get("ports", [])} for w in chosen if w["kind"] != "Pod"]
            if not ports or not all(endpoint["port"] in have for have in ports):
                self._fault(o, f"port {endpoint['port']} isn't there")
