"""A bucket of Google Cloud Storage in the memory of this process, on 127.0.0.1, which fails on cue.

    with bucket.serve("drill") as server:
        server.faults.append(bucket.Fault("POST", "manifest.json", status=503, times=2))
        subprocess.run(command, env=os.environ | server.environment)

It speaks as much of the JSON API as gcsfs does: objects are whole or absent, each write makes a new
generation, `ifGenerationMatch` is kept, names are listed at once. `environment` is what points a process at it.
"""

import base64
import contextlib
import hashlib
import json
import re
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What happens to requests of this method for objects whose name holds `name`, a regular expression.

    Fields:
      skip: so many pass first; then `times` are struck.
      status: of the answer in place of the true one; 0: the true one, or none where `act` ends the process.
      done: the request takes effect before that, as when only the answer is lost.
      act: called when it strikes.
    """

    method: str
    name: str
    status: int = 0
    times: int = 1
    skip: int = 0
    done: bool = False
    act: Callable[[], object] = lambda: None
    struck: int = 0


@dataclass
class Object:
    data: bytes
    generation: int
    updated: float


@dataclass
class Server:
    """What the bucket holds by name, the requests so far, and the faults to come."""

    bucket: str
    url: str = ""
    objects: dict[str, Object] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    clock: Callable[[], float] = time.time
    generation: int = 1000
    guard: threading.RLock = field(default_factory=threading.RLock)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "FSSPEC_GS_TOKEN": "anon",
            "FSSPEC_GCS_TOKEN": "anon",
            "TENSORSTORE_GCS_HTTP_URL": self.url,
        }

    def put(self, name: str, data: bytes) -> Object:
        with self.guard:
            self.generation += 1
            self.objects[name] = Object(data, self.generation, self.clock())
            return self.objects[name]


@contextlib.contextmanager
def serve(bucket: str) -> Iterator[Server]:
    """A server for the length of a `with` block."""
    server = Server(bucket)
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": server}))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        state = self.server_state
        found = re.fullmatch(
            r"(/upload|/download)?/(?:storage|download/storage)/v1/b(?:/([^/]+))?(?:/o(?:/(.+))?)?", url.path
        )
        name = urllib.parse.unquote(found[3] or "") if found else ""
        if found and found[1] == "/upload" and not name:
            name = self._upload_name(query, body)
        with state.guard:
            state.log.append((method, name or url.path + ("?" + url.query if url.query else "")))
            fault = self._fault(method, name)
            if fault is not None and not fault.done:
                fault.act()
                if fault.status:
                    self._send(fault.status, self._error(fault.status))
                    return
            if not found or (found[2] not in (None, state.bucket)):
                status, answer, headers = 404, self._error(404, "The specified bucket does not exist."), {}
            else:
                status, answer, headers = self._do(method, found[1] or "", "/o" in url.path, name, query, body)
            if fault is not None and fault.done:
                fault.act()
                if fault.status:
                    status, answer, headers = fault.status, self._error(fault.status), {}
        self._send(status, answer, headers)

    def _fault(self, method: str, name: str) -> Fault | None:
        for fault in self.server_state.faults:
            if fault.method in (method, "*") and re.search(fault.name, name):
                fault.struck += 1
                if fault.skip < fault.struck <= fault.skip + fault.times:
                    return fault
        return None

    def _do(self, method, kind, objects, name, query, body):
        state = self.server_state
        if kind == "/upload":
            return self._upload(method, name, query, body)
        if not objects:
            return (
                200,
                {
                    "kind": "storage#bucket",
                    "name": state.bucket,
                    "storageClass": "STANDARD",
                    "location": "X",
                    "timeCreated": _iso(0),
                    "updated": _iso(0),
                },
                {},
            )
        if not name:
            return 200, self._list(query), {}
        there = state.objects.get(name)
        if there is None:
            return 404, self._error(404, f"No such object: {state.bucket}/{name}"), {}
        if not self._matches(query, there):
            return 412, self._error(412), {}
        if method == "DELETE":
            del state.objects[name]
            return 204, b"", {}
        if query.get("alt") == "media":
            headers = {
                "x-goog-generation": str(there.generation),
                "x-goog-hash": f"crc32c={_crc32c(there.data)},md5={_md5(there.data)}",
                "x-goog-stored-content-length": str(len(there.data)),
                "Content-Type": "application/octet-stream",
                "x-goog-metageneration": "1",
                "x-goog-storage-class": "STANDARD",
            }
            if query.get("ifGenerationNotMatch") == str(there.generation):
                return 304, b"", headers
            span = re.fullmatch(r"bytes=(-?\d+)-(\d*)", self.headers.get("Range") or "")
            if not span:
                return 200, there.data, headers
            first = int(span[1])
            if first < 0:
                first = max(0, len(there.data) + first)
            last = min(int(span[2] or len(there.data) - 1), len(there.data) - 1)
            if first > last:
                return 416, b"", {"Content-Range": f"bytes */{len(there.data)}"}
            return (
                206,
                there.data[first : last + 1],
                headers | {"Content-Range": f"bytes {first}-{last}/{len(there.data)}"},
            )
        return 200, self._describe(name, there), {}

    def _matches(self, query, there) -> bool:
        wanted = query.get("ifGenerationMatch")
        return wanted is None or int(wanted) == (there.generation if there else 0)

    def _upload_name(self, query, body) -> str:
        if "upload_id" in query:
            return self.server_state.uploads[query["upload_id"]]["name"]
        if "name" in query:
            return query["name"]
        if query.get("uploadType") == "multipart":
            return self._parts(body)[0]["name"]
        return json.loads(body)["name"]

    def _parts(self, body: bytes):
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])
        assert boundary is not None
        _, *parts = body.split(b"--" + boundary[1].strip("'").encode())
        facts, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts[:2])
        return json.loads(facts), data[:-2] if data.endswith(b"\r\n") else data[:-1]

    def _upload(self, method, name, query, body):
        state = self.server_state
        kind = query.get("uploadType")
        if kind == "resumable" and "upload_id" not in query:
            key = str(len(state.uploads))
            state.uploads[key] = {"name": name, "data": b"", "query": query}
            return (
                200,
                b"",
                {"Location": f"{state.url}/upload/storage/v1/b/{state.bucket}/o?uploadType=resumable&upload_id={key}"},
            )
        if kind == "resumable":
            upload = state.uploads[query["upload_id"]]
            query = upload["query"]
            span = self.headers.get("Content-Range") or ""
            upload["data"] += body
            if span.endswith("/*"):
                return 308, b"", {"Range": f"bytes=0-{len(upload['data']) - 1}"}
            data = upload["data"]
        elif kind == "multipart":
            metadata, data = self._parts(body)
            if metadata.get("md5Hash", _md5(data)) != _md5(data) or metadata.get("crc32c", _crc32c(data)) != _crc32c(
                data
            ):
                return 400, self._error(400, "checksum"), {}
        else:
            data = body
        if not self._matches(query, state.objects.get(name)):
            return 412, self._error(412), {}
        return 200, self._describe(name, state.put(name, data)), {}

    def _list(self, query):
        state = self.server_state
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names, prefixes = [], set()
        for name in sorted(state.objects):
            if (
                not name.startswith(prefix)
                or name < query.get("startOffset", "")
                or ("endOffset" in query and name >= query["endOffset"])
            ):
                continue
            if delimiter and delimiter in name[len(prefix) :]:
                prefixes.add(prefix + name[len(prefix) :].split(delimiter)[0] + delimiter)
            else:
                names.append(name)
        limit = int(query.get("maxResults", 1000))
        start = int(query.get("pageToken", 0))
        answer = {
            "kind": "storage#objects",
            "items": [self._describe(n, state.objects[n]) for n in names[start : start + limit]],
        }
        if prefixes and not start:
            answer["prefixes"] = sorted(prefixes)
        if len(names) > start + limit:
            answer["nextPageToken"] = str(start + limit)
        return answer

    def _describe(self, name, there):
        return {
            "kind": "storage#object",
            "bucket": self.server_state.bucket,
            "name": name,
            "size": str(len(there.data)),
            "generation": str(there.generation),
            "metageneration": "1",
            "md5Hash": _md5(there.data),
            "crc32c": _crc32c(there.data),
            "id": name,
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "etag": str(there.generation),
            "timeCreated": _iso(there.updated),
            "updated": _iso(there.updated),
        }

    def _error(self, status: int, message: str = "") -> dict[str, Any]:
        return {"error": {"code": status, "message": message or f"status {status} on cue"}}

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for k, v in (headers or {}).items():
            self.send_header(k, v)
        if not isinstance(answer, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(data)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def _crc32c(data: bytes) -> str:
    import google_crc32c

    return base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()
