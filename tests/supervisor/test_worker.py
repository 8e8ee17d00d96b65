"""``launch worker`` over a small program that listens as llama.cpp's worker does: it listens, comes back, leaves nothing."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from launcher.store import find_instance
from launcher.supervisor.checks import free_port
from tests.fakes.harness import poll

_PROGRAM = """\
#!{python} -S
import socket, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
server = socket.create_server((words["--host"], int(words["--port"])))
print("Starting RPC server", *sys.argv[1:], flush=True)
while True:
    server.accept()[0].close()
"""


class Running:
    """A ``launch worker`` in the foreground."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        """Hold the command and its port."""
        self.process = process
        self.port = port

    def record(self) -> dict[str, Any]:
        """Return what `launch status` reads."""
        view = find_instance(f"worker-{self.port}")
        found: dict[str, Any] = msgspec.to_builtins(view.record)
        return found

    def worker(self) -> psutil.Process:
        """Return the process that listens."""
        return psutil.Process(self.record()["engine"]["pid"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama-server with a worker program beside it, and a state directory of the test's own."""
    for name in ("llama-server", "ggml-rpc-server"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(_PROGRAM).format(python=sys.executable))
        path.chmod(0o755)
    monkeypatch.setenv("LAUNCHER_LLAMA_SERVER", str(tmp_path / "llama-server"))
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@contextlib.contextmanager
def _worker(*words: str) -> Iterator[Running]:
    """Run a worker that listens; on leaving it is ended."""
    port = free_port("127.0.0.1")
    argv = [sys.executable, "-m", "launcher", "worker", "--port", str(port), "--threads", "1", *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"listens at 127.0.0.1:{port}" in process.stdout.readline()
            assert f"--rpc 127.0.0.1:{port}" in process.stdout.readline()
            yield Running(process, port)
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_listens_until_it_is_told_to_stop(number: signal.Signals) -> None:
    """It is listed as ready, warns, and Ctrl-C leaves nothing; the state says so."""
    with _worker("--device", "CPU") as running:
        worker = running.worker()
        assert running.record()["state"] == "ready"
        assert worker.cmdline()[-2:] == ["--device", "CPU"]
        running.process.send_signal(number)
        _, errors = running.process.communicate(timeout=20)
        assert running.process.returncode == 0
        assert "no authentication" in errors
        assert not worker.is_running()
        assert running.record()["state"] == "stopped"


@pytest.mark.usefixtures("folder")
def test_a_worker_that_dies_is_started_again() -> None:
    """At the same address, after a moment."""
    with _worker() as running:
        first = running.worker()
        first.kill()
        assert running.process.stdout is not None
        assert f"listens at 127.0.0.1:{running.port}" in running.process.stdout.readline()
        assert running.worker().pid != first.pid
        assert running.record()["n_restarts"] == 1


@pytest.mark.usefixtures("folder")
def test_nothing_outlives_a_killed_supervisor() -> None:
    """The guard ends the worker."""
    with _worker() as running:
        worker = running.worker()
        running.process.kill()
        assert poll(lambda: not worker.is_running())


@pytest.mark.usefixtures("folder")
def test_a_killed_guard_takes_the_worker_with_it() -> None:
    """What it left is ended before another is started."""
    with _worker() as running:
        worker = running.worker()
        os.kill(running.record()["guard"]["pid"], signal.SIGKILL)
        assert running.process.stdout is not None
        assert "listens at" in running.process.stdout.readline()
        assert _is_gone(worker)
        assert running.worker().pid != worker.pid


def _is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; whoever inherited it may not have buried it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "launcher", "worker", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("folder")
def test_a_port_in_use_is_named() -> None:
    """The error says who has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = _run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "error[port-in-use]" in done.stderr


def test_a_program_that_ends_at_once_is_given_up(folder: Path) -> None:
    """Twice, then the reason and what it printed."""
    (folder / "ggml-rpc-server").write_text("#!/bin/sh\necho error: unknown device: Foo >&2\nexit 1\n")
    done = _run("--port", str(free_port("127.0.0.1")), "--threads", "1")
    assert done.returncode == 1
    assert "error[engine-failed]: the worker ended (exit code 1), 2 times" in done.stderr
    assert "unknown device: Foo" in done.stderr


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (("--host", "8.8.8.8"), "no address of this machine or of a private network"),
        (("--host", "::"), "no IPv4 address"),
        (("--device", "CUDA0,,CUDA1"), "names an empty device"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], fact: str) -> None:
    """Wrong usage, before anything is started."""
    done = _run(*words)
    assert done.returncode == 2
    assert fact in done.stderr
    assert "help:" in done.stderr
