"""A hub on loopback: the routes of Hugging Face and ModelScope that a pull uses, ranges, and faults on demand.

Large files are redirected to a second origin (`localhost`), as a hub redirects to its storage.
"""

import hashlib
import json
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = ".safetensors"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path contains `where`."""

    where: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    cut: int | None = None  # bytes of the body, then the connection ends
    flip: bool = False  # the content is another one
    whole: bool = False  # ranges are ignored
    times: int = 1


@dataclass
class Request:
    path: str
    range: str | None
    token: str | None


def weights(tensors: dict[str, int], fill: int = 0) -> bytes:
    """A safetensors file of byte tensors with these sizes."""
    header, offset = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * offset


def small_model(size: int = 3 << 20) -> dict[str, bytes]:
    """The files of a repository: two weight files of about `size` bytes, what belongs to them, and what does not."""
    shards = {"model-00001-of-00002.safetensors": {"a": size}, "model-00002-of-00002.safetensors": {"b": size, "c": 8}}
    index = {"weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    return {
        "config.json": (ROOT / "models" / "nano" / "config.json").read_bytes(),
        "generation_config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "encoding/encoding_dsv4.py": b"# how prompts are made\n",
        "README.md": b"a model\n",
        "figure.png": b"png",
        "pytorch_model.bin": b"pickle",
        "inference/config.json": b"{}",
        **{file: weights(tensors, fill=i) for i, (file, tensors) in enumerate(shards.items())},
    }


class SmallHub:
    """`repositories`: the files of each; `faults`: what goes wrong; `requests`: what was asked for."""

    def __init__(self, repositories: dict[str, dict[str, bytes]], *, seconds_per_mib: float = 0.0) -> None:
        self.repositories, self.seconds_per_mib = repositories, seconds_per_mib
        self.renamed: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.sent = 0  # bytes of files
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.describe(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "SmallHub":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, text: str) -> list[Request]:
        """The requests whose path contains a text."""
        return [request for request in self.requests if text in request.path]

    def describe(self, handler: "_Handler") -> None:
        """What huggingface_hub asks for before it fetches a file."""
        owner, name, _, _, file = unquote(handler.path).removeprefix("/").split("/", 4)
        entry = _entry(file, self.repositories[f"{owner}/{name}"][file])
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        handler.begin(200, entry["size"], {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def answer(self, handler: "_Handler") -> None:
        path = unquote(handler.path)
        fault = None
        with self._lock:
            self.requests.append(Request(path, handler.headers.get("Range"), handler.headers.get("Authorization")))
            for one in self.faults:
                if one.where in path and one.times:
                    one.times -= 1
                    fault = one
                    break
        if fault is not None and fault.status:
            handler.send(fault.status, fault.body, fault.headers)
        elif path.startswith("/api/v1/models/"):
            self._modelscope(handler, path, fault)
        elif path.startswith("/api/models/"):
            self._api(handler, urlsplit(path).path.removeprefix("/api/models/"))
        elif path.startswith("/cdn/"):
            repo, name = path.removeprefix("/cdn/").split("//")
            self._file(handler, self.repositories[repo][name], fault)
        else:
            self._resolve(handler, path, fault)

    def _api(self, handler: "_Handler", path: str) -> None:
        repo, rest = "/".join(path.split("/")[:2]), path.split("/")[2:]
        if repo in self.renamed:
            moved = "/".join([self.renamed[repo], *rest])
            return handler.send(307, b"", {"Location": f"/api/models/{moved}"})
        if repo not in self.repositories:
            return handler.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})  # as Hugging Face answers strangers
        files = self.repositories[repo]
        revision = rest[-1] if rest else "main"
        if revision not in ("main", COMMIT):
            return handler.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if rest and rest[0] == "tree":
            return handler.json([_entry(name, content) for name, content in files.items()])
        handler.json({"id": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0})

    def _resolve(self, handler: "_Handler", path: str, fault: Fault | None) -> None:
        if "/resolve/" not in path:
            return handler.send(404, b"{}")
        owner, name, _, _, file = path.removeprefix("/").split("/", 4)
        content = self.repositories[f"{owner}/{name}"][file]
        if file.endswith(LARGE):
            return handler.send(302, b"", {"Location": f"http://localhost:{self.port}/cdn/{owner}/{name}//{file}"})
        self._file(handler, content, fault)

    def _modelscope(self, handler: "_Handler", path: str, fault: Fault | None) -> None:
        query = parse_qs(urlsplit(path).query)
        owner, name, *rest = urlsplit(path).path.removeprefix("/api/v1/models/").split("/")
        files = self.repositories.get(f"{owner}/{name}")
        if files is None:
            return handler.send(404, b'{"Code": 404, "Message": "not found"}')
        if rest == ["repo", "files"]:
            entries = [
                {"Path": n, "Size": len(c), "Sha256": hashlib.sha256(c).hexdigest(), "Type": "blob"}
                for n, c in files.items()
            ]
            return handler.json({"Code": 200, "Data": {"Files": entries}})
        self._file(handler, files[query["FilePath"][0]], fault)

    def _file(self, handler: "_Handler", content: bytes, fault: Fault | None) -> None:
        if fault is not None and fault.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = handler.headers.get("Range")
        start = 0 if asked is None or (fault is not None and fault.whole) else int(asked.removeprefix("bytes=")[:-1])
        body = content[start:]
        ranged = asked is not None and start > 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if ranged else {}
        cut = len(body) if fault is None or fault.cut is None else fault.cut
        handler.begin(206 if ranged else 200, len(body), headers)
        for place in range(0, cut, 1 << 16):
            piece = body[place : min(cut, place + (1 << 16))]
            handler.wfile.write(piece)
            with self._lock:
                self.sent += len(piece)
            if self.seconds_per_mib:
                time.sleep(self.seconds_per_mib / 16)
        if cut < len(body):
            handler.close_connection = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):  # the client was stopped
            self.close_connection = True

    def begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.begin(status, len(body), headers or {})
        self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _entry(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
