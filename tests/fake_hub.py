"""A small stand-in for the Hugging Face hub: the endpoints that uploads and downloads of huggingface_hub use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_right"
READ_ONLY = "hf_reads"


class FakeHub(ThreadingHTTPServer):
    """A server on this machine.

    repositories: id -> {"private", "branches": {name: commit}, "commits": {commit: {file: bytes}}, "card"}.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.messages: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, private: bool = False, card: dict | None = None) -> None:
        self.repositories.setdefault(name, {"private": private, "branches": {"main": "0" * 40},
                                            "commits": {"0" * 40: {}}, "card": card})

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return repository["commits"][repository["branches"].get(revision, revision)]

    def commit(self, name: str, revision: str, changes: dict[str, bytes]) -> str:
        files = {**self.files(name, revision), **changes}
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        self.repositories[name]["commits"][commit] = files
        self.repositories[name]["branches"][revision] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_):
        pass

    def _answer(self, status: int, body=None, headers=None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def do_POST(self):
        parts, body = self._parts(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._token not in (TOKEN, READ_ONLY):
            return self._answer(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials"})
        if parts == ["api", "validate-yaml"]:
            wrong = "license: nonsense" in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of a list'}] * wrong
            return self._answer(400 if wrong else 200, {"errors": errors, "warnings": []})
        if self._token == READ_ONLY:
            return self._answer(403, {"error": "no right to write"}, {"X-Error-Message": "no right to write"})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.server.repositories:
                return self._answer(409, {"url": f"{self.server.url}/{name}"})
            self.server.add(name, asked.get("private") or asked.get("visibility") == "private")
            return self._answer(200, {"url": f"{self.server.url}/{name}", "name": name})
        if parts[:1] == ["api"]:
            name, act, revision = "/".join(parts[2:4]), parts[4], parts[5]
            if act == "branch":
                branches = self.server.repositories[name]["branches"]
                branches.setdefault(revision, branches["main"])
                return self._answer(200)
            if act == "preupload":
                return self._answer(200, {"files": [
                    {"path": file["path"], "shouldIgnore": False, "oid": None,
                     "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                    for file in json.loads(body)["files"]]})
            lines = [json.loads(line) for line in body.decode().splitlines()]
            self.server.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
            changes = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) if line["key"] == "file"
                       else self.server.objects[line["value"]["oid"]] for line in lines if line["key"] != "header"}
            commit = self.server.commit(name, revision, changes)
            return self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})
        objects = [{**asked, "actions": {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}}
                   for asked in json.loads(body)["objects"]]
        return self._answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self):
        parts = self._parts()
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = b"".join(iter(self._chunk, b""))
        else:
            content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == parts[1]
        self.server.objects[parts[1]] = content
        self._answer(200)

    def _chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def do_GET(self):
        parts = self._parts()
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        found = self.server.repositories.get(name)
        if found is None or (found["private"] and self._token != TOKEN):
            return self._refuse(401, "RepoNotFound")
        if parts[0] == "api" and "tree" in parts:  # of a folder, and there is none
            return self._refuse(404, "EntryNotFound")
        if parts[0] == "api":
            return self._answer(200, {"id": name, "private": found["private"], "sha": found["branches"]["main"],
                                      "cardData": found["card"], "siblings": []})
        revision, file = parts[3], "/".join(parts[4:])
        commit = found["branches"].get(revision, revision)
        if commit not in found["commits"]:
            return self._refuse(404, "RevisionNotFound")
        if file not in found["commits"][commit]:
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = found["commits"][commit][file]
        self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    do_HEAD = do_GET

    def _parts(self) -> list[str]:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        return [unquote(part) for part in path.strip("/").split("/")]
