"""A real HTTP server on loopback that speaks a hub's protocol, serves ranges, and misbehaves when told to."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import gguf
import numpy as np

COMMIT = "c0ffee" + "0" * 34
"""The commit that a hub's main branch is at unless told otherwise."""


@dataclass
class Asked:
    """One request as the server saw it, and how many bytes of body it sent."""

    path: str
    headers: dict[str, str]
    n_sent: int = 0


Fault = Callable[["Handler"], bool]
"""Answers a request in the server's stead and returns True, or returns False to let it answer."""


def always(answer: Callable[["Handler"], None]) -> Fault:
    """Return the fault that answers every request so."""

    def fault(handler: "Handler") -> bool:
        answer(handler)
        return True

    return fault


@dataclass
class Hub:
    """Repositories by name, each with its files; everything else is how the server behaves."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    page_size: int = 1000
    cdn: str | None = None
    """Where ``resolve`` redirects to, as ``http://HOST:PORT``; otherwise it serves the bytes itself."""
    commit: str | None = COMMIT
    """What the main branch is at; ``None`` if this hub does not tell."""
    small: frozenset[str] = frozenset()
    """Suffixes of files that are not in LFS: of these git's own digest is listed."""
    listed: dict[str, Any] = field(default_factory=dict)
    """Fields to lay over each listed file, to list what is not so."""
    etag: Callable[[], str | None] = lambda: '"one"'
    fault: Fault | None = None
    log: list[Asked] = field(default_factory=list)
    url: str = ""

    @property
    def n_sent(self) -> int:
        """Bytes of all bodies."""
        return sum(asked.n_sent for asked in self.log)

    def asked_for(self, part: str) -> list[Asked]:
        """Return the requests whose path has ``part`` in it."""
        return [asked for asked in self.log if part in asked.path]


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub that its server carries."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: else each answer waits for an acknowledgement
    hub: Hub
    asked: Asked

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
        """Stay silent."""

    def do_GET(self) -> None:
        """Record the request, then answer it or misbehave."""
        self.asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
        self.hub.log.append(self.asked)
        try:
            if self.hub.fault is None or not self.hub.fault(self):
                self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a whole answer."""
        headers = headers or {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.asked.n_sent += len(body)  # before the client can have it, and look
        self.wfile.write(body)

    def send_part(self, content: bytes, *, etag: str | None) -> None:
        """Send what ``Range`` and ``If-Range`` ask for of ``content``."""
        headers = {} if etag is None else {"ETag": etag}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if_range = self.headers.get("If-Range")
        if span is None or (if_range is not None and if_range != etag):
            self.send(200, content, headers)
        elif int(span[1]) >= len(content):
            self.send(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
        else:
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.send(206, content[first : last + 1], headers)

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("cdn/"):
            self._send_file(path.removeprefix("cdn/"))
            return
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.send(401, b"{}", {"X-Error-Code": "GatedRepo"} if self.hub.gated else {})
            return
        revision = f"(?:main|{self.hub.commit})"
        told = re.fullmatch(r"api/models/(.+)/revision/main", path)
        listing = re.fullmatch(rf"api/models/(.+)/tree/{revision}", path)
        resolved = re.fullmatch(rf"(.+?)/resolve/{revision}/(.+)", path)
        if told is not None and told[1] in self.hub.files:
            self.send(200, json.dumps({"id": told[1], "sha": self.hub.commit}).encode())
        elif listing is not None and listing[1] in self.hub.files:
            self._send_list(listing[1])
        elif resolved is not None and self.hub.cdn is not None:
            location = f"{self.hub.cdn}/cdn/{resolved[1]}/{resolved[2]}?signature=secret"
            self.send(302, b"", {"Location": location})
        elif resolved is not None:
            self._send_file(f"{resolved[1]}/{resolved[2]}")
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send_file(self, path: str) -> None:
        for repository, files in self.hub.files.items():
            content = files.get(path.removeprefix(f"{repository}/"))
            if path.startswith(f"{repository}/") and content is not None:
                self.send_part(content, etag=self.hub.etag())
                return
        self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _send_list(self, repository: str) -> None:
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        files = list(self.hub.files[repository].items())
        page = [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": git_sha1(content),
                **self._lfs_of(path, content),
                **self.hub.listed,
            }
            for path, content in files[start : start + self.hub.page_size]
        ]
        headers = {"Content-Type": "application/json"}
        if start + self.hub.page_size < len(files):
            address = f"{self.hub.url}/api/models/{repository}/tree/main?recursive=true"
            headers["Link"] = f'<{address}&cursor={start + self.hub.page_size}>; rel="next"'
        self.send(200, json.dumps([{"type": "directory", "path": "folder"}, *page]).encode(), headers)

    def _lfs_of(self, path: str, content: bytes) -> dict[str, Any]:
        if self.hub.small and path.endswith(tuple(self.hub.small)):
            return {}
        return {"lfs": {"oid": _digest(content), "size": len(content), "pointerSize": 134}}


def git_sha1(content: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@cache
def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serve(hub: Hub, host: str = "127.0.0.1") -> Iterator[Hub]:
    """Serve ``hub`` on a free port until the block ends."""
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer((host, 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        hub.url = f"http://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def make_gguf(
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    *,
    n_vocab: int = 60_000,
    n_layer: int = 4,
    keys: dict[str, str] | None = None,
    front: str = "model",
    shard: tuple[int, int] | None = None,
) -> bytes:
    """Return a small llama of true shape, with a vocabulary that is most of its header.

    ``keys`` are written behind the vocabulary, ``front`` is its name, before it; ``shard`` is (number from 0, count).
    """
    import tempfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        n_embd = 256
        if shard is None or shard[0] == 0:
            writer.add_name(front)
            writer.add_context_length(4096)
            writer.add_block_count(n_layer)
            writer.add_embedding_length(n_embd)
            writer.add_feed_forward_length(n_embd)
            writer.add_head_count(4)
            writer.add_head_count_kv(2)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list([f"token-{idx:06}" for idx in range(n_vocab)])
            writer.add_token_types([1] * n_vocab)
            writer.add_chat_template("{{ messages }}" * 50)
        for key, value in (keys or {}).items():
            writer.add_string(key, value)
        if shard is not None:
            writer.add_uint16("split.no", shard[0])
            writer.add_uint16("split.count", shard[1])
        block, n_bytes = gguf.GGML_QUANT_SIZES[quantization]

        def add(name: str, *extents: int) -> None:
            shape = (*extents[:-1], extents[-1] // block * n_bytes)
            writer.add_tensor(name, np.zeros(shape, np.uint8), raw_dtype=quantization)

        if shard is None or shard[0] == 0:
            add("token_embd.weight", n_vocab, n_embd)
            writer.add_tensor("output_norm.weight", np.zeros(n_embd, np.float32))
        for layer in range(n_layer):
            if shard is not None and layer % shard[1] != shard[0]:
                continue
            add(f"blk.{layer}.attn_q.weight", n_embd, n_embd)
            add(f"blk.{layer}.attn_k.weight", n_embd // 2, n_embd)
            add(f"blk.{layer}.attn_v.weight", n_embd // 2, n_embd)
            add(f"blk.{layer}.attn_output.weight", n_embd, n_embd)
            add(f"blk.{layer}.ffn_gate.weight", n_embd, n_embd)
            add(f"blk.{layer}.ffn_up.weight", n_embd, n_embd)
            add(f"blk.{layer}.ffn_down.weight", n_embd, n_embd)
            writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.zeros(n_embd, np.float32))
            writer.add_tensor(f"blk.{layer}.ffn_norm.weight", np.zeros(n_embd, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()
