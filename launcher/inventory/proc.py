"""Run one program within bounds of time and output.

Only for questions that a program answers by itself (`--version`): engines that serve belong to the supervisor. It
must not know what is asked, nor judge the answer.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Final, NamedTuple

from launcher.inventory.environment import inherited
from launcher.inventory.text import printable

_POLL_S: Final = 0.05
"""How often to look whether a program ended whose output stays open, held by a child of its own."""

_REAP_S: Final = 5.0
"""A killed program is gone within milliseconds, unless it has much memory to give back (assumed)."""
_CHUNK_BYTES: Final = 1 << 16


class ProcResult(NamedTuple):
    """What came of it. ``exit_code`` is negative for a signal, ``None`` where the program could not be started."""

    exit_code: int | None
    stdout: str
    stderr: str
    timed_out: bool = False
    truncated: bool = False
    error: str | None = None
    """Why the program could not be started."""

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself, with success, within the bounds."""
        return self.exit_code == 0 and not self.timed_out and not self.truncated

    def describe(self, *, timeout_s: float) -> str:
        """Return the outcome as half a sentence, for a note: ``ended with exit code 1: no such option``."""
        if self.error is not None:
            return f"cannot be started: {self.error}"
        if self.timed_out:
            return f"did not answer within {timeout_s:g} s"
        if self.truncated:
            return "printed without end"
        last = next((line.strip() for line in reversed((self.stderr or self.stdout).splitlines()) if line.strip()), "")
        code = self.exit_code or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {printable(last[:200])}" if last else how


def run_bounded(
    argv: Sequence[str],
    *,
    timeout_s: float,
    max_output_bytes: int = 1 << 20,
    env: Mapping[str, str] | None = None,
) -> ProcResult:
    """Run ``argv`` without a shell and with empty standard input, and return what it printed.

    It runs in a session of its own, and nothing of that process group survives the call: not at the end, not after
    ``timeout_s`` seconds, not when it has printed more than ``max_output_bytes`` on one stream. ``env`` is laid over
    what any program inherits, which is without secrets. Text that is no UTF-8 is kept readable by replacement.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell; callers pass programs they found, with fixed options
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**inherited(), **(env or {})},
        )
    except (OSError, ValueError) as error:
        return ProcResult(None, "", "", error=getattr(error, "strerror", None) or str(error))
    with _released(process):
        try:
            captured = _capture(process, deadline=time.monotonic() + timeout_s, max_output_bytes=max_output_bytes)
        finally:
            _end_group(process)
    stdout, stderr = captured.stdout.decode(errors="replace"), captured.stderr.decode(errors="replace")
    return ProcResult(process.returncode, stdout, stderr, timed_out=captured.timed_out, truncated=captured.truncated)


class _Captured(NamedTuple):
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    truncated: bool = False


def _capture(process: subprocess.Popen[bytes], *, deadline: float, max_output_bytes: int) -> _Captured:
    """Read both streams until they end, the program is gone, or a bound is reached."""
    streams: list[IO[bytes]] = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    buffers = {stream.fileno(): bytearray() for stream in streams}
    timed_out = truncated = False
    with selectors.DefaultSelector() as selector:
        for fd in buffers:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and not (timed_out or truncated):
            gone = _has_ended(process)
            ready = selector.select(0 if gone else min(_POLL_S, max(0.0, deadline - time.monotonic())))
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                buffers[key.fd] += chunk
                truncated = truncated or len(buffers[key.fd]) > max_output_bytes
                if not chunk:
                    selector.unregister(key.fd)
            if gone and not ready:
                break
            timed_out = time.monotonic() >= deadline
        while not (timed_out or truncated or _has_ended(process)):  # the streams are closed, the program is not gone
            time.sleep(0.001)
            timed_out = time.monotonic() >= deadline
    stdout, stderr = (bytes(buffer[:max_output_bytes]) for buffer in buffers.values())
    return _Captured(stdout, stderr, timed_out, truncated)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether the program ended, without reaping it: its process group's number must stay its own."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextlib.contextmanager
def _released(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Close the streams at the end, as ``with process`` does, but without waiting for a program that cannot end."""
    try:
        yield
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group, then reap the program.

    One that hangs in the kernel, in a GPU's driver mostly, is not ended by any signal: it is left behind, and the system
    reaps it once the driver lets go of it.
    """
    # The group may hold nothing but a zombie, which some kernels answer with "no such process".
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        process.returncode = -signal.SIGKILL  # else its object would warn, and be kept, until it is gone
