"""Read a log within bounds: its beginning and its end, from a file or a pipe.

It must not know what stands in it.
"""

import os
import shlex
import stat
from collections import deque
from typing import Final, NamedTuple

from launcher.errors import UsageError
from launcher.resources import from_home

HEAD_BYTES: Final = 1 << 20
TAIL_BYTES: Final = 3 << 20
"""What is between beginning and end is left out: the end tells why an engine ended, the beginning how it was started."""
_CHUNK_BYTES: Final = 1 << 16
_STDIN: Final = "-"
_STDIN_FD: Final = 0
_PACKED: Final = {
    b"\x1f\x8b": "zcat", b"\xfd7zXZ": "xzcat", b"(\xb5/\xfd": "zstdcat", b"BZh": "bzcat", b"LPKSHHRH": "journalctl --file",
}  # fmt: skip
"""How files begin that logs are rotated into, and the journal's own; and what prints their lines."""
_HELP: Final = "name a log file, or `-` for what comes from a pipe"


class ReadLog(NamedTuple):
    """The text that was kept, and how many bytes there were."""

    text: str
    n_bytes: int
    is_cut: bool


def read_log(source: str) -> ReadLog:
    """Return the text of a file, or of standard input for ``-``; undecodable bytes are replaced.

    Raises:
        UsageError: it is no file that can be read: a folder, a device, not there, not ours; or its lines are packed.
    """
    if source == _STDIN:
        try:
            return _read(_STDIN_FD, source)
        except OSError as error:  # closed, or a folder
            message = f"cannot read standard input: {(error.strerror or str(error)).lower()}"
            raise UsageError(message, help=_HELP) from error
    path = from_home(source)
    try:
        # A pipe that nobody writes to would otherwise keep us waiting before anything is known of it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        message = f"cannot read the log `{ascii(source)[1:-1]}`: {(error.strerror or str(error)).lower()}"
        raise UsageError(message, help=_HELP) from error
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            message = f"`{ascii(source)[1:-1]}` is no log file"
            raise UsageError(message, help=_HELP)
        os.set_blocking(fd, True)
        return _read(fd, source)
    except OSError as error:
        message = f"cannot read the log `{ascii(source)[1:-1]}`: {(error.strerror or str(error)).lower()}"
        raise UsageError(message, help=_HELP) from error
    finally:
        os.close(fd)


def _read(fd: int, source: str) -> ReadLog:
    """Keep the first and the last bytes of what comes, however much there is."""
    head = bytearray()
    tail: deque[bytes] = deque()
    n_tail = n_bytes = 0
    while chunk := os.read(fd, _CHUNK_BYTES):
        n_bytes += len(chunk)
        taken = chunk[: HEAD_BYTES - len(head)]
        head += taken
        if rest := chunk[len(taken) :]:
            tail.append(rest)
            n_tail += len(rest)
        while tail and n_tail - len(tail[0]) >= TAIL_BYTES:
            n_tail -= len(tail.popleft())
    for mark, program in _PACKED.items():
        if head.startswith(mark):
            message = f"`{ascii(source)[1:-1]}` is no text, but what `{program}` reads"
            packed = "FILE" if source == _STDIN else shlex.quote(source)
            raise UsageError(message, help=f"`{program} {packed} | launch explain -` reads its lines")
    is_cut = n_bytes > len(head) + n_tail
    between = b"\n" if is_cut else b""  # so that no line is made of two
    data = bytes(head) + between + b"".join(tail)
    return ReadLog(text=data.decode(errors="replace"), n_bytes=n_bytes, is_cut=is_cut)
