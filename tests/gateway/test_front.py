"""Clients of every kind: in a hurry, slow, rude, or gone."""

import asyncio
import contextlib
import gzip
import http.client
import io
import json
import logging
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, Final

import pytest
from yarl import URL

from launcher.domain import Address
from launcher.errors import PortInUseError, UsageError
from launcher.gateway.gateway import Gateway
from launcher.gateway.keys import Keys
from tests.fakes.gateway import CHAT, Engine, events_of, serving, until

KEY: Final = "0123456789abcdef"
STREAM: Final = {"stream": True, "max_tokens": 4}


def _post(body: bytes | dict[str, Any], *fields: str, version: str = "1.1", path: str = CHAT) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(data)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + data


def _answers(data: bytes) -> list[int]:
    """Return the statuses of the answers in what came on one connection."""
    return [int(part[2:5]) for part in data.split(b"HTTP/1.")[1:]]


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the connection ends, in good order or not."""
    with contextlib.suppress(ConnectionResetError):
        return await reader.read()
    return b""


# --- What passes ---


async def test_an_answer_streams_without_being_held(engine: Engine) -> None:
    """Each event arrives while the next is not even made: the stream is slower than the whole test may be."""
    async with serving(engine) as served:
        body = {"stream": True, "max_tokens": 1000, "fake": {"tps": 20}}
        async with served.session.post(CHAT, json=body) as response:
            assert response.content_type == "text/event-stream"
            events = [await response.content.readuntil(b"\n\n") for _ in range(3)]
        assert [event.count(b'"content"') for event in events] == [1, 1, 1]


async def test_paths_queries_and_bodies_pass_unchanged(engine: Engine) -> None:
    """Also those that OpenAI does not have; the engine's own status and fields come back."""
    async with serving(engine) as served:
        path = "/v1/a%2Fb/%C3%A9?x=1%202&y=%2B"
        async with served.session.put(URL(path, encoded=True), data=io.BytesIO(b"\x00\xff" * 700_000)) as response:
            assert response.status == 200
            assert response.headers["Server"] == "fake"
            assert "Keep-Alive" not in response.headers
        seen = engine.seen()["last"]
        assert (seen["method"], seen["path"], seen["n_body"]) == ("PUT", path, 1_400_000)


async def test_what_concerns_one_connection_is_not_passed_on(engine: Engine) -> None:
    """Hop-by-hop fields, those that ``Connection`` names, and the client's own key; the engine's is added."""
    async with serving() as served:
        served.gateway.attach(engine.url + "/", api_key="the-engine's")
        fields = ("Connection: close, X-Mine", "X-Mine: 1", "TE: trailers", "Authorization: Bearer sk-secret")
        secrets = (
            "X-Api-Key: sk-other",
            "Api-Key: sk-other",
            "Cookie: k=sk-other",
            "X-Auth-Token: sk-other",
            "X-Goog-Api-Key: sk-x",
        )
        more = (
            *secrets,
            "Proxy-Authorization: Basic sk-other",
            "Accept-Encoding: gzip",
            "X-Kept: yes",
            "User-Agent: me",
        )
        assert _answers(await served.raw(_post(STREAM, *fields, *more))) == [200]
        seen = engine.seen()["last"]["headers"]
        assert seen["authorization"] == "Bearer the-engine's"
        assert (seen["x-kept"], seen["user-agent"], seen["accept-encoding"]) == ("yes", "me", "identity")
        assert {"x-mine", "te", "x-api-key"}.isdisjoint(seen)
        assert "sk-" not in str(seen)
        assert "secret" not in json.dumps(seen)


async def test_http_1_0_is_answered_without_chunks(engine: Engine) -> None:
    """The stream ends with the connection, its error event included."""
    async with serving(engine) as served:
        data = await served.raw(_post({**STREAM, "fake": {"close_at": 2}}, version="1.0"))
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"Transfer-Encoding" not in head
        events = events_of(body.decode())
        assert len(events) == 3
        assert events[2]["error"]["code"] == "engine-lost"
        assert body.endswith(b"}}\n\n")


async def test_pipelined_requests_are_answered_in_order(engine: Engine) -> None:
    """Several in one packet: one answer each, in their order; what the gateway answers itself waits its turn, too."""
    async with serving(engine) as served:
        slow = _post({"fake": {"first_s": 0.2}})
        own = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
        data = await served.raw(slow + own + _post({"fake": {"status": 400}}, "Connection: close"))
        assert _answers(data) == [200, 200, 400]
        assert data.index(b'"choices"') < data.index(b'"object":"list"')


