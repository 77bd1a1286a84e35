"""A bucket of Google Cloud Storage in the memory of this process, on 127.0.0.1, which fails on cue.

    with bucket.serve("drill") as server:
        server.faults.append(bucket.Fault("POST", "manifest.json", status=503, times=2))
        subprocess.run(command, env=os.environ | server.environment)

It speaks as much of the JSON API as gcsfs and TensorStore do: objects are whole or absent, each write makes a new
generation, `ifGenerationMatch` is kept, names are listed at once, the answers carry its clock. `environment` is what
points a process at it.
"""

import base64
import contextlib
import email.utils
import hashlib
import json
import re
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


@dataclass
class Fault:
    """What happens to requests of some methods for some objects.

    Fields:
      method, name: regular expressions, of the whole method and a part of the object's name; of a listing, which has
        none, a part of the path and the query.
      status: of the answer in place of the true one; 0: there is none, and the connection ends.
      times, skip: `skip` of the requests pass first; then `times` are struck.
      done: the request takes effect all the same, as when only the answer is lost.
      act: called then, before the answer; such as one that kills who asked, or sleeps.
    """

    method: str
    name: str
    status: int = 0
    times: int = 1
    skip: int = 0
    done: bool = False
    act: Callable[[], object] = lambda: None
    seen: int = 0

    @property
    def struck(self) -> int:
        """How many requests it has struck."""
        return min(max(0, self.seen - self.skip), self.times)


@dataclass
class Object:
    data: bytes
    generation: int
    updated: float


class Answer(NamedTuple):
    status: int
    content: Any = b""  # bytes, or what becomes JSON
    headers: dict[str, str] = {}  # noqa: RUF012


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
    uploads: dict[str, tuple[str, dict[str, str], bytes]] = field(default_factory=dict)  # name, query and data so far

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "FSSPEC_GS_TOKEN": "anon",
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "TENSORSTORE_GCS_HTTP_URL": self.url,
        }

    def put(self, name: str, data: bytes) -> Object:
        with self.guard:
            self.generation += 1
            self.objects[name] = Object(data, self.generation, self.clock())
            return self.objects[name]

    def struck(self, method: str, name: str) -> Fault | None:
        """The fault that strikes this request."""
        for fault in self.faults:
            if re.fullmatch(fault.method, method) and re.search(fault.name, name):
                fault.seen += 1
                if fault.skip < fault.seen <= fault.skip + fault.times:
                    return fault
        return None


