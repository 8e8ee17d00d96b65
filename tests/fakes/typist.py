"""A person at a terminal: a command on a pseudo-terminal of its own, what is typed there, and what is seen."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

_DEADLINE_S: Final = 30.0
_ADOPT: Final = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"


class Typist:
    """A command that runs on a terminal."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], *, size: tuple[int, int], pipe_stdout: bool
    ) -> None:
        """Start it in a session of its own, whose terminal this is; with ``pipe_stdout`` its data goes elsewhere."""
        self._own, terminal = pty.openpty()
        self._terminal = terminal
        self.resize(*size, tell=False)
        self.before = termios.tcgetattr(terminal)
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ADOPT, *argv],
            stdin=terminal,
            stdout=subprocess.PIPE if pipe_stdout else terminal,
            stderr=terminal,
            env={**env, "TERM": "xterm"},
            start_new_session=True,
        )

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._own, text.encode())

    def resize(self, n_rows: int, n_columns: int, *, tell: bool = True) -> None:
        """Give the window another size."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", n_rows, n_columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def read(self, timeout_s: float = 0.05) -> str:
        """Take what came, if anything did."""
        if not select.select([self._own], [], [], timeout_s)[0]:
            return ""
        with suppress(OSError):  # nobody has the terminal open any more
            new = os.read(self._own, 1 << 16).decode("utf-8", "replace")
            self.seen += new
            return new
        return ""

    def await_text(self, pattern: str) -> str:
        """Read until a pattern has come; return all up to its end, and forget it."""
        end_s = time.monotonic() + _DEADLINE_S
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end_s, f"no {pattern!r} in {self.seen!r}"
            self.read()
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def settle(self) -> None:
        """Wait until the command waits: Python hears a signal at its prompt only then, not while it is about to."""
        end_s = time.monotonic() + _DEADLINE_S
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < end_s, "it never waits"
            self.read(0.01)

    def end(self) -> int:
        """Wait until it has ended; return its exit code."""
        end_s = time.monotonic() + _DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < end_s, f"it has not ended: {self.seen!r}"
            self.read()
        while self.read(0.0):
            pass
        return self.process.returncode

    def settings(self) -> list[Any]:
        """How the terminal is set now."""
        return termios.tcgetattr(self._terminal)

    def close(self) -> None:
        """End what still runs, and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._terminal)
        os.close(self._own)


@contextmanager
def typing(
    *argv: str, env: Mapping[str, str], size: tuple[int, int] = (24, 80), pipe_stdout: bool = False
) -> Iterator[Typist]:
    """Run a command on a terminal for as long as the block lasts."""
    typist = Typist(argv, env, size=size, pipe_stdout=pipe_stdout)
    try:
        yield typist
    finally:
        typist.close()