async def test_chunked_and_compressed_bodies_pass(engine: Engine) -> None:
    """A chunked body reaches the engine with its length; a compressed one as it is, with the field that says so."""
    async with serving(engine) as served:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        assert _answers(await served.raw(head, b"3\r\n{}\n\r\n", b"2\r\n  \r\n0\r\n\r\n")) == [200]
        assert engine.seen()["last"]["headers"]["content-length"] == "5"
        packed = gzip.compress(b"{}" * 9)
        assert _answers(await served.raw(_post(packed, "Content-Encoding: gzip", "Connection: close"))) == [200]
        seen = engine.seen()["last"]
        assert (seen["headers"]["content-encoding"], seen["n_body"]) == ("gzip", len(packed))


async def test_a_client_that_expects_100_is_told_to_go_on(engine: Engine) -> None:
    """And one that is refused is told so before it sends its body: too large, no room, wrong key."""
    expect = ("Expect: 100-continue", "Connection: close")
    async with serving(engine, body_bytes=100) as served:
        head, _, body = _post(STREAM, *expect).partition(b"\r\n\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert _answers(await reader.read()) == [200]
        writer.close()
        large = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\nExpect: 100-continue\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(large)
        assert (await reader.readuntil(b"\r\n"))[:12] == b"HTTP/1.1 413"
        writer.close()
        assert _answers(await served.raw(_post(STREAM, "Expect: tea", "Connection: close"))) == [417]


async def test_a_head_request_gets_no_body(engine: Engine) -> None:
    """The length is told, and the connection stays usable."""
    async with serving(engine) as served:
        ask = b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
        data = await served.raw(ask + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert _answers(data) == [200, 200]
        assert b'"object"' not in data


@pytest.mark.parametrize(
    "target", ["http://elsewhere.example/v1/models", "/v1/models", "//elsewhere.example/v1/models"]
)
async def test_every_target_is_of_this_endpoint(engine: Engine, target: str) -> None:
    """Whatever host a request names, none but the attached engine is asked."""
    async with serving(engine) as served:
        data = await served.raw(
            f"GET {target} HTTP/1.1\r\nHost: elsewhere.example\r\nConnection: close\r\n\r\n".encode()
        )
        assert _answers(data) == [200]
        assert engine.seen()["n_requests"] == int(target.startswith("//"))


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_an_upgrade_is_not_made(engine: Engine, protocol: str) -> None:
    """The request is answered as if it had not asked, its connection ends, and the engine hears nothing of it."""
    async with serving(engine) as served:
        ask = _post(STREAM, "Connection: Upgrade", f"Upgrade: {protocol}")
        data = await served.raw(ask + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert _answers(data) == [200]
        assert b"Connection: close" in data
        assert "upgrade" not in engine.seen()["last"]["headers"]


# --- What is bounded ---


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 431, "head-too-large"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431, "head-too-large"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nX : y\r\n\r\n", 400, "bad-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad-request"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad-request"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "bad-request"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "bad-method"),
        (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "bad-method"),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-target"),
        (b"GET @127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-"),
        (b"GET :1@127.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad-request"),
        (b"DELETE /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "bad-method"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad-"),
    ],
)
async def test_what_is_no_request_is_answered_and_ends_its_connection(
    engine: Engine, caplog: pytest.LogCaptureFixture, request_: bytes, status: int, code: str
) -> None:
    """One answer in JSON; the engine hears nothing of it, and neither does the log, which anybody could fill."""
    with caplog.at_level(logging.DEBUG):
        async with serving(engine) as served:
            data = await served.raw(request_)
    assert _answers(data) == [status]
    assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"].startswith(code)
    assert engine.seen()["n_requests"] == 0
    assert [record for record in caplog.records if record.name.startswith("launcher")] == []


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_is_bounded(engine: Engine, announced: bool) -> None:  # noqa: FBT001 - a case of the test
    """413, by its announced length or by what came; nothing of it is kept."""
    async with serving(engine, body_bytes=1000) as served:
        if announced:
            data = await served.raw(_post(b"x" * 1001))
        else:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            data = await served.raw(head, b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
        assert _answers(data) == [413]
        assert await served.figure("launcher_requests_held_bytes") == 0
        assert engine.seen()["n_requests"] == 0


async def test_all_bodies_together_are_bounded(engine: Engine) -> None:
    """While waiting requests fill the room for bodies, the next is refused with ``Retry-After``, and later served."""
    async with serving(body_bytes=2000, bodies_bytes=3000) as served:
        waiting = asyncio.create_task(served.session.post(CHAT, data=b"x" * 2000))
        await until(lambda: served.gateway._meters.n_bodies_bytes == 2000)
        async with served.session.post(CHAT, data=b"x" * 2000) as response:
            assert (response.status, "Retry-After" in response.headers) == (503, True)
        served.gateway.attach(engine.url)
        assert (await waiting).status == 200
        assert (await served.session.post(CHAT, data=b"x" * 2000)).status == 200
        assert served.gateway._meters.n_bodies_bytes == 0


async def test_a_slow_body_is_bounded(engine: Engine) -> None:
    """408 after the time, though bytes keep dripping."""
    async with serving(engine, body_timeout_s=0.2) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode())
        reading = asyncio.create_task(reader.readuntil(b"\r\n"))
        while not reading.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
        assert b" 408 " in await reading
        writer.close()


