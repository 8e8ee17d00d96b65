"""Asks llama-server what a configuration would take: its own memory breakdown, which it prints before it reads weights.

It must not know what a planner predicts. Everything it starts is ended with the block that started it.
"""

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.programs import listens, running
from launcher.domain import Engine, EngineInstall
from launcher.inventory import probe_inventory
from launcher.supervisor.checks import free_port

_TITLE: Final = "common_memory_breakdown_print"
_ROW: Final = re.compile(r"\|\s+- (\S+)[^|]*\|[^|]*?(\d+)\s*=\s*(\d+)\s*\+\s*(\d+)\s*\+\s*(\d+)")
_DEADLINE_S: Final = 120.0


class Row(NamedTuple):
    """One memory of a breakdown, in MiB, each figure rounded down by the engine."""

    total: int
    model: int
    context: int
    compute: int


class Account(NamedTuple):
    """What was said, by the engine's names (``RPC0``, ``Host``), and the seconds from the start to its last row."""

    rows: dict[str, Row]
    seconds: float


class Server(NamedTuple):
    """A llama-server: how it is started, and the environment it needs beyond the inherited one."""

    argv: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def name(self) -> str:
        """The binary and the folder that tells builds apart."""
        return "/".join(Path(self.argv[0]).parts[-3:])

    @property
    def rpc_server(self) -> Path:
        """The worker program that the same build brings."""
        return Path(self.argv[0]).with_name("ggml-rpc-server")


def find_servers(named: Sequence[Path]) -> list[Server]:
    """Return the servers to ask: those named, and the one that ``launch`` would start here."""
    servers = [Server((str(path),), {}) for path in named]
    installs: tuple[EngineInstall, ...] = probe_inventory().engines or ()
    found = [install for install in installs if install.engine is Engine.LLAMA_SERVER]
    servers += [Server(install.argv, install.env) for install in found[:1]]
    if not servers:
        message = "no llama-server was found: name one with --server"
        raise SystemExit(message)
    return servers


def read_account(server: Server, arguments: Sequence[str]) -> Account:
    """Start a server, read its breakdown and end it before it loads anything.

    Raises:
        RuntimeError: it ended, or printed nothing of the kind in two minutes.
    """
    port = free_port("127.0.0.1")
    argv = [*server.argv, *arguments, "--fit", "on", "-lv", "4", "--no-warmup", "--port", str(port)]
    start = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - a llama-server that was found or named
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **server.env},
    )
    with process:
        patience = threading.Timer(_DEADLINE_S, process.kill)  # one that prints nothing would be read for ever
        patience.start()
        try:
            rows, seconds, log = _read_rows(process, start)
        finally:
            patience.cancel()
            process.kill()
    if not rows:
        message = f"no breakdown from {' '.join(argv)}:\n{''.join(log[-8:])}"
        raise RuntimeError(message)
    return Account(rows, seconds)


def _read_rows(process: "subprocess.Popen[str]", start: float) -> tuple[dict[str, Row], float, list[str]]:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    rows: dict[str, Row] = {}
    log: list[str] = []
    seconds = 0.0
    for line in process.stdout:
        log.append(line)
        match = _ROW.search(line) if _TITLE in line else None
        if match is not None:
            total, model, context, compute = (int(figure) for figure in match.groups()[1:])
            rows[match[1]] = Row(total, model, context, compute)
            seconds = time.perf_counter() - start
        elif rows:
            break
    return rows, seconds, log


@contextmanager
def rpc_workers(server: Server, ports: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Run one worker per port on loopback; give the arguments that make a server of the same build use them."""
    env = {**os.environ, **server.env}
    with ExitStack() as stack:
        for port in ports:
            argv = [str(server.rpc_server), "-H", "127.0.0.1", "-p", str(port)]
            stack.enter_context(running(argv, env, is_there=partial(listens, port)))
        yield ("--rpc", ",".join(f"127.0.0.1:{port}" for port in ports))
