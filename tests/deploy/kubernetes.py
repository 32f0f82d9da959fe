"""An API server that answers what Helm's `lookup` asks it: which kinds there are, and the objects it was given."""

import http.server
import json
import threading

RESOURCES = {
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
}


class Kubernetes:
    """`with Kubernetes([objects]) as kubeconfig`: the objects of one namespace, as the API server has them."""

    def __init__(self, objects):
        answers = {}
        for group, kinds in RESOURCES.items():
            resources = [{"name": plural, "kind": kind, "namespaced": True, "verbs": ["get", "list"]} for kind, plural in kinds.items()]
            answers[f"/apis/{group}"] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}
        for thing in objects:
            plural = RESOURCES[thing["apiVersion"]][thing["kind"]]
            answers[f"/apis/{thing['apiVersion']}/namespaces/{thing['metadata']['namespace']}/{plural}/{thing['metadata']['name']}"] = thing

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.partition("?")[0]
                missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
                body = json.dumps(answers.get(path, missing)).encode()
                self.send_response(200 if path in answers else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        cluster = {"server": f"http://127.0.0.1:{self.server.server_port}"}
        return json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": cluster}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        })

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