@pytest.mark.parametrize("start", [b"", b"GET /v1/mod"])
async def test_a_slow_head_is_bounded(start: bytes) -> None:
    """A connection that never comes to its request is closed after the time, though bytes keep dripping."""
    async with serving(idle_timeout_s=0.3) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        reading = asyncio.create_task(_rest(reader))
        while not reading.done():
            if start:
                writer.write(start)
                start = b"e"
            await asyncio.sleep(0.02)
        assert await reading == b""
        writer.close()


async def test_an_idle_connection_is_closed(engine: Engine) -> None:
    """After an answer, too."""
    async with serving(engine, idle_timeout_s=1.0) as served:
        assert _answers(await served.raw(_post(STREAM))) == [200]


async def test_a_client_that_does_not_read_is_cut(engine: Engine) -> None:
    """It holds up the engine's stream, then loses its connection, and the engine is free."""
    async with serving(engine, stall_timeout_s=0.4) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
        writer.write(_post({"stream": True, "max_tokens": 2_000_000}))
        await until(lambda: served.gateway._meters.n_stalled == 1)
        await until(lambda: engine.seen()["n_running"] == 0)
        assert engine.seen()["n_cancelled"] == 1
        rest = await _rest(reader)
        assert not rest.endswith(b"0\r\n\r\n")
        writer.close()


async def test_connections_are_bounded(engine: Engine) -> None:
    """Beyond the bound a request is answered 503 with ``Retry-After``; those far beyond are cut; then all is well again."""
    async with serving(engine, n_connections=2) as served:
        idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
        data = await served.raw(_post(STREAM))
        assert _answers(data) == [503]
        assert b"Retry-After" in data
        assert b"Connection: close" in data
        many = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(65)]
        assert await _rest(many[-1][0]) == b""
        for _, writer in idle + many:
            writer.close()
        await until(lambda: served.gateway._front.n_connections == 0)
        assert (await served.ask(STREAM))[0] == 200


# --- Clients that leave ---


@pytest.mark.parametrize(
    "body", [{"stream": True, "max_tokens": 100_000, "fake": {"tps": 50}}, {"fake": {"first_s": 60}}]
)
async def test_a_client_that_leaves_ends_the_engines_work(engine: Engine, body: dict[str, Any]) -> None:
    """In the middle of a stream, or before any answer."""
    async with serving(engine) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(_post(body))
        await until(lambda: engine.seen()["n_running"] == 1)
        writer.close()
        await until(lambda: engine.seen()["n_cancelled"] == 1)
        assert await served.figure("launcher_client_disconnects_total") == 1
        assert served.gateway.load().n_running == 0


async def test_a_client_that_leaves_the_queue_takes_no_turn(engine: Engine) -> None:
    """Its request never reaches the engine."""
    async with serving() as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(_post(STREAM))
        await until(lambda: served.gateway.load().n_waiting == 1)
        writer.transport.abort()
        await until(lambda: served.gateway.load().n_waiting == 0)
        served.gateway.attach(engine.url)
        assert (await served.ask(STREAM))[0] == 200
        assert engine.seen()["n_requests"] == 1


async def test_a_client_that_leaves_within_its_body_leaves_nothing(engine: Engine) -> None:
    """The part that came is let go, and counts no more."""
    async with serving(engine) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n123".encode())
        await until(lambda: served.gateway._meters.n_bodies_bytes == 3)
        writer.transport.abort()
        await until(lambda: served.gateway._meters.n_bodies_bytes == 0)


