"""Runs programs for a measurement until they answer, and ends them with the block that needs them.

It must not know what is measured, nor what a program is for.
"""

import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

LAUNCH: Final = str(Path(sys.executable).with_name("launch"))
"""This interpreter's `launch`: the one that is measured."""
_DEADLINE_S: Final = 120.0
_POLL_S: Final = 0.005
_GRACE_S: Final = 10.0


@contextmanager
def running(
    argv: Sequence[str], env: Mapping[str, str], *, is_there: Callable[[], bool]
) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Run a program; yield it and the seconds that passed until it was there.

    Raises:
        SystemExit: it ended before, or was not there after two minutes: nothing was measured.
    """
    began_s = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env) as process:  # noqa: S603 - the caller's words
        try:
            while not is_there():
                if process.poll() is not None or time.perf_counter() - began_s > _DEADLINE_S:
                    message = f"it did not become ready: {shlex.join(argv)}"
                    raise SystemExit(message)
                time.sleep(_POLL_S)
            yield process, time.perf_counter() - began_s
        finally:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def serving(words: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `launch serve`; yield it once it has printed its endpoint.

    Raises:
        SystemExit: it ended before.
    """
    argv = [LAUNCH, "serve", *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, text=True) as process:  # noqa: S603 - this project's own command
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            if not process.stdout.readline():
                message = f"launch serve did not become ready: {shlex.join(argv)}"
                raise SystemExit(message)
            yield process
        finally:
            process.terminate()


def answers(url: str, key: str | None) -> bool:
    """Whether a success is answered there to who bears the key."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5):  # noqa: S310 - http on loopback, by the callers
            return True
    except OSError:
        return False


def listens(port: int) -> bool:
    """Whether somebody accepts connections on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the processor time that they have taken together, in seconds, their children's left out."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def pss_bytes(processes: Sequence[psutil.Process]) -> int:
    """Return the memory that they hold together, of what is shared their share."""
    return sum(int(process.memory_full_info().pss) for process in processes)
