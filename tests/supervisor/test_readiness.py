"""What an endpoint has to say of its models before it counts as ours."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from launcher.domain import Address, Command
from launcher.supervisor.readiness import check_model, open_session


@contextmanager
def answering(body: bytes) -> Iterator[int]:
    """Answer every question with a body; give the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port: int) -> str | None:
    """What is wrong with the list of models at a port, for one who served `m`."""
    command = Command(argv=("x",), address=Address(port=port), ready_path="/", canary_path="/", canary_body="")

    async def check() -> str | None:
        async with open_session(command, {}) as session:
            return await check_model(session, "m")

    return asyncio.run(check())


def test_a_list_with_our_model_will_do() -> None:
    """Among others or alone."""
    with answering(b'{"data": [{"id": "other"}, {"id": "m"}]}') as port:
        assert ask(port) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"data": [{"id": "other"}]}', "lists other, not `m`"),
        (b'{"data": []}', "lists no model"),
        (b"[1]", "lists no model"),
        (b"hello", "lists no model"),
        (b'{"data": [{}]}', "lists no model"),
    ],
)
def test_another_programs_answer_is_told(body: bytes, words: str) -> None:
    """Whatever it is that answers there."""
    with answering(body) as port:
        found = ask(port)
    assert found is not None
    assert words in found


def test_silence_is_told() -> None:
    """Nobody there."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        assert "not answered" in str(ask(held.getsockname()[1]))


def test_a_list_without_end_is_not_read_to_its_end() -> None:
    """Ours is not among the first MiB: the rest would only fill the memory."""
    with answering(b'{"data":[{"id":"' + b"\x1b" * (3 << 20) + b'"},{"id":"m"}]}') as port:
        said = ask(port)
    assert said == "the engine lists no model, not `m`"
