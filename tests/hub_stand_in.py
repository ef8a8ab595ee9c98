"""A hub on this machine: as much of its interface for files as sending and fetching a repository takes."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


class StandIn(ThreadingHTTPServer):
    """Keeps the files of repositories, by name; ``asked`` are the paths of all requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files, self.private, self.asked = {}, {}, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name):
        return hashlib.sha1(repr(sorted(self.files[name].items())).encode()).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def say(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def parts(self):
        self.server.asked.append(self.path)
        return unquote(urlparse(self.path).path).strip("/").split("/")

    def do_POST(self):
        parts, content = self.parts(), self.body()
        if parts == ["api", "repos", "create"]:
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.files.setdefault(name, {})
            self.server.private[name] = asked.get("visibility") == "private" or asked.get("private", False)
            return self.say({"url": f"{self.server.address}/{name}"})
        if parts == ["api", "validate-yaml"]:
            return self.say({"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = json.loads(content)["files"]
            return self.say(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]}
            )
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                self.server.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = self.server.commit(name)
        return self.say({"commitUrl": f"{self.server.address}/{name}/commit/{oid}", "commitOid": oid})

    def do_GET(self):
        parts = self.parts()
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.server.files.get(name)
        if files is None:
            return self.say({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if parts[0] != "api":
            content = files["/".join(parts[4:])]
            oid = hashlib.sha1(content).hexdigest()
            return self.say(content, ETag=f'"{oid}"', X_Repo_Commit=self.server.commit(name))
        if parts[4:5] == ["tree"]:
            return self.say(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in files.items()
                ]
            )
        siblings = [{"rfilename": path} for path in files]
        return self.say({"id": name, "modelId": name, "sha": self.server.commit(name), "siblings": siblings})

    do_HEAD = do_GET
