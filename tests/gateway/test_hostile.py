"""Engines that answer what no client may get: inputs that `make fuzz` found, kept."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from launcher.gateway.events import Took, read_took
from launcher.gateway.policy import Limits
from tests.fakes.gateway import serving

_ENDLESS = 64 << 20


_ASK = b"GET /props HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def speaking(speak: Speak) -> AsyncIterator[str]:
    """Run an engine that speaks so on every connection; give its address."""
    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[str]:
    """Run an engine that answers every request with the same bytes; give its address."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with speaking(speak) as url:
        yield url


async def _asked_of(speak: Speak) -> bytes:
    async with speaking(speak) as url, serving(n_replays=0) as served:
        served.gateway.attach(url)
        return await served.raw(_ASK)


async def _ask(answer: bytes) -> bytes:
    async with saying(answer) as url, serving(n_replays=0) as served:
        served.gateway.attach(url)
        said = await served.raw(_ASK)
        assert served.gateway._meters.n_faults == 0
        return said


async def test_a_field_with_a_control_character_is_left_out() -> None:
    """The client's library reads it, and refuses to write it: the answer was 500, and a traceback in the log."""
    said = await _ask(b"HTTP/1.1 200 OK\r\nContent-Type: applicati\x10on\r\nX-Kept: yes\r\nContent-Length: 2\r\n\r\n{}")
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"X-Kept: yes\r\n" in said
    assert b"\x10" not in said
    assert said.endswith(b"\r\n\r\n{}")


async def test_words_behind_a_status_with_a_control_character_are_the_usual_ones() -> None:
    """They stood in the first line of the answer, or would have."""
    said = await _ask(b"HTTP/1.1 200 OK\x1b[2JX: y\r\nContent-Length: 2\r\n\r\n{}")
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.endswith(b"{}")


@pytest.mark.parametrize(
    "request_", [b"CONNECT  HTTP/1.1", b"GET /props", b"GET /health HTTP/0.9", b"GET /props HTTP/2.0"]
)
async def test_a_client_of_another_http_is_not_spoken_with(request_: bytes) -> None:
    """It was answered with a line of `HTTP/0.9` or `HTTP/2.0`, which there is not; what was answered before it on the connection arrives."""
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as url, serving() as served:
        served.gateway.attach(url)
        said = await served.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" + request_ + b"\r\nHost: x\r\n\r\n")
        assert served.gateway._meters.n_faults == 0
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"HTTP/0" not in said
    assert b"HTTP/2" not in said
    assert said.count(b"HTTP/1") <= 2


@pytest.mark.parametrize("status", [b"101 Switching Protocols", b"099 ?", b"000 ?"])
async def test_a_status_that_answers_nothing_is_a_lost_engine(status: bytes) -> None:
    """101 begins another protocol; it was passed on, and the client then waited for an answer."""
    said = await _ask(b"HTTP/1.1 " + status + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 502 ")
    assert b'"engine-lost"' in said


@pytest.mark.parametrize(
    "answer", [b'{"usage":{"prompt_tokens":-1,"completion_tokens":-9}}', b'{"timings":{"prompt_n":-3}}']
)
def test_negative_figures_count_as_none(answer: bytes) -> None:
    """A counter of Prometheus' cannot fall."""
    assert read_took(answer) == Took(n_prompt=0, n_generated=0)


_HEAD = b"HTTP/1.1 200 OK\r\nX: y\r\n"
_N_INTERIM = Limits().n_interim
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "endless"),
    [(_HEAD, b"X-A: b\r\n"), (_HEAD, b"x" * 4096), (_HEAD, b" folded\r\n"), (b"", _INTERIM)],
    ids=["fields", "a line", "a folded field", "interim answers"],
)
async def test_a_head_without_end_is_a_lost_engine(head: bytes, endless: bytes) -> None:
    """It is read to a bound, and not to its end."""
    sent = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            while sent < _ENDLESS:
                writer.write(endless * 64)
                sent += len(endless) * 64
                await writer.drain()
        writer.close()

    said = await _asked_of(speak)
    assert said.startswith(b"HTTP/1.1 502 ")
    assert sent < _ENDLESS


async def test_interim_answers_that_come_one_by_one_are_bounded() -> None:
    """Each was progress of the connection, and a request that got nothing else was held for ever."""
    n_sent = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n_sent
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(_INTERIM)
                n_sent += 1
                await writer.drain()
                await asyncio.sleep(0.001)  # the gateway is to read each by itself
        writer.close()

    said = await _asked_of(speak)
    assert said.startswith(b"HTTP/1.1 502 ")
    assert f"the engine sent more than {_N_INTERIM} interim answers".encode() in said
    assert n_sent < 10 * _N_INTERIM


async def test_interim_answers_within_the_bound_are_passed_over_before_each_answer() -> None:
    """They count for the answer that follows them: a connection is used again and again."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(_INTERIM * _N_INTERIM + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with speaking(speak) as url, serving(n_replays=0) as served:
        served.gateway.attach(url)
        assert [await served.get("/props") for _ in range(3)] == [(200, "{}")] * 3


@pytest.mark.parametrize("coding", ["", "gzip, chunked", "identity", "\t"])
async def test_a_body_with_two_ends_is_refused(coding: str) -> None:
    """An empty coding was taken for none, and the length for the body's: a proxy before this may have read it otherwise."""
    inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    fields = f"Host: x\r\nTransfer-Encoding: {coding}\r\nContent-Length: {len(inner)}"
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as url, serving() as served:
        served.gateway.attach(url)
        said = await served.raw(f"POST /x HTTP/1.1\r\n{fields}\r\n\r\n{inner}".encode())
    assert said[:4] == b"HTTP"
    assert said[8:13] == b" 400 "
    assert said.count(b"HTTP/1") == 1