# --- Who may ask ---


async def test_a_key_is_required_where_there_is_one(engine: Engine) -> None:
    """401 with a challenge, the engine hears nothing; ``/health`` says its word to everybody, and no more than that."""
    async with serving(engine, keys=Keys((KEY,))) as served:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": KEY[:-1]}):
            for path in (CHAT, "/v1/models", "/metrics", "/"):
                async with served.session.post(path, json=STREAM, headers=headers) as response:
                    assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert await served.get("/health") == (200, '{"status":"ready"}')
        assert engine.seen()["n_requests"] == 0
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-Api-Key": KEY}):
            assert (await served.ask(STREAM, headers=headers))[0] == 200
            assert (await served.get("/metrics", headers=headers))[0] == 200
            assert "n_restarts" in (await served.get("/health", headers=headers))[1]


async def test_beyond_loopback_nothing_listens_without_a_key() -> None:
    """The gateway itself refuses, whoever calls it."""
    gateway = Gateway("tiny")
    with pytest.raises(UsageError, match="no API key"):
        await gateway.start(Address(host="0.0.0.0", port=0))  # noqa: S104 - the very case
    await gateway.stop(0.0)


async def test_a_taken_port_is_a_named_fault(engine: Engine) -> None:
    """And nothing of the gateway is left."""
    gateway = Gateway("tiny")
    with pytest.raises(PortInUseError, match=f"127.0.0.1:{engine.port} cannot be listened on: address already in use"):
        await gateway.start(Address(host="127.0.0.1", port=engine.port))
    await gateway.stop(0.0)


async def test_the_gateways_own_fault_is_answered_and_logged(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 in JSON for the client, the traceback for the log, and the next request is served."""
    async with serving(engine) as served:
        with monkeypatch.context() as patch:
            patch.setattr("launcher.gateway.exchange.request_headers", lambda *_: 1 / 0)
            status, text = await served.ask(STREAM)
        assert (status, json.loads(text)["error"]["code"]) == (500, "gateway-fault")
        assert "ZeroDivisionError" in caplog.text
        assert (await served.ask(STREAM))[0] == 200
        assert (served.gateway.load().n_running, served.gateway._meters.n_bodies_bytes) == (0, 0)


@pytest.mark.parametrize("field", [b"X: caf\xe9", b"X: \xff\xfe", "X: é".encode()])
async def test_fields_beyond_ascii_pass_or_are_refused(engine: Engine, field: bytes) -> None:
    """Latin-1 and UTF-8 in a field's value are not worth a fault."""
    async with serving(engine) as served:
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + field + b"\r\n\r\n"
        assert _answers(await served.raw(request))[0] in {200, 400}
        assert served.gateway._meters.n_faults == 0


# --- At the end ---


def _ask_until_refused(port: int, *, stays: bool) -> list[str]:
    """Send one request after another, on one connection each or on one for all; return what became of those sent."""
    ends: list[str] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while True:
        try:
            connection.connect()
        except OSError:  # refused, or reset before it stood
            return ends
        is_open = True
        while is_open:
            try:
                connection.request("POST", CHAT, b"{}")
                answer = connection.getresponse()
                answer.read()
                ends.append(str(answer.status))
                is_open = stays and not answer.will_close
            except (OSError, http.client.HTTPException) as error:
                ends.append(type(error).__name__)
                is_open = False
        connection.close()


def _ask_from_eight_sides(port: int) -> Counter[str]:
    """Ask without a pause until nobody listens; return what became of the requests."""
    with ThreadPoolExecutor(8) as pool:
        ends = pool.map(lambda idx: _ask_until_refused(port, stays=idx % 2 == 0), range(8))
        return Counter(end for one in ends for end in one)


async def test_whoever_has_connected_is_answered_while_it_stops(engine: Engine) -> None:
    """In the kernel's queue, just accepted, or on a connection kept for the next request: none is reset."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients:
        for _ in range(4):
            gateway = Gateway("tiny")
            address = await gateway.start(Address(host="127.0.0.1", port=0))
            gateway.attach(engine.url)
            asked = loop.run_in_executor(clients, _ask_from_eight_sides, address.port or 0)
            await until(partial(_has_served, gateway))
            await gateway.stop(1.0)
            ends = await asked
            assert ends.keys() <= {"200", "503"}, ends


def _has_served(gateway: Gateway) -> bool:
    return gateway.load().n_received_bytes > 10_000
