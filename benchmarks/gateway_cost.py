"""Measure what the gateway costs, paired against the bare engine, and beside nginx and litellm's proxy where they are.

    python -m benchmarks.gateway_cost [--rounds 1000] [--requests 100000] [--litellm PATH] [--nginx PATH]

Run from the checkout's root. The engine is a small real process that streams at any rate (`tests/fakes`). Contenders
take turns with the bare engine, so that a busy machine slows all of them alike. The client is made to cost
little: blocking sockets for the time to the first byte, a bare protocol without a parser for many streams; how much of
a core it took is in the table. Exit code 1 where a promise about the gateway is broken.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from benchmarks.programs import cpu_s, listens, pss_bytes, running
from launcher.domain import Address
from launcher.gateway.gateway import Gateway
from launcher.supervisor.checks import free_port
from launcher.units import MIB
from tests.fakes.gateway import CHAT, Engine

MAX_ADDED_P50_S: Final = 0.0015
MAX_ADDED_P99_S: Final = 0.008
MIN_THROUGHPUT: Final = 0.97
MAX_GROWTH_BYTES: Final = 2 * MIB
N_STREAMS: Final = 64
STREAM_TPS: Final = 50
STREAM_S: Final = 10
_DEADLINE_S: Final = 120.0
_MIN_SEEN: Final = 0.99  # of the tokens: one that two packets share is not recognised
_KEY: Final = f"sk-{secrets.token_hex(24)}"  # litellm wants one; the others hear of it, too
_DIRECT: Final = "bare engine"
_OURS: Final = "launcher's gateway"

_NGINX: Final = """
{user}
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to reach the engine; ``pid`` is what is in the way."""

    name: str
    port: int
    pid: int | None = None

    def cpu_s(self) -> float:
        """Return the processor time that it has taken, in seconds."""
        return cpu_s(self._processes())

    def pss_bytes(self) -> int:
        """Return the memory that it holds, its share of what is shared."""
        return pss_bytes(self._processes())

    def _processes(self) -> list[psutil.Process]:
        if self.pid is None:
            return []
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]


# --- Contenders ---


async def serve_gateway(port: int, engine_url: str) -> None:
    """Be a gateway before the engine until told to end."""
    gateway = Gateway("tiny")
    await gateway.start(Address(host="127.0.0.1", port=port))
    gateway.attach(engine_url)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await gateway.stop(0.0)


def _start(stack: ExitStack, argv: list[str], port: int, **more: str) -> int:
    """Run a server until the stack is left; return its number once it listens."""
    process, _ = stack.enter_context(running(argv, {**os.environ, **more}, is_there=lambda: listens(port)))
    return process.pid


def open_contenders(stack: ExitStack, engine: Engine, nginx: str | None, litellm: str | None) -> list[Contender]:
    """Start everything that is here, the bare engine and our gateway first."""
    port = free_port("127.0.0.1")
    argv = [sys.executable, "-m", "benchmarks.gateway_cost", "--serve", str(port), engine.url]
    pid = _start(stack, argv, port)
    contenders = [Contender(name=_DIRECT, port=engine.port), Contender(name=_OURS, port=port, pid=pid)]
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if nginx is not None:
        port = free_port("127.0.0.1")
        config = folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(_NGINX.format(folder=folder, engine=engine.port, port=port, user=user))
        argv = [nginx, "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
        contenders.append(Contender(name="nginx", port=port, pid=_start(stack, argv, port)))
    if litellm is not None:
        port = free_port("127.0.0.1")
        models = [
            {
                "model_name": name,
                "litellm_params": {"model": f"openai/{name}", "api_base": f"{engine.url}/v1", "api_key": "x"},
            }
            for name in ("tiny", f"tiny@{STREAM_TPS}")
        ]
        config = folder / "litellm.json"  # JSON is YAML
        config.write_text(json.dumps({"model_list": models}))
        argv = [litellm, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        pid = _start(stack, argv, port, LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_MASTER_KEY=_KEY)
        contenders.append(Contender(name="litellm's proxy", port=port, pid=pid))
    return contenders


# --- Clients ---


def _request(model: str, n_tokens: int) -> bytes:
    body = {"model": model, "stream": True, "max_tokens": n_tokens, "messages": [{"role": "user", "content": "hi"}]}
    data = json.dumps(body).encode()
    fields = f"Host: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {_KEY}\r\nContent-Length: {len(data)}"
    return f"POST {CHAT} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + data


_END: Final = b"0\r\n\r\n"
_EVENT: Final = b'"content"'


class Asker:
    """A kept connection that measures one request after another, by blocking calls."""

    def __init__(self, contender: Contender) -> None:
        """Connect."""
        self._name = contender.name
        self._socket = socket.create_connection(("127.0.0.1", contender.port), timeout=_DEADLINE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def first_byte_s(self, request: bytes) -> float:
        """Return the time until the first event; read the answer to its end."""
        began_s = time.perf_counter()
        self._socket.sendall(request)
        data = b""
        first_s = None
        while not data.endswith(_END):
            part = self._socket.recv(65536)
            if not part:
                message = f"{self._name} closed the connection: {data[:200]!r}"
                raise SystemExit(message)
            data += part
            if first_s is None and b"data:" in data:
                first_s = time.perf_counter() - began_s
        if first_s is None or not data.startswith(b"HTTP/1.1 200"):
            message = f"{self._name} did not stream: {data[:200]!r}"
            raise SystemExit(message)
        return first_s

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class Streams(asyncio.Protocol):
    """A connection that sends one request after another, and counts what comes."""

    transport: asyncio.Transport

    def __init__(self, request: bytes, n_requests: int, done: asyncio.Future[None]) -> None:
        """Hold what to ask, and how often."""
        self._request, self._n_left, self._done = request, n_requests, done
        self._tail = b""
        self.n_events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count; ask again when an answer has ended."""
        data = self._tail + data
        self.n_events += data.count(_EVENT)
        self._tail = data[1 - len(_EVENT) :]
        if data.endswith(_END):
            self._tail = b""
            self._n_left -= 1
            if self._n_left > 0:
                self.transport.write(self._request)
            else:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Be done, or say that answers are missing."""
        if self._n_left > 0:
            self._done.set_exception(ConnectionError(f"{self._n_left} answers are missing: {exc}"))
        elif not self._done.done():
            self._done.set_result(None)


async def _stream(port: int, request: bytes, n_streams: int, n_requests: int) -> tuple[float, int]:
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(n_streams)]
    began_s = time.perf_counter()
    made = [
        await loop.create_connection(lambda end=end: Streams(request, n_requests, end), "127.0.0.1", port)  # type: ignore[misc] # a bound default
        for end in ends
    ]
    await asyncio.gather(*ends)
    seconds = time.perf_counter() - began_s
    return seconds, sum(protocol.n_events for _, protocol in made)


def stream(
    contender: Contender, *, model: str, n_tokens: int, n_streams: int, n_requests: int = 1
) -> tuple[float, int]:
    """Run streams side by side; return the seconds they took together, and the events that came."""
    seconds, n_events = asyncio.run(_stream(contender.port, _request(model, n_tokens), n_streams, n_requests))
    if n_events < _MIN_SEEN * n_tokens * n_streams * n_requests:
        message = f"{contender.name} passed on {n_events} of {n_tokens * n_streams * n_requests} tokens"
        raise SystemExit(message)
    return seconds, n_events


# --- What is measured ---


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def measure_first_byte(contenders: list[Contender], n_rounds: int) -> list[str]:
    """Print the time to the first byte, one request at a time; return the broken promises."""
    print(f"\ntime to first byte, ms, one request at a time, {n_rounds} rounds each in turn with the bare engine")
    print(f"  {'':<20}{'bare p50':>9}{'p99':>7}{'p50':>9}{'p99':>7}{'added p50':>11}{'p99':>7}{'us of a core':>14}")
    broken = []
    for contender in contenders[1:]:
        pairs, cpu_s = _ask_in_turn(contenders[0], contender, n_rounds)
        bare, own = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        added = [with_it - without for without, with_it in pairs]
        p50_s, p99_s = _quantile(added, 0.5), _quantile(added, 0.99)
        figures = [_quantile(bare, 0.5), _quantile(bare, 0.99), _quantile(own, 0.5), _quantile(own, 0.99), p50_s, p99_s]
        row = "".join(f"{1e3 * value:>{width}.2f}" for value, width in zip(figures, (9, 7, 9, 7, 11, 7), strict=True))
        print(f"  {contender.name:<20}{row}{1e6 * cpu_s / n_rounds:>14.0f}", flush=True)
        if contender.name == _OURS and (p50_s > MAX_ADDED_P50_S or p99_s > MAX_ADDED_P99_S):
            broken.append(f"time to first byte: {1e3 * p50_s:.2f} and {1e3 * p99_s:.2f} ms are added")
    return broken


def _ask_in_turn(bare: Contender, contender: Contender, n_rounds: int) -> tuple[list[tuple[float, float]], float]:
    """Return the times of both, round by round, and the processor time that the contender took, in seconds."""
    request = _request("tiny", 1)
    one, other = Asker(bare), Asker(contender)
    for _ in range(20):
        one.first_byte_s(request)
        other.first_byte_s(request)
    cpu_s = contender.cpu_s()
    pairs = []
    for n in range(n_rounds):
        if n % 2:
            without_s = one.first_byte_s(request)
            pairs.append((without_s, other.first_byte_s(request)))
        else:
            with_s = other.first_byte_s(request)
            pairs.append((one.first_byte_s(request), with_s))
    one.close()
    other.close()
    return pairs, contender.cpu_s() - cpu_s


class Streamed(NamedTuple):
    """One round of streams: seconds, events that came, processor seconds of what is in the way and of the client."""

    seconds: float
    n_events: int
    cpu_s: float
    client_s: float

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.n_events / self.seconds


def _stream_in_turn(
    contenders: list[Contender], n_rounds: int, *, model: str, n_tokens: int, n_streams: int
) -> dict[str, list[Streamed]]:
    """Return every contender's rounds; each round begins with another of them."""
    found: dict[str, list[Streamed]] = {contender.name: [] for contender in contenders}
    client = [psutil.Process()]
    for n in range(n_rounds):
        for k in range(len(contenders)):
            contender = contenders[(n + k) % len(contenders)]
            before_s, own_s = contender.cpu_s(), cpu_s(client)
            seconds, n_events = stream(contender, model=model, n_tokens=n_tokens, n_streams=n_streams)
            found[contender.name].append(
                Streamed(seconds, n_events, contender.cpu_s() - before_s, cpu_s(client) - own_s)
            )
    return found


