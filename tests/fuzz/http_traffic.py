"""Hostile HTTP at the gateway: clients that send anything, and engines that answer anything.

A real gateway over loopback, beside each batch a client with manners who must be served. It must not know how inputs are
changed.
"""

import asyncio
import contextlib
import json
import logging
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from typing import Final

from launcher.domain import Address
from launcher.gateway.gateway import Gateway
from launcher.gateway.policy import Limits
from launcher.units import MIB
from tests.fuzz.target import Take, Target, WrongError
from tests.fuzz.trees import Tree
from tests.fuzz.weights import items, number, octets
from tests.fuzz.wire import IncompleteError, Request, Response, WireError, read_request, read_responses

_BATCH: Final = 64
_QUIET_S: Final = 0.04
"""Nothing has come for so long, and nothing is under way: nothing will. All of it is one event loop."""
_LONG_S: Final = 120.0
_SETTLE_S: Final = 60.0
_PART_BYTES: Final = 1 << 16
_GOOD: Final = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
_LIMITS: Final = Limits(body_bytes=MIB, bodies_bytes=8 * MIB, n_replays=1, max_wait_s=20.0, answer_bytes=MIB // 4)


class _Engine(asyncio.Protocol):
    """An engine that believes nothing: each request has to be one, to the byte. Its answers say which it was."""

    def __init__(self, seen: list[Request], faults: list[str], script: Callable[[Request], list[bytes] | None]) -> None:
        self._seen, self._faults, self._script = seen, faults, script
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hold the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        self._buffer += data
        while self._buffer and self._transport is not None and not self._transport.is_closing():
            try:
                request, self._buffer = read_request(self._buffer)
            except IncompleteError:
                return
            except WireError as error:
                self._faults.append(f"the engine got no request: {error!r} in {self._buffer[:300]!r}")
                self._transport.close()
                return
            self._seen.append(request)
            self._answer(request)

    def _answer(self, request: Request) -> None:
        assert self._transport is not None
        said = self._script(request)
        if said is None:
            body = b"" if request.method == b"HEAD" else b'{"ok":1}'
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Seen: {len(self._seen)}\r\nContent-Length: 8\r\n\r\n"
            self._transport.write(head.encode() + body)
            return
        for part in said:
            self._transport.write(part)
        asyncio.get_running_loop().call_later(0.01, self._transport.close)


class _Bench:
    """A gateway, an engine behind it, and what both have noted."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.faults: list[str] = []
        self.answers: dict[bytes, list[bytes]] = {}
        self.gateway = Gateway("tiny", limits=_LIMITS)
        self.port = 0

    def script(self, request: Request) -> list[bytes] | None:
        """Return what the engine is to say to a request; ``None``: what it says to all."""
        return self.answers.get(request.target)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["_Bench"]:
        """Run both."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Engine(self.seen, self.faults, self.script), "127.0.0.1", 0, backlog=512
        )
        self.port = (await self.gateway.start(Address(host="127.0.0.1", port=0))).port or 0
        self.gateway.attach(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            yield self
        finally:
            await self.gateway.stop(0.0)
            server.close()

    def check_idle(self) -> None:
        """Fault where something of a batch is left, or the gateway has failed by its own fault."""
        if self.faults:
            msg = "; ".join(self.faults)
            raise WrongError(msg)

    def _left(self) -> tuple[int, ...] | None:
        """Return connections, bytes held, requests running and waiting, where there is any of them."""
        load = self.gateway.load()
        left = (self.gateway._front.n_connections, self.gateway._meters.n_bodies_bytes, load.n_running, load.n_waiting)
        return left if any(left) else None

    async def settle(self) -> None:
        """Wait until the gateway has no connection, no request, and nothing of one."""
        async with asyncio.timeout(_SETTLE_S):
            while self._left():  # noqa: ASYNC110 - several places have to be empty
                await asyncio.sleep(0.002)


class _Noted(logging.Handler):
    """The gateway's own faults, which it logs and answers with 500."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__()
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        """Note one."""
        told = "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""
        self._faults.append(f"{record.getMessage()} {told}"[-3000:])


class _Peer:
    """A client's connection, whose bytes are kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.got = b""
        self.closed = False
        self.last_s = asyncio.get_running_loop().time()

    async def read(self) -> None:
        """Read until the end."""
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(_PART_BYTES):
                self.got += data
                self.last_s = asyncio.get_running_loop().time()
        self.closed = True


@contextmanager
def _opened(batch: Callable[[_Bench, Sequence[bytes]], "asyncio.Future[list[str | BaseException]]"]) -> Iterator[Take]:
    """Give a ``Take`` that runs a batch in an event loop of its own; where one goes wrong as a whole, each is tried alone."""
    loop = asyncio.new_event_loop()
    bench = loop.run_until_complete(_made())
    running = bench.running()
    loop.run_until_complete(running.__aenter__())
    noted = _Noted(bench.faults)
    log = logging.getLogger("launcher.gateway")
    log.addHandler(noted)
    log.propagate = False
    loop.set_exception_handler(lambda _, context: bench.faults.append(f"the loop: {context!r}"[:2000]))

    def take(inputs: Sequence[bytes]) -> list[str | BaseException]:
        try:
            return loop.run_until_complete(batch(bench, inputs))
        except (WrongError, TimeoutError) as error:
            bench.faults.clear()
            if len(inputs) == 1:
                return [error]
            alone = [take([each])[0] for each in inputs]
            if all(isinstance(each, str) for each in alone):
                alone[0] = error
            return alone

    try:
        yield take
    finally:
        loop.run_until_complete(running.__aexit__(None, None, None))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        log.removeHandler(noted)
        log.propagate = True


async def _made() -> _Bench:
    return _Bench()


async def _good(bench: _Bench) -> None:
    """Ask as one should; the answer has to come, whatever others do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    try:
        writer.write(_GOOD)
        async with asyncio.timeout(_LONG_S):
            data = await reader.read()
        (answer,) = read_responses(data, closed=True)
        if answer.status != 200 or not answer.whole:
            msg = f"the client beside was answered {data[:300]!r}"
            raise WrongError(msg)
    finally:
        writer.close()


# --- Clients ----------------------------------------------------------------------------------------------------


def _request(method: str, target: str, fields: list[list[str]], body: Tree = b"", framing: str = "length") -> Tree:
    return {
        "method": method,
        "target": target,
        "version": "HTTP/1.1",
        "fields": fields,
        "body": body,
        "framing": framing,
        "end": "\r\n",
    }


_HOST: Final = ["Host", "x"]
_SMUGGLED: Final = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def _client_seeds() -> list[Tree]:
    chat = "/v1/chat/completions"
    body = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"stream":true}'
    one = [
        [_request("POST", chat, [_HOST, ["Content-Type", "application/json"]], body)],
        [_request("POST", chat, [_HOST], [b'{"a":', b"1}"], "chunked")],
        [_request("POST", chat, [_HOST, ["Expect", "100-continue"]], body)],
        [_request("GET", "/v1/models", [_HOST], b"", "none"), _request("GET", "/health", [_HOST], b"", "none")],
        [
            _request("POST", chat, [_HOST], body),
            _request("POST", "/completion", [_HOST], body),
            _request("GET", "/metrics", [_HOST], b"", "none"),
        ],
        [_request("POST", chat, [_HOST], _SMUGGLED), _request("GET", "/after", [_HOST], b"", "none")],
        [_request("POST", chat, [_HOST, ["Transfer-Encoding", "chunked"]], _SMUGGLED)],
        [_request("POST", chat, [_HOST, ["Content-Length", "4"]], [b"x", _SMUGGLED], "chunked")],
        [
            _request(
                "POST",
                chat,
                [_HOST, ["Connection", "keep-alive, X-Y"], ["X-Y", "1"], ["TE", "trailers"], ["Upgrade", "h2c"]],
                body,
            )
        ],
        [_request("HEAD", "/v1/models", [_HOST], b"", "none"), _request("OPTIONS", "*", [_HOST], b"", "none")],
        [
            _request(
                "PUT",
                "/a%2Fb/../c?x=%00&y=1",
                [_HOST, ["Authorization", "Bearer x"], ["Content-Encoding", "gzip"]],
                body,
            )
        ],
        [
            _request("GET", "http://elsewhere.example/v1/models", [_HOST], b"", "none"),
            _request("CONNECT", "x:1", [_HOST], b"", "none"),
        ],
    ]
    return [{"requests": requests, "cuts": [5, 40], "patch": b"", "patch_at": 0} for requests in one]


def _encode_client(tree: Tree) -> bytes:
    """Write a client's stream, and before it where it is cut into pieces."""
    tree = tree if isinstance(tree, dict) else {"requests": [tree]}
    raw = b"".join(_encode_request(request) for request in items(tree.get("requests", []))[:12])
    patch, at = octets(tree.get("patch", b"")), abs(number(tree.get("patch_at"))) % (len(raw) + 1)
    raw = raw[:at] + patch + raw[at:]
    cuts = [abs(number(cut)) % 65536 for cut in items(tree.get("cuts", []))[:6]]
    return bytes([len(cuts)]) + b"".join(cut.to_bytes(2, "little") for cut in cuts) + raw[: 1 << 17]


def _encode_message(first: bytes, message: Mapping[str, Tree]) -> bytes:
    """Return a request or an answer: its first line, its fields, its body as its framing says."""
    end = octets(message.get("end", b"\r\n"))[:4]
    lines = [first]
    for field in items(message.get("fields", [])):
        pair = items(field)
        lines.append(octets(pair[0] if pair else "") + b": " + b"".join(map(octets, pair[1:])))
    body, framing = message.get("body", b""), message.get("framing")
    if framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        content = b"".join(b"%x\r\n%b\r\n" % (len(octets(part)), octets(part)) for part in items(body)) + b"0\r\n\r\n"
    else:
        content = octets(body) if not isinstance(body, list) else b"".join(map(octets, body))
        if framing != "none":
            lines.append(b"Content-Length: %d" % (len(content) if framing == "length" else number(framing)))
    return end.join([*lines, b"", b""]) + content


def _encode_request(request: Tree) -> bytes:
    if not isinstance(request, dict):
        return octets(request)
    first = b" ".join(octets(request.get(part, "")) for part in ("method", "target", "version"))
    return _encode_message(first, request)


def _pieces(data: bytes) -> list[bytes]:
    n = data[0] if data else 0
    raw = data[1 + 2 * n :]
    cuts = sorted({int.from_bytes(data[1 + 2 * idx : 3 + 2 * idx], "little") for idx in range(n)})
    edges = [0, *(cut for cut in cuts if 0 < cut < len(raw)), len(raw)]
    return [raw[begin:end] for begin, end in pairwise(edges)]


async def _clients(bench: _Bench, inputs: Sequence[bytes]) -> list[str | BaseException]:
    bench.seen.clear()
    peers = [_Peer(*await asyncio.open_connection("127.0.0.1", bench.port)) for _ in inputs]
    readers = [asyncio.create_task(peer.read()) for peer in peers]
    good = asyncio.create_task(_good(bench))
    await asyncio.gather(*(_send(peer, data) for peer, data in zip(peers, inputs, strict=True)))
    await good
    await _quiet(bench, peers)
    for peer in peers:
        peer.writer.transport.abort()
    await asyncio.gather(*readers)
    await bench.settle()
    bench.check_idle()
    allowed: Counter[tuple[bytes, bytes, bytes]] = Counter({(b"POST", b"/v1/chat/completions", b"{}"): 1})
    endings = [_judge_client(peer, b"".join(_pieces(data)), allowed) for peer, data in zip(peers, inputs, strict=True)]
    for request in bench.seen:
        key = (request.method, _path_of(request.target), request.body)
        allowed[key] -= 1
        if allowed[key] < 0:
            msg = f"the engine got a request that nobody sent beyond doubt: {request!r}"[:2000]
            raise WrongError(msg)
    return endings


async def _send(peer: _Peer, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        for piece in _pieces(data):
            peer.writer.write(piece)
            await peer.writer.drain()
            await asyncio.sleep(0)


async def _quiet(bench: _Bench, peers: Sequence[_Peer]) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + _LONG_S
    while not all(peer.closed for peer in peers):
        await asyncio.sleep(_QUIET_S / 4)
        load = bench.gateway.load()
        idle = not load.n_running and not load.n_waiting
        if idle and loop.time() - max(peer.last_s for peer in peers) > _QUIET_S:
            return
        if loop.time() > end_s:
            msg = f"requests hang: {load!r}"
            raise WrongError(msg)


def _path_of(target: bytes) -> bytes:
    """Return a target without the host that one in absolute form names: the engine is asked for the path."""
    if target[:7].lower() in {b"http://", b"https:/"}:
        _, slash, path = target.partition(b"//")[2].partition(b"/")
        return slash + path if slash else b"/"
    return target


def _judge_client(peer: _Peer, raw: bytes, allowed: Counter[tuple[bytes, bytes, bytes]]) -> str | BaseException:
    """Say how far a stream came; note the requests in it that may have been passed on."""
    requests, how = [], "whole"
    rest = raw
    while rest:
        try:
            request, rest = read_request(rest)
        except IncompleteError:
            how = "incomplete"
            break
        except WireError:
            how = "no HTTP"
            break
        requests.append(request)
        allowed[request.method, _path_of(request.target), request.body] += 1
    methods = tuple(request.method for request in requests)
    try:
        answers = read_responses(peer.got, methods=methods, closed=peer.closed)
    except WireError as error:
        return WrongError(f"the client got no answer: {error!r} in {peer.got[:300]!r}")
    finals = [answer for answer in answers if answer.status >= 200]
    if any(answer.status == 500 for answer in answers):
        return WrongError(f"answered 500: {peer.got[:400]!r}")
    if len(finals) > len(requests) + 1:
        return WrongError(f"{len(finals)} answers to {len(requests)} requests: {peer.got[:400]!r}")
    if how == "no HTTP" and not peer.closed and len(finals) > len(requests):
        return WrongError("a connection went on after what was no HTTP")
    told = sorted({answer.status for answer in finals})
    return f"{how}, {min(len(requests), 3)} requests, answered {' '.join(map(str, told)) or 'nothing'}"


CLIENTS: Final = Target(
    name="http-clients",
    modules=(
        "launcher.gateway.front",
        "launcher.gateway.client",
        "launcher.gateway.headers",
        "launcher.gateway.gateway",
    ),
    seeds=_client_seeds,
    encode=_encode_client,
    open=lambda: _opened(_clients),  # type: ignore[arg-type]  # a coroutine is what it gives
    batch=_BATCH,
    words=(
        *("Content-Length", "Transfer-Encoding", "chunked", "Connection", "close", "keep-alive", "Upgrade", "Expect"),
        *(
            "100-continue",
            "HTTP/1.0",
            "HTTP/2.0",
            "HTTP/1.1",
            "POST",
            "GET",
            "gzip, chunked",
            "identity",
            " chunked",
            "xchunked",
        ),
        *(
            "\r\n",
            "\n",
            "\r",
            "0\r\n\r\n",
            "+5",
            "0x5",
            "5, 5",
            "4;5",
            "Content-Length ",
            " Content-Length",
            "chunked\t",
            "\x0bchunked",
        ),
        *(
            "none",
            "chunked",
            "length",
            _SMUGGLED,
            b"\0",
            b"\r",
            b"\n",
            b"ffffffffffffffff\r\n",
            b"-1\r\n",
            b"0\r\nX: y\r\n\r\n",
        ),
        *("/metrics", "/health", "/v1/models", "/v1/models/tiny", "*", "//x", "/%0d%0aX:%20y", "/?\x7f"),
    ),
    share=3,
    cpu_s=5.0,
    slack_bytes=96 * MIB,
)


# --- Engines ----------------------------------------------------------------------------------------------------


def _answer(status: str, fields: list[list[str]], body: Tree, framing: str = "length") -> Tree:
    return {
        "status": status,
        "fields": fields,
        "body": body,
        "framing": framing,
        "end": "\r\n",
        "patch": b"",
        "patch_at": 0,
    }


def _engine_seeds() -> list[Tree]:
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"t%d"}}]}\n\n' % idx for idx in range(4)]
    last = [b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n', b"data: [DONE]\n\n"]
    kind, stream = ["Content-Type", "application/json"], ["Content-Type", "text/event-stream"]
    usage = json.dumps({"choices": [{"text": "x"}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()
    return [
        _answer("HTTP/1.1 200 OK", [kind], usage),
        _answer("HTTP/1.1 200 OK", [kind], [usage[:20], usage[20:]], "chunked"),
        _answer("HTTP/1.1 200 OK", [stream], [*events, *last], "chunked"),
        _answer("HTTP/1.1 200 OK", [stream, ["Connection", "close"]], b"".join([*events, *last]), "none"),
        _answer("HTTP/1.1 200 OK", [stream], [*events, b'data: {"error":{"message":"x"}}\n\n'], "chunked"),
        _answer("HTTP/1.1 500 No", [kind], b'{"error":{"message":"x"}}'),
        _answer("HTTP/1.1 503 No", [kind, ["Retry-After", "1"]], b"{}"),
        _answer("HTTP/1.1 204 No Content", [], b"", "none"),
        _answer("HTTP/1.0 200 OK", [["Content-Type", "text/plain"]], b"x" * 400_000, "none"),
        _answer("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", [kind, ["Set-Cookie", "a=b"]], b"{}"),
        _answer("HTTP/1.1 302 Found", [["Location", "http://elsewhere.example/"]], b""),
        _answer("HTTP/1.1 101 Switching Protocols", [["Upgrade", "websocket"], ["Connection", "Upgrade"]], b"", "none"),
    ]


def _encode_answer(tree: Tree) -> bytes:
    tree = tree if isinstance(tree, dict) else {"status": tree}
    raw = _encode_message(octets(tree.get("status", "HTTP/1.1 200 OK")), tree)
    patch, at = octets(tree.get("patch", b"")), abs(number(tree.get("patch_at"))) % (len(raw) + 1)
    return raw[:at] + patch + raw[at:]


async def _engines(bench: _Bench, inputs: Sequence[bytes]) -> list[str | BaseException]:
    bench.seen.clear()
    bench.answers = {b"/%d/v1/completions" % idx: _split_in_parts(data) for idx, data in enumerate(inputs)}
    good = asyncio.create_task(_good(bench))
    endings = await asyncio.gather(*(_ask(bench, idx) for idx in range(len(inputs))))
    await good
    bench.answers = {}
    await bench.settle()
    bench.check_idle()
    return list(endings)


def _split_in_parts(data: bytes) -> list[bytes]:
    return [data[start : start + _PART_BYTES] for start in range(0, len(data), _PART_BYTES)]


async def _ask(bench: _Bench, idx: int) -> str | BaseException:
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    ask = b"POST /%d/v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % idx
    data = b""
    try:
        writer.write(ask)
        async with asyncio.timeout(_LONG_S):
            while part := await reader.read(_PART_BYTES):
                data += part
    except TimeoutError:
        return WrongError(f"no end of the answer: {data[:300]!r}")
    except ConnectionError:
        pass
    finally:
        writer.close()
    return _judge_answer(data)


def _judge_answer(data: bytes) -> str | BaseException:
    if not data:
        return WrongError("the client got no answer at all")
    try:
        answers = read_responses(data, closed=True)
    except WireError as error:
        return WrongError(f"the client got no answer: {error!r} in {data[:300]!r}")
    finals = [answer for answer in answers if answer.status >= 200]
    if len(finals) != 1:
        return WrongError(f"{len(finals)} answers to one request: {data[:300]!r}")
    return _ending_of(finals[0])


def _ending_of(answer: Response) -> str | BaseException:
    ours = b'"code":"gateway-fault"' in answer.body
    if ours:
        return WrongError(f"the gateway failed: {answer.body!r}")
    told = " told as lost" if b'"code":"engine-lost"' in answer.body else ""
    return f"{answer.status // 100}xx{told}{'' if answer.whole else ', cut'}"


ENGINES: Final = Target(
    name="http-engines",
    modules=("launcher.gateway.exchange", "launcher.gateway.relay", "launcher.gateway.events", "launcher.gateway.line"),
    seeds=_engine_seeds,
    encode=_encode_answer,
    open=lambda: _opened(_engines),  # type: ignore[arg-type]  # a coroutine is what it gives
    batch=_BATCH,
    words=(
        *(
            "Content-Length",
            "Transfer-Encoding",
            "chunked",
            "Content-Encoding",
            "gzip",
            "br",
            "Connection",
            "close",
            "X" * 9000,
        ),
        *(
            "text/event-stream",
            "text/event-stream; charset=x",
            "none",
            "length",
            "0",
            "99999999999",
            "-1",
            "HTTP/1.1 200 OK",
        ),
        *(
            "HTTP/1.1 999 ?",
            "HTTP/1.1 000 x",
            "HTTP/9.9 200 OK",
            "HTTP/1.1 304 x",
            "HTTP/1.1 100 Continue",
            "Trailer",
            "Set-Cookie",
        ),
        *(
            b"\xff\xfe\n\n",
            b"data: \xc3\x28\n\n",
            b"\r\n\r\n",
            b"\n\n",
            b"0\r\n\r\n",
            b"\0" * 500,
            b"data: [DONE]\n\n",
            b"event: error\n",
        ),
    ),
    share=1.5,
    cpu_s=5.0,
    slack_bytes=96 * MIB,
)
