"""SIGKILL at random moments of starting and serving the real model: nothing stays, and the next serve works."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from launcher.domain import EngineInstall
from launcher.supervisor.checks import free_port

_ROUNDS: Final = 20
_MOMENTS_S: Final = 2.0
"""After the start; a warm serve of this model is ready after about one second."""
_DEADLINE_S: Final = 60.0

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.usefixtures("real_model")]


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextlib.contextmanager
def _started(launch: tuple[str, ...], environment: dict[str, str], port: int) -> Iterator[subprocess.Popen[str]]:
    """Run ``launch serve``; should the test give up on it, it is killed: nothing waits for it for ever."""
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            [*launch, "serve", "gemma3-270m", "--port", str(port), "--context", "512"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        stack.enter_context(process)
        stack.callback(_end, process)
        yield process


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for a process that was told to end; one that does not is killed, and that is a failure."""
    try:
        process.wait(_DEADLINE_S)
    except BaseException:
        process.kill()
        raise


def _victim(which: str, process: subprocess.Popen[str], environment: dict[str, str]) -> int | None:
    """Return the pid to kill: the supervisor's, or what its record says of guard or engine at this moment."""
    if which == "supervisor":
        return process.pid
    record = Path(environment["LAUNCHER_STATE_DIR"]) / "instances" / "gemma3-270m" / "instance.json"
    try:
        body: dict[str, Any] = json.loads(record.read_text())
    except OSError:
        return None
    identity = body.get(which)
    return int(identity["pid"]) if identity else None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.mark.timeout(600)
def test_whatever_is_killed_nothing_stays_and_the_next_serve_works(
    launch: tuple[str, ...],
    environment: dict[str, str],
    survivors: Callable[[], list[psutil.Process]],
    llama_server: EngineInstall,
) -> None:
    """Twenty rounds: no process, no port and no lock is left, and a new serve of the same name becomes ready."""
    del llama_server
    dice = random.Random(20)  # noqa: S311 - moments, no secrets
    port = free_port("127.0.0.1")
    hits = 0
    for number in range(_ROUNDS):
        which = dice.choice(("supervisor", "supervisor", "engine", "guard"))
        at_s = dice.uniform(0.0, _MOMENTS_S)
        with _started(launch, environment, port) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(at_s)  # it does not end by itself: this waits for the moment
            assert process.poll() is None
            pid = _victim(which, process, environment)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    hits += 1
            if pid != process.pid:
                process.terminate()
        told = f"round {number}: {which} killed after {at_s:.2f} s"
        _await(lambda: not survivors(), f"{told}: processes stayed")
        assert _is_free(port), f"{told}: the port stayed taken"
        with _started(launch, environment, port) as again:
            assert again.stdout is not None
            assert f":{port}/v1" in again.stdout.readline(), f"{told}: the next serve did not become ready"
            again.send_signal(signal.SIGINT)
            assert again.wait(_DEADLINE_S) == 0, told
        _await(lambda: not survivors(), f"{told}: the next serve left processes")
    assert hits >= _ROUNDS // 2
