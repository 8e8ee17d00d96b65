"""Hold the supervisor's end of a guard: start it, pass on its reports and its engine's output, send it commands.

It must not know phases, restarts, or what output means.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from launcher.inventory.environment import inherited
from launcher.store import identify
from launcher.supervisor import guard
from launcher.supervisor.logs import LineSplitter
from launcher.supervisor.processes import TOKEN_VARIABLE

_CHUNK: Final = 1 << 16
_GUARD_EXIT_S: Final = 5.0


class Tether:
    """One guard and, through it, one engine. Belongs to the running event loop."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        record_path: Path,
        token: str,
        orphan_grace_s: float,
        on_report: Callable[[dict[str, int | str]], None],
        on_line: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Start the guard and ask it to start ``argv`` in the environment ``env``.

        ``on_report`` gets the guard's reports; ``on_lost`` is called once if the guard ends without ``gone``.

        Raises:
            OSError: no process or pipe can be had.
        """
        self.token = token
        self._on_report = on_report
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reports = b""
        self._gone = False
        self._readers: dict[int, LineSplitter | None] = {}
        guard_argv = (sys.executable, "-I", "-S", guard.__file__)
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            control_out, self._control = _pipe(theirs, ours)
            self._status, status_in = _pipe(ours, theirs)
            self._out, out_in = _pipe(ours, theirs)
            self._err, err_in = _pipe(ours, theirs)
            passed = (control_out, status_in, out_in, err_in)
            self._popen = subprocess.Popen(  # noqa: S603 - our own program, by absolute path
                [*guard_argv, *map(str, passed), str(record_path), token, str(orphan_grace_s)],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err_in,
                start_new_session=True,
                env=inherited(),
            )
            ours.pop_all()
        for fd, splitter in (
            (self._out, LineSplitter(on_line)),
            (self._err, LineSplitter(on_line)),
            (self._status, None),
        ):
            os.set_blocking(fd, False)
            self._readers[fd] = splitter
            self._loop.add_reader(fd, self._read, fd)
        self.guard = identify(self._popen.pid)
        request = guard.encode_request(argv, {**env, TOKEN_VARIABLE: token})
        self._send(request)

    @property
    def pid(self) -> int:
        """The guard's number: the engine's tree is below it."""
        return self._popen.pid

    def terminate(self, grace_s: float) -> None:
        """Ask the engine's whole tree to end, and kill it after the grace."""
        self._send(f"terminate {grace_s}\n".encode("ascii"))

    def kill(self) -> None:
        """Kill the engine's whole tree."""
        self._send(b"kill\n")

    def kill_guard(self) -> None:
        """Kill the guard itself, which leaves its engine to whoever reclaims it."""
        self._popen.kill()

    def drain(self) -> None:
        """Read all output that the engine has written up to now."""
        for fd in (self._out, self._err):
            while self._read(fd):
                pass

    async def close(self) -> None:
        """Let go of the guard: what is left below it ends. Returns when the guard has ended."""
        self._drop_control()
        for fd in list(self._readers):
            self._finish(fd)
        try:
            await asyncio.to_thread(self._popen.wait, _GUARD_EXIT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            await asyncio.to_thread(self._popen.wait)

    def _send(self, data: bytes) -> None:
        """Write a command; the pipe holds 64 KiB and a start request may need more, so the guard is waited for."""
        if self._control >= 0:
            with contextlib.suppress(BrokenPipeError):
                while data:
                    data = data[os.write(self._control, data) :]

    def _drop_control(self) -> None:
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

    def _read(self, fd: int) -> bool:
        """Take one chunk from a pipe; say whether there was one."""
        if fd not in self._readers:
            return False
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        splitter = self._readers[fd]
        if not chunk:
            self._finish(fd)
        elif splitter is not None:
            splitter.feed(chunk)
        else:
            self._take_reports(chunk)
        return bool(chunk)

    def _finish(self, fd: int) -> None:
        splitter = self._readers.pop(fd)
        self._loop.remove_reader(fd)
        os.close(fd)
        if splitter is not None:
            splitter.close()
        elif not self._gone:
            self._gone = True
            self._on_lost()

    def _take_reports(self, chunk: bytes) -> None:
        *lines, self._reports = (self._reports + chunk).split(b"\n")
        for line in lines:
            report = json.loads(line)
            self._gone = self._gone or report["event"] == "gone"
            self._on_report(report)


def _pipe(reader_owner: contextlib.ExitStack, writer_owner: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    reader_owner.callback(os.close, reader)
    writer_owner.callback(os.close, writer)
    return reader, writer