def measure_streams(contenders: list[Contender], n_rounds: int) -> list[str]:
    """Print the throughput of many paced streams; return the broken promises."""
    found = _stream_in_turn(
        contenders, n_rounds, model=f"tiny@{STREAM_TPS}", n_tokens=STREAM_TPS * STREAM_S, n_streams=N_STREAMS
    )
    print(
        f"\n{N_STREAMS} streams at once, each paced at {STREAM_TPS} tokens/s, {STREAM_S} s, {n_rounds} rounds, medians"
    )
    print(f"  {'':<20}{'tokens/s':>9}{'of bare':>9}{'core':>8}")
    broken = []
    rates = {name: statistics.median(each.rate for each in rounds) for name, rounds in found.items()}
    for name, rounds in found.items():
        ratio = rates[name] / rates[_DIRECT]
        share = "" if name == _DIRECT else f"{statistics.median(each.cpu_s / each.seconds for each in rounds):>8.0%}"
        print(f"  {name:<20}{rates[name]:>9.0f}{ratio:>9.3f}{share}")
        if name == _OURS and ratio < MIN_THROUGHPUT:
            broken.append(f"throughput: {ratio:.3f} of the bare engine's")
    client = statistics.median(each.client_s / each.seconds for rounds in found.values() for each in rounds)
    print(f"  the client took {client:.0%} of a core")
    return broken


