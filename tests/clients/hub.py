"""A hub on loopback for tests: one repository, spoken as huggingface.co speaks it, with large files redirected."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
LARGE = 64 << 10


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """Serves `files` (bytes by path) as the model `repo` until it is closed."""

    def __init__(self, repo, files):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.paths.append(self.path)
                hub.answer(self, body=True)

            def do_HEAD(self):
                hub.paths.append(self.path)
                hub.answer(self, body=False)

            def log_message(self, *args):
                pass

        self.repo, self.files, self.paths = repo, files, []
        # Large files lie at another address, as they do at huggingface.co.
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def answer(self, handler, body):
        path = handler.path.split("?")[0]
        if path.startswith(f"/api/models/{self.repo}/tree/"):
            entries = [{"type": "file", "path": name, "size": len(content), "oid": git_hash(content)} for name, content in self.files.items()]
            return self.send(handler, json.dumps(entries).encode(), {"Content-Type": "application/json"}, body)
        if path.startswith(f"/api/models/{self.repo}"):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"_id": "1", "id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0}
            return self.send(handler, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        if path.startswith("/storage/"):
            content = next(content for content in self.files.values() if path.endswith(hashlib.sha256(content).hexdigest()))
            return self.send(handler, content, {}, body)
        prefix = f"/{self.repo}/resolve/"
        name = path[len(prefix):].split("/", 1)[-1] if path.startswith(prefix) else None
        if name not in self.files:
            return self.send(handler, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body, status=404)
        content = self.files[name]
        if len(content) < LARGE:
            return self.send(handler, content, {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": COMMIT}, body)
        sha = hashlib.sha256(content).hexdigest()
        headers = {"Location": f"{self.storage}/storage/{sha}", "X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": COMMIT}
        self.send(handler, b"", headers, body, status=302)

    def send(self, handler, content, headers, body, status=200):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if body:
            handler.wfile.write(content)
