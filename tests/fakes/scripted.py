"""An HTTP server that says, request by request, the very bytes that a test has written down; nothing of it outlives a block."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

_DEADLINE_S: Final = 20.0
HANG: Final = b"\0hang"
"""In an answer: say nothing more, and wait until the client leaves."""
EVENTS: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE: Final = b"data: [DONE]\n\n"


def event(text: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """Return one event of a chat's stream."""
    delta = {} if text is None else {"content": text}
    value = {"choices": [{"index": 0, "delta": {**delta, **more}, "finish_reason": finish}]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def whole(*texts: str) -> bytes:
    """Return a whole streamed answer."""
    return EVENTS + b"".join(map(event, texts)) + event(finish="stop") + DONE


def fault(status: int, error: object, *fields: str) -> bytes:
    """Return an answer with an error's status, in OpenAI's form."""
    body = json.dumps({"error": error}).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


class Scripted:
    """A listening server: each connection gets the next answer, the last one again and again."""

    def __init__(self, answers: tuple[bytes, ...]) -> None:
        """Listen on a free port of loopback."""
        self._answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._stopping = threading.Event()
        self.port: int = self._socket.getsockname()[1]
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """Head and JSON of each that came."""
        self.left = threading.Event()
        """Set once a client has left that was kept waiting."""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            with suppress(OSError), self._socket.accept()[0] as connection:
                if self._stopping.is_set():
                    return
                connection.settimeout(_DEADLINE_S)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(1 << 16)
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        while len(body) < (int(lengths[0]) if lengths else 0):
            body += connection.recv(1 << 16)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self.requests.append((head.decode(), json.loads(body) if body else {}))
        said, hang, _ = answer.partition(HANG)
        connection.sendall(said)
        if hang:
            with suppress(OSError):
                connection.recv(1)
            self.left.set()

    def stop(self) -> None:
        """Stop listening, and wait for the thread."""
        self._stopping.set()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            pass
        self._socket.close()
        self._thread.join(_DEADLINE_S)


@contextmanager
def scripted(*answers: bytes) -> Iterator[Scripted]:
    """Serve these answers for as long as the block lasts."""
    server = Scripted(answers)
    try:
        yield server
    finally:
        server.stop()
