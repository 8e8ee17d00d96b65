"""Keep what an engine prints within bounds: bounded lines, a bounded ring, a size-bounded file.

It must not know what a line means. A disk that is full or broken costs log lines, never the engine.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from launcher.private import open_private

MAX_LINE_BYTES: Final = 8192
"""Longer lines are cut there: llama.cpp's own stay below 2 KiB, chat templates printed on one line do not."""
_CUT: Final = b" [...]"


class LineSplitter:
    """Turn chunks of bytes into lines of text; at most ``MAX_LINE_BYTES`` are ever held."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        """Call ``emit`` with each complete line, without its end."""
        self._emit = emit
        self._partial = b""
        self._skipping = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            self._take(piece)
            self.flush()
        self._take(rest)

    def _take(self, piece: bytes) -> None:
        if self._skipping:
            return
        self._partial += piece[: MAX_LINE_BYTES + 1]
        if len(self._partial) > MAX_LINE_BYTES:
            self._send(self._partial[:MAX_LINE_BYTES] + _CUT)
            self._partial = b""
            self._skipping = True

    def flush(self) -> None:
        """End the line that is under way: at a newline, or at the end of the stream."""
        if self._partial or not self._skipping:
            self._send(self._partial)
        self._partial = b""
        self._skipping = False

    def close(self) -> None:
        """Emit a last line that has no newline."""
        if self._partial:
            self.flush()

    def _send(self, line: bytes) -> None:
        text = line.rstrip(b"\r").decode("utf-8", errors="replace")
        self._emit("".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text))


class RotatingFile:
    """Append lines to a file that is moved to ``NAME.1`` when it is full: never more than two times ``max_bytes``.

    When the disk does not take a line, the line is dropped and ``on_fault`` is called, once until writing works again.
    """

    def __init__(self, path: Path, max_bytes: int, on_fault: Callable[[OSError], None]) -> None:
        """Open nothing yet: the first line does."""
        self._path = path
        self._max_bytes = max_bytes
        self._on_fault = on_fault
        self._fd: int | None = None
        self._size = 0
        self._faulty = False

    def write(self, line: str) -> None:
        """Append one line."""
        data = line.encode("utf-8", errors="replace") + b"\n"
        try:
            if self._fd is not None and self._size + len(data) > self._max_bytes:
                self._rotate()
            written = os.write(self._open(), data)
            self._size += written
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - what the next write would say
        except OSError as error:
            if not self._faulty:
                self._faulty = True
                self._on_fault(error)
            return
        self._faulty = False

    def _open(self) -> int:
        if self._fd is None:
            self._fd = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            self._size = os.fstat(self._fd).st_size
        return self._fd

    def _rotate(self) -> None:
        self.close()
        self._path.replace(f"{self._path}.1")

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
