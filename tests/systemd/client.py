"""Clients of a service in a container: many who ask while something happens to it, and one who reads slowly.

It must not know what happens.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.systemd.container import await_
from tests.systemd.service import READY_S, Service

_ENDLESS: Final[dict[str, Any]] = {"prompt": "1 2 3", "logit_bias": {"1": -100, "106": -100}, "stream": True}


class Clients:
    """Threads that ask again and again; every answer's status is kept, and what was no answer."""

    def __init__(self, service: Service, n_clients: int) -> None:
        """Begin to ask."""
        self.statuses: list[int] = []
        self.faults: list[str] = []
        self._service = service
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(n_clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            try:
                self.statuses.append(self._service.ask())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
                self.faults.append(f"{type(error).__name__}: {error}")
                return

    def end(self) -> None:
        """Let each have its last answer."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(READY_S)
            assert not thread.is_alive(), "a client waits for its answer"


@contextmanager
def asking(service: Service, n_clients: int = 3) -> Iterator[Clients]:
    """Ask all the while, first answers awaited; end with whole answers."""
    clients = Clients(service, n_clients)
    try:
        await_(lambda: len(clients.statuses) >= n_clients or bool(clients.faults), "clients are answered", READY_S)
        yield clients
    finally:
        clients.end()


class SlowReader:
    """A client whose stream fills a small buffer, and who reads on when told."""

    def __init__(self, service: Service, n_tokens: int) -> None:
        """Ask, and read the first event."""
        self._socket = service.container.connect(service.port, READY_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({**_ENDLESS, "max_tokens": n_tokens})
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._socket.sendall((head + body).encode())
        self._received = b""
        while b"data: " not in self._received:
            self._received += self._read()

    def _read(self) -> bytes:
        part = self._socket.recv(512)
        assert part, f"the stream ended before its first event: {self._received!r}"
        return part

    def read_rest(self) -> str:
        """Read all that still comes, a little at a time."""
        with self._socket:
            while part := self._socket.recv(512):
                self._received += part
        return self._received.decode()
