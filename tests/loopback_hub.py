"""A Hugging Face Hub on the loopback: an HTTP server that speaks as much of its protocol as huggingface_hub needs.

    with loopback_hub.serve() as hub:
        commit = hub.commit("org/name", {"config.json": b"{}"})
        hub.cut["model.safetensors"] = [1000, 2]      # the connection ends after 1,000 bytes, twice
        hub.requests                                  # [("GET", "/api/models/org/name/revision/main", headers), ...]

Files of more than `LFS_BYTES` are in Git LFS: their ETag is the SHA-256 of the content. That of others is Git's SHA-1.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import constants, file_download

LFS_BYTES = 10_000
TOKEN = "hf_loopback"  # may read and write everything
_CODES = {401: "RepoNotFound", 403: "GatedRepo"}


@dataclass
class Hub:
    """What the server has, the faults that it makes, and what it was asked."""

    url: str = ""
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)  # (repository, commit) -> files
    branches: dict[tuple[str, str], str] = field(default_factory=dict)  # (repository, branch or tag) -> commit
    blobs: dict[str, bytes] = field(default_factory=dict)  # uploaded to LFS
    created: dict[str, dict] = field(default_factory=dict)  # repository -> the settings that it was created with
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)  # files that are listed and not there
    damaged: set[str] = field(default_factory=set)  # files with another byte than their digest says
    cut: dict[str, list[int]] = field(default_factory=dict)  # file -> [bytes before the connection ends, times]
    down: bool = False
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def commit(self, repository: str, files: dict[str, bytes], *, branch: str = "main") -> str:
        """The commit that makes these the files of "org/name" or "datasets/org/name"."""
        content = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())]
        commit = hashlib.sha1(json.dumps([repository, content]).encode()).hexdigest()
        self.commits[repository, commit] = dict(files)
        self.branches[repository, branch] = commit
        return commit

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, {path: content}) of a revision; None where there is none."""
        commit = self.branches.get((repository, revision), revision)
        files = self.commits.get((repository, commit))
        return None if files is None else (commit, files)

    def asked(self, method: str, part: str) -> list[dict[str, str]]:
        """The headers of the requests of a method whose path holds `part`."""
        return [headers for m, path, headers in self.requests if m == method and part in path]


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if len(data) > LFS_BYTES else _git(data)


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _git(data)}
    if len(data) > LFS_BYTES:
        entry["lfs"] = {"oid": _etag(data), "size": len(data), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        hub = self.hub
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if hub.down:
            return self._json(503, {"error": "down"})
        if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/(.+?)/(.+)", path):
            kind, repository, rest = found[1] or "", found[2], f"{found[3]}/{found[4]}"
            return self._resolve(kind + repository, rest)
        if found := re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)/(revision|tree)/(.+)", path):
            kind = "datasets/" if found[1] == "datasets" else ""
            return self._info(kind + found[2], found[3], found[4])
        return self._write(path, body)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # ---- Reading

    def _allowed(self, repository: str) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        exists = any(name == repository for name, _ in self.hub.commits)
        if not exists or repository in self.hub.private:
            self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif repository in self.hub.gated:
            self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        else:
            return True
        return False

    def _info(self, repository: str, what: str, revision: str) -> None:
        gated = repository in self.hub.gated and what == "revision"  # the Hub shows a gated model's page to everyone
        if not gated and not self._allowed(repository):
            return
        found = self.hub.files(repository, revision)
        if found is None:
            return self._json(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if what == "tree":
            return self._json(200, [_entry(path, data) for path, data in files.items()])
        name = repository.removeprefix("datasets/")
        self._json(200, {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})

    def _resolve(self, repository: str, rest: str) -> None:
        if not self._allowed(repository):
            return
        revision, _, path = rest.partition("/")
        found = self.hub.files(repository, revision)
        if found is None:
            return self._json(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path not in files or path in self.hub.missing:
            return self._json(404, {"error": "no such file"}, headers | {"X-Error-Code": "EntryNotFound"})
        data = files[path]
        headers |= {"ETag": f'"{_etag(data)}"', "X-Linked-Size": str(len(data))}
        if len(data) > LFS_BYTES:
            headers["X-Linked-ETag"] = headers["ETag"]
        if path in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, start = 200, 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(status, data[start:], headers, cut=self._cut(path))

    def _cut(self, path: str) -> int | None:
        length, times = self.hub.cut.get(path, (0, 0))
        if self.command == "HEAD" or times == 0:
            return None
        self.hub.cut[path] = [length, times - 1]
        return length

    # ---- Writing

    def _write(self, path: str, body: bytes) -> None:
        hub = self.hub
        if path.startswith("/lfs/"):
            hub.blobs[path.removeprefix("/lfs/")] = body
            return self._json(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        given: Any = json.loads(body) if "/commit/" not in path else None
        if path == "/api/repos/create":
            repository = "/".join(filter(None, (given["organization"], given["name"])))
            if repository in hub.created:
                return self._json(409, {"error": "You already created this model repo"})
            hub.created[repository] = given
            hub.commit(repository, {})
            return self._json(200, {"url": f"{hub.url}/{repository}", "name": repository})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": x["oid"], "size": x["size"], "actions": {"upload": {"href": f"{hub.url}/lfs/{x['oid']}"}}}
                for x in given["objects"]
            ]
            return self._json(200, {"transfer": "basic", "objects": objects})
        if "/preupload/" in path:
            modes = [{"path": x["path"], "uploadMode": _mode(x["size"]), "shouldIgnore": False} for x in given["files"]]
            return self._json(200, {"files": modes})
        if found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            return self._commit(found[1], found[2], [json.loads(line) for line in body.splitlines()])
        return self._json(404, {"error": f"{path} is not served"})

    def _commit(self, repository: str, branch: str, lines: list[dict]) -> None:
        files = dict((self.hub.files(repository, branch) or ("", {}))[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        commit = self.hub.commit(repository, files, branch=branch)
        url = f"{self.hub.url}/{repository}/commit/{commit}"
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    # ---- Answers

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(status, json.dumps(value).encode(), kind | (headers or {}))

    def _send(self, status: int, data: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def _mode(size: int) -> str:
    return "lfs" if size > LFS_BYTES else "regular"


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A running server, which ends with the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def client(monkeypatch: Any, cache: Path) -> Iterator[Hub]:
    """A running server that huggingface_hub in this process talks to, with an empty cache."""
    with serve() as hub:
        point(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what arrived in a smaller part is asked for again
        monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield hub


def point(monkeypatch: Any, url: str) -> None:
    """As HF_ENDPOINT does, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
