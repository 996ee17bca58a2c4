"""A stand-in for Google Cloud Storage on loopback: as much of its JSON API as gcsfs and TensorStore use.

Objects live in memory. A write is whole or not at all and seen at once, as in the real one. There is every
bucket but "absent", and into "forbidden" nobody may write.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
from base64 import b64encode
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Objects(dict):
    """name -> (data, generation)."""

    def __init__(self):
        super().__init__()
        self.lock, self.generations = threading.RLock(), itertools.count(1)
        self.sessions: dict[str, tuple[str, bytearray]] = {}

    def put(self, name: str, data: bytes) -> None:
        with self.lock:
            self[name] = (bytes(data), next(self.generations))

    def about(self, bucket: str, name: str) -> dict:
        data, generation = self[name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "id": f"{bucket}/{name}/{generation}",
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "md5Hash": b64encode(hashlib.md5(data).digest()).decode(),
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def log_message(self, *_):
        pass

    def answer(self, code: int, body: bytes | dict = b"", **headers: str) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(code)
        headers = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_any(self) -> None:
        url, objects = urlsplit(self.path), self.objects
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.body()
        with objects.lock:
            if url.path.startswith("/batch"):
                return self.batch(body)
            if "/b/absent/" in url.path:
                return self.answer(404, {"error": {"code": 404, "message": "The bucket does not exist."}})
            if "/b/forbidden/" in url.path and self.command == "POST":
                return self.answer(403, {"error": {"code": 403, "message": "No storage.objects.create."}})
            if found := re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", url.path):
                return self.upload(found[1], query, body)
            if found := re.fullmatch(r"/storage/v1/b/([^/]+)", url.path):
                return self.answer(200, {"kind": "storage#bucket", "name": found[1], "id": found[1]})
            if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", url.path):
                return self.list(found[1], query)
            if found := re.fullmatch(r"/storage/v1/b/[^/]+/o/(.+)/rewriteTo/b/([^/]+)/o/(.+)", url.path):
                source, target = unquote(found[1]), unquote(found[3])
                if source not in objects:
                    return self.answer(404)
                objects.put(target, objects[source][0])
                return self.answer(200, {"done": True, "resource": objects.about(found[2], target)})
            if found := re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)/o/(.+)", url.path):
                return self.one(found[1], unquote(found[2]), query)
        return self.answer(404)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = handle_any

    def one(self, bucket: str, name: str, query: dict[str, str]) -> None:
        if name not in self.objects:
            return self.answer(404, {"error": {"code": 404, "message": "Not Found"}})
        data, generation = self.objects[name]
        if self.command == "DELETE":
            del self.objects[name]
            return self.answer(204)
        if query.get("alt") != "media":
            return self.answer(200, self.objects.about(bucket, name))
        marks = {"X_Goog_Generation": str(generation), "Content_Type": "application/octet-stream"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
            if first >= len(data):
                return self.answer(416)
            span = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], Content_Range=span, **marks)
        return self.answer(200, data, **marks)

    def list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(self.objects):
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name:
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if cut:
                prefixes.add(prefix + head + cut)
            else:
                items.append(self.objects.about(bucket, name))
        self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        objects = self.objects
        if (key := query.get("upload_id")) is not None:
            name, data = objects.sessions[key]
            data += body
            if self.headers.get("Content-Range", "*/*").endswith("/*"):
                return self.answer(308, Range=f"bytes=0-{max(len(data) - 1, 0)}")
            objects.put(name, data)
            return self.answer(200, objects.about(bucket, name))
        if query.get("uploadType") == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            key = str(next(objects.generations))
            objects.sessions[key] = (name, bytearray())
            path = f"{urlsplit(self.path).path}?uploadType=resumable&upload_id={key}"
            return self.answer(200, {}, Location=f"http://{self.headers['Host']}{path}")
        if query.get("uploadType") == "multipart":
            mark = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            about, data = body.split(b"--" + mark)[1:3]
            name = json.loads(about.split(b"\n\n" if b"\n\n" in about else b"\r\n\r\n", 1)[1])["name"]
            end = b"\r\n" if b"\r\n\r\n" in data else b"\n"
            objects.put(name, data.split(end * 2, 1)[1].removesuffix(end))
            return self.answer(200, objects.about(bucket, name))
        name = query["name"]
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != objects.get(name, (b"", 0))[1]:
            return self.answer(412)
        objects.put(name, body)
        return self.answer(200, objects.about(bucket, name))

    def batch(self, body: bytes) -> None:
        parts = []
        for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", body.decode()), start=1):
            name = unquote(re.fullmatch(r"/storage/v1/b/[^/]+/o/([^?]+).*", path)[1])
            there = self.objects.pop(name, None) is not None
            status = "204 No Content" if there else "404 Not Found"
            head = f"Content-Type: application/http\r\nContent-ID: <response-{number}>"
            parts.append(f"--batch\r\n{head}\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n")
        body = ("".join(parts) + "--batch--").encode()
        self.answer(200, body, Content_Type="multipart/mixed; boundary=batch")


@contextmanager
def stand_in():
    """The address of an empty store, and its objects."""
    objects = Objects()
    handler = type("Stand", (Handler,), {"objects": objects})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # a client that was killed
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", objects
    finally:
        server.shutdown()