def measure_flood(contenders: list[Contender], n_tokens: int, n_rounds: int) -> None:
    """Print how many tokens a second get through when the engine has no pace at all."""
    print(f"\n8 streams at once without a pace, {n_tokens} tokens each, {n_rounds} rounds, medians")
    print(f"  {'':<20}{'tokens/s':>9}{'us of a core each':>20}")
    found = _stream_in_turn(contenders, n_rounds, model="tiny", n_tokens=n_tokens, n_streams=8)
    for name, rounds in found.items():
        cost_us = 1e6 * statistics.median(each.cpu_s / each.n_events for each in rounds)
        each_us = "" if name == _DIRECT else f"{cost_us:>20.1f}"
        print(f"  {name:<20}{statistics.median(each.rate for each in rounds):>9.0f}{each_us}", flush=True)


def measure_memory(ours: Contender, n_requests: int) -> list[str]:
    """Print the gateway's memory over many requests; return the broken promises."""
    print(f"\nmemory over {n_requests} streamed requests, 8 at once")
    n_steps = 10
    sizes = []
    for step in range(1, n_steps + 1):
        began_s = time.perf_counter()
        stream(ours, model="tiny", n_tokens=4, n_streams=8, n_requests=n_requests // n_steps // 8)
        rate = n_requests / n_steps / (time.perf_counter() - began_s)
        sizes.append(ours.pss_bytes())
        print(
            f"  after {step * n_requests // n_steps:>7}: {sizes[-1] / MIB:6.1f} MiB, {rate:.0f} requests/s", flush=True
        )
    growth = sizes[-1] - sizes[0]
    return [f"memory grew by {growth / MIB:.1f} MiB"] if growth > MAX_GROWTH_BYTES else []


def measure_idle(contenders: list[Contender], seconds: float) -> None:
    """Print what each costs while nothing is asked of it."""
    before = [contender.cpu_s() for contender in contenders]
    time.sleep(seconds)
    print(f"\nidle for {seconds:.0f} s")
    for contender, before_s in zip(contenders, before, strict=True):
        if contender.pid is not None:
            share = (contender.cpu_s() - before_s) / seconds
            print(f"  {contender.name:<20}{contender.pss_bytes() / MIB:>7.1f} MiB PSS{share:>8.2%} of a core")


def main() -> int:
    """Measure; return 1 where a promise is broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1000, help="of single requests")
    parser.add_argument("--stream-rounds", type=int, default=3)
    parser.add_argument("--flood-tokens", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=100_000, help="while the memory is watched; 0: leave that out")
    parser.add_argument("--idle-s", type=float, default=10.0)
    parser.add_argument("--nginx", default=shutil.which("nginx"))
    parser.add_argument("--litellm", default=shutil.which("litellm"), help="its proxy: pip install 'litellm[proxy]'")
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "ENGINE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        asyncio.run(serve_gateway(int(args.serve[0]), args.serve[1]))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended, too
    engine = Engine()
    with ExitStack() as stack:
        stack.callback(engine.end)
        contenders = open_contenders(stack, engine, args.nginx, args.litellm)
        missing = {"nginx", "litellm's proxy"} - {contender.name for contender in contenders}
        for name in sorted(missing):
            print(f"{name} is not here: left out")
        measure_idle(contenders, args.idle_s)
        broken = measure_first_byte(contenders, args.rounds)
        broken += measure_streams(contenders, args.stream_rounds)
        measure_flood(contenders, args.flood_tokens, args.stream_rounds)
        if args.requests:
            broken += measure_memory(contenders[1], args.requests)
        measure_idle(contenders, args.idle_s)
    for each in broken:
        print(f"broken promise: {each}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
