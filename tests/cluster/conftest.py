"""A small server that answers as a Ray dashboard did when it was recorded."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.serve_details import APPLICATIONS

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "transcripts" / "ray" / "2.60.0-three-nodes.json").read_text()
)
SERVE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "transcripts" / "ray" / "2.60.0-serve.json").read_text()
)
TOKEN = "0123456789abcdef"  # noqa: S105 - shown to a server of ours on loopback alone


class FakeDashboard:
    """The recorded answers, or others; ``token`` is what is asked for, ``asked`` what came.

    With ``hold`` no more than the first byte of an answer is sent, and the connection ends when it is set.
    """

    def __init__(self) -> None:
        """Listen on a free port of loopback; nothing is served before ``serve``."""
        self.answers: dict[str, bytes] = {
            key.removeprefix("GET "): json.dumps(answer).encode() for key, answer in RECORDED["answers"].items()
        }
        self.token: str | None = None
        self.redirect: str | None = None
        self.hold: threading.Event | None = None
        self.asked: list[str] = []
        self.sent: list[Any] = []
        self.on_put: Callable[[Any], None] = lambda _: None
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                dashboard.answer(self)

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                dashboard.take(self.path, json.loads(body))
                dashboard.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def serve(self) -> None:
        """Answer until ``close``."""
        self._server.serve_forever(poll_interval=0.01)

    def close(self) -> None:
        """Stop answering, and give the port back."""
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, body: Any) -> None:
        """Take what was sent; Ray answers it with nothing, after it has done as it was told."""
        assert path == APPLICATIONS
        self.sent.append(body)
        self.on_put(body)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request as Ray 2.60 does."""
        self.asked.append(request.path)
        refused = RECORDED["header"]["unauthorized"]
        said = request.headers.get("Authorization")
        if self.redirect is not None:
            request.send_response(302)
            request.send_header("Location", self.redirect + request.path)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if self.token is None or said == f"Bearer {self.token}":
            known = self.answers.get(request.path)
            status, body = (200, b"" if request.command == "PUT" else known) if known else (404, b"404: Not Found")
        else:
            status, text = refused["without a token" if said is None else "with a wrong one"]
            body = text.encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.hold is not None:
            request.wfile.write(body[:1])
            self.hold.wait()
            return
        request.wfile.write(body)


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeDashboard]:
    """A dashboard on loopback, and a user without a token of Ray's."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    fake = FakeDashboard()
    thread = threading.Thread(target=fake.serve)
    thread.start()
    try:
        yield fake
    finally:
        fake.close()
        thread.join()
