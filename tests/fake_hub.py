"""A small Hugging Face Hub on the loopback address, for the client of `huggingface_hub`: models, commits, uploads."""

import base64
import contextlib
import fnmatch
import hashlib
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

TOKEN = "hf_" + "secretsecret"


class Hub:
    """The repositories of a fake Hub.

    Attributes:
      commits: files by commit, name to bytes; branches: commit by (repository, branch); private: repositories.
      lfs: objects by their SHA-256; requests: (method, path) of every request; down: whether every answer is 503.
      large: names of files that are uploaded as large objects.
    """

    def __init__(self):
        self.commits, self.branches, self.private = {}, {}, set()
        self.lfs, self.requests, self.down = {}, [], False
        self.large = ("*.safetensors", "*.npz")

    def commit(self, repo, files, branch="main"):
        """Makes a commit that contains these files, and nothing else; returns its name."""
        parent = self.branches.get((repo, branch), "")
        content = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items())
        name = hashlib.sha1(json.dumps([repo, parent, content]).encode()).hexdigest()
        self.commits[repo, name], self.branches[repo, branch] = dict(files), name
        return name

    def files(self, repo, revision="main"):
        """The files at a revision; None where there is no such revision."""
        return self.commits.get((repo, self.branches.get((repo, revision), revision)))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _send(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _answer(self):
        hub, length = self.server.hub, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        hub.requests.append((self.command, path))
        if hub.down:
            return self._send(503)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            return self._send(401, X_Error_Message="Invalid credentials in Authorization header")
        if path.startswith("/lfs/"):
            hub.lfs[path.removeprefix("/lfs/")] = body
            return self._send(200)
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|branch)/(.+))?", path)
        if found:
            return self._api(*found.groups(), url.path, body, token)
        found = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        if found:
            return self._batch(json.loads(body))
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found:
            return self._resolve(*found.groups(), token)
        return self._send(404, {})

    def _create(self, request, token):
        hub, repo = self.server.hub, f"{request['organization']}/{request['name']}"
        if not token:
            return self._send(401, X_Error_Message="Invalid username or password.")
        if hub.files(repo) is not None:
            return self._send(409, {"url": f"{self.server.url}/{repo}"})
        hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs"})
        if request.get("visibility") == "private" or request.get("private"):
            hub.private.add(repo)
        return self._send(200, {"url": f"{self.server.url}/{repo}"})

    def _missing(self, repo, token):
        hub = self.server.hub
        if hub.files(repo) is None or (repo in hub.private and token != TOKEN):
            self._send(404 if token else 401, X_Error_Code="RepoNotFound")
            return True
        return False

    def _api(self, repo, what, revision, raw, body, token):
        hub = self.server.hub
        if self._missing(repo, token):
            return None
        if what == "branch":
            if not token:
                return self._send(401)
            known = hub.branches.setdefault((repo, revision), hub.branches[repo, "main"])
            return self._send(200, {"ref": known})
        revision = urllib.parse.unquote(revision or "main").split("/")[0] if what == "tree" else revision or "main"
        files = hub.files(repo, revision)
        if files is None:
            return self._send(404, X_Error_Code="RevisionNotFound")
        if what in (None, "revision"):
            siblings = [{"rfilename": name} for name in sorted(files)]
            sha = hub.branches.get((repo, revision), revision)
            return self._send(200, {"id": repo, "sha": sha, "siblings": siblings, "private": repo in hub.private})
        if what == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()
            ]
            return self._send(200, tree)
        if not token:
            return self._send(401)
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if any(fnmatch.fnmatch(file["path"], one) for one in hub.large) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": modes})
        files = dict(files)
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = hub.lfs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        name = hub.commit(repo, files, revision)
        return self._send(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{name}", "commitOid": name})

    def _batch(self, request):
        objects = [
            one | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}} for one in request["objects"]
        ]
        return self._send(200, {"objects": objects, "transfer": "basic"})

    def _resolve(self, repo, revision, name, token):
        hub = self.server.hub
        if self._missing(repo, token):
            return None
        commit = hub.branches.get((repo, revision), revision)
        files = hub.files(repo, revision)
        if files is None or name not in files:
            return self._send(404, X_Error_Code="RevisionNotFound" if files is None else "EntryNotFound")
        data = files[name]
        return self._send(200, data, ETag=f'"{_oid(data)}"', X_Repo_Commit=commit)


def _oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def running(folder):
    """A fake Hub that the client of this process talks to, with its cache and the project's below a folder."""
    pytest.importorskip("huggingface_hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub, server.url = Hub(), f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    values = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "STARFLOW_STORAGE": str(folder / "storage"),
    }
    # The client reads its environment when it is imported.
    _forget_client()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        for name in (
            "HF_HUB_OFFLINE",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_TOKEN_PATH",
            "TRANSFORMERS_OFFLINE",
        ):
            patch.delenv(name, raising=False)
        yield server.hub
    _forget_client()
    server.shutdown()
    thread.join()
    server.server_close()


def _forget_client():
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
