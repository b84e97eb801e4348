"""A stand-in for the Hub on this machine: what huggingface_hub asks to list, download in parts and upload a model.

The models are the folders of `root`. Those of the organisation `secret` are given to TOKEN alone. A file named in
`dies` breaks off so many times after half of what was asked.
"""

import base64
import json
import os
import re
import subprocess
import sys
from hashlib import sha1
from http.server import BaseHTTPRequestHandler

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_the_token_that_must_not_be_seen"


class Hub(BaseHTTPRequestHandler):
    """root: the models' folder; asked: gets every path that is asked for, with its range; dies: file -> how often."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root, asked, dies, *arguments):
        self.root, self.asked, self.dies = root, asked, dies
        super().__init__(*arguments)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append((path, self.headers.get("Range")))
        if path == "/api/whoami-v2":
            return self.say(200, {"name": "somebody", "type": "user", "orgs": []} if self.known() else {}, known=True)
        if match := re.fullmatch(r"/api/models/(\w+/[\w-]+)(?:/(revision|tree)/([^/]+))?", path):
            return self.list(*match.groups())
        match = re.fullmatch(r"/(\w+/[\w-]+)/resolve/([^/]+)/(.+)", path)
        if not match:
            return self.say(404, {})
        model, revision, name = match.groups()
        if refusal := self.refusal(model, revision):
            return self.say(*refusal)
        file = self.root / model / name
        if not file.is_file():
            return self.say(404, {}, {"X-Error-Code": "EntryNotFound"})
        self.send_file(file)

    def list(self, model, what, revision):
        if refusal := self.refusal(model, revision or "main"):
            return self.say(*refusal)
        files = sorted(path for path in (self.root / model).rglob("*") if path.is_file())
        names = [path.relative_to(self.root / model).as_posix() for path in files]
        tree = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": oid(f)} for n, f in zip(names, files)]
        siblings = [{"rfilename": n, "size": f.stat().st_size, "blobId": oid(f)} for n, f in zip(names, files)]
        about = {"id": model, "sha": COMMIT, "siblings": siblings}
        return self.say(200, tree if what == "tree" else about)

    def refusal(self, model, revision):
        if model.startswith("secret/") and not self.known():
            return 401, {"error": "Invalid credentials"}, {"X-Error-Code": "RepoNotFound"}
        if not (self.root / model).is_dir():
            return 404, {}, {"X-Error-Code": "RepoNotFound"}
        return None if revision in ("main", COMMIT) else (404, {}, {"X-Error-Code": "RevisionNotFound"})

    def known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def send_file(self, file):
        data, headers = file.read_bytes(), {"ETag": f'"{oid(file)}"', "X-Repo-Commit": COMMIT}
        status, whole = 200, len(data)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), min(int(match[2] or whole - 1), whole - 1)
            status, data = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
        breaks = self.command == "GET" and self.dies.get(file.name, 0) > 0
        if breaks:
            self.dies[file.name] -= 1
        self.say(status, data, headers | {"Accept-Ranges": "bytes"}, breaks=breaks)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.asked.append((path, None))
        if not self.known():
            return self.say(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            name = json.loads(body)["name"]
            owner = json.loads(body).get("organization") or "somebody"
            if (self.root / owner / name).is_dir():
                return self.say(409, {"url": f"/{owner}/{name}"})
            (self.root / owner / name).mkdir(parents=True)
            return self.say(200, {"url": f"http://{self.headers['Host']}/{owner}/{name}", "id": f"{owner}/{name}"})
        if path.endswith("/validate-yaml"):
            return self.say(200, {"errors": [], "warnings": []})
        model = re.search(r"/(\w+/[\w-]+)(?:/preupload|/commit|\.git/info)", path)[1]
        if "/preupload/" in path:
            modes = [
                ("lfs" if f["path"].endswith(".safetensors") else "regular", f["path"])
                for f in json.loads(body)["files"]
            ]
            return self.say(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]})
        if path.endswith("/objects/batch"):
            base = f"http://{self.headers['Host']}/lfs/{model}"
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{base}/{o['oid']}", "header": {}}},
                }
                for o in json.loads(body)["objects"]
            ]
            return self.say(200, {"transfer": "basic", "objects": objects})
        for line in map(json.loads, body.splitlines()):
            value, file = line["value"], self.root / model / line["value"].get("path", "")
            if line["key"] == "file":
                file.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (self.root / "lfs" / value["oid"]).rename(file)
        self.say(200, {"commitUrl": f"http://{self.headers['Host']}/{model}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        (self.root / "lfs").mkdir(exist_ok=True)
        (self.root / "lfs" / self.path.rpartition("/")[2]).write_bytes(body)
        self.say(200, b"")

    def say(self, status, body, headers=None, breaks=False, known=False):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if breaks else data)
        if breaks:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


def oid(file):
    """git's name for a file is not what counts here: any that tells one content from another."""
    return sha1(file.read_bytes()).hexdigest()


def surroundings(address, cache, **more):
    """The environment of a process whose Hub is at an address, and which has nobody's login."""
    own = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HTTP", "ALL_PROXY"))}
    return kept | own | more


def mergelab(*arguments, env):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "mergelab", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True)