@contextlib.contextmanager
def serve(bucket: str) -> Iterator[Server]:
    """A server for the length of a `with` block."""
    server = Server(bucket)
    http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": server}))
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, as one that is killed does, is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    state: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return _date(self.state.clock() if timestamp is None else timestamp)

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        found = re.fullmatch(
            r"(/upload|/download)?/(?:storage|download/storage)/v1/b(?:/([^/]+))?(/o)?(?:/(.+))?", url.path
        )
        kind, bucket, objects, rest = found.groups() if found else (None, None, None, None)
        name, _, target = (urllib.parse.unquote(part) for part in (rest or "").partition("/rewriteTo/"))
        if kind == "/upload" and not name:
            name = self._upload_name(query, body)
        with self.state.guard:
            asked = name or urllib.parse.unquote(f"{url.path}?{url.query}")
            self.state.log.append((method, asked))
            fault, answer = self.state.struck(method, asked), Answer(0)
            if fault is None or fault.done:
                if not found or bucket not in (None, self.state.bucket):
                    answer = self._error(404, "The specified bucket does not exist.")
                elif kind == "/upload":
                    answer = self._upload(name, query, body)
                elif not objects:
                    answer = Answer(200, {"kind": "storage#bucket", "name": self.state.bucket, "location": "X"})
                elif not name:
                    answer = Answer(200, self._list(query))
                else:
                    answer = self._object(method, name, target, query)
        if fault is not None:
            fault.act()
            answer = self._error(fault.status, "on cue") if fault.status else Answer(0)
        self._send(answer)

    def _object(self, method: str, name: str, target: str, query: dict[str, str]) -> Answer:
        there = self.state.objects.get(name)
        if there is None:
            return self._error(404, f"No such object: {self.state.bucket}/{name}")
        if not _matches(query, there):
            return self._error(412, "generation")
        if method == "DELETE":
            del self.state.objects[name]
            return Answer(204)
        if target:
            made = self.state.put(target.partition("/o/")[2], there.data)
            return Answer(200, {"done": True, "resource": self._describe(target, made)})
        return self._media(there, query) if query.get("alt") == "media" else Answer(200, self._describe(name, there))

    def _media(self, there: Object, query: dict[str, str]) -> Answer:
        headers = {
            "x-goog-generation": str(there.generation),
            "x-goog-metageneration": "1",
            "x-goog-hash": f"crc32c={_crc32c(there.data)},md5={_md5(there.data)}",
            "x-goog-stored-content-length": str(len(there.data)),
            "x-goog-storage-class": "STANDARD",
            "Content-Type": "application/octet-stream",
            "Last-Modified": _date(there.updated),
        }
        if query.get("ifGenerationNotMatch") == str(there.generation):
            return Answer(304, b"", headers)
        span = re.fullmatch(r"bytes=(-?\d+)-(\d*)", self.headers.get("Range") or "")
        if not span:
            return Answer(200, there.data, headers)
        size = len(there.data)
        first = int(span[1]) if int(span[1]) >= 0 else max(0, size + int(span[1]))
        last = min(int(span[2] or size - 1), size - 1)
        if first > last:
            return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
        return Answer(206, there.data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{size}"})

    def _upload_name(self, query: dict[str, str], body: bytes) -> str:
        if "upload_id" in query:
            return self.state.uploads[query["upload_id"]][0]
        if "name" in query:
            return query["name"]
        if query.get("uploadType") == "multipart":
            return self._parts(body)[0]["name"]
        return json.loads(body)["name"]

    def _parts(self, body: bytes) -> tuple[dict[str, str], bytes]:
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])
        assert boundary is not None
        _, *parts = body.split(b"--" + boundary[1].strip("'").encode())
        facts, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts[:2])
        return json.loads(facts), data[:-2] if data.endswith(b"\r\n") else data[:-1]

    def _upload(self, name: str, query: dict[str, str], data: bytes) -> Answer:
        kind, key = query.get("uploadType"), query.get("upload_id", "")
        if kind == "resumable" and not key:
            key = str(len(self.state.uploads))
            self.state.uploads[key] = name, query, b""
            where = f"{self.state.url}/upload/storage/v1/b/{self.state.bucket}/o?uploadType=resumable&upload_id={key}"
            return Answer(200, b"", {"Location": where})
        if kind == "resumable":
            _, query, before = self.state.uploads[key]
            data = before + data
            self.state.uploads[key] = name, query, data
            if (self.headers.get("Content-Range") or "").endswith("/*"):
                return Answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
        elif kind == "multipart":
            facts, data = self._parts(data)
            if facts.get("md5Hash", _md5(data)) != _md5(data) or facts.get("crc32c", _crc32c(data)) != _crc32c(data):
                return self._error(400, "checksum")
        if not _matches(query, self.state.objects.get(name)):
            return self._error(412, "generation")
        return Answer(200, self._describe(name, self.state.put(name, data)))

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names, prefixes = [], set()
        for name in sorted(self.state.objects):
            below = "startOffset" in query and name < query["startOffset"]
            beyond = "endOffset" in query and name >= query["endOffset"]
            if not name.startswith(prefix) or below or beyond:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                names.append(name)
        first = int(query.get("pageToken", 0))
        after = first + int(query.get("maxResults", 1000))
        answer: dict[str, Any] = {"kind": "storage#objects"}
        answer["items"] = [self._describe(name, self.state.objects[name]) for name in names[first:after]]
        if prefixes and not first:
            answer["prefixes"] = sorted(prefixes)
        if len(names) > after:
            answer["nextPageToken"] = str(after)
        return answer

    def _describe(self, name: str, there: Object) -> dict[str, str]:
        changed = datetime.fromtimestamp(there.updated, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "kind": "storage#object",
            "bucket": self.state.bucket,
            "name": name,
            "id": name,
            "size": str(len(there.data)),
            "generation": str(there.generation),
            "metageneration": "1",
            "etag": str(there.generation),
            "md5Hash": _md5(there.data),
            "crc32c": _crc32c(there.data),
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "timeCreated": changed,
            "updated": changed,
        }

    def _error(self, status: int, message: str) -> Answer:
        return Answer(status, {"error": {"code": status, "message": message}})

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send(self, answer: Answer) -> None:
        if not answer.status:
            self.close_connection = True
            return
        data = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not isinstance(answer.content, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if answer.status not in (204, 304):
            self.wfile.write(data)


def _matches(query: dict[str, str], there: Object | None) -> bool:
    """Whether what is there is of the generation that the request expects; 0: nothing is there."""
    wanted = query.get("ifGenerationMatch")
    return wanted is None or int(wanted) == (there.generation if there else 0)


def _date(seconds: float) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _crc32c(data: bytes) -> str:
    import google_crc32c

    return base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()
