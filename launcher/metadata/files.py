"""Opens weights files so that every fault names the file.

It must not know any format.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from launcher.errors import MetadataError, WeightsMissingError

_LABEL_CHARS: Final = 80


class ByteStream(Protocol):
    """What the readers ask of a stream: any open binary file has it."""

    def read(self, n_bytes: int, /) -> bytes:
        """Return at least one and at most ``n_bytes`` bytes; none at the end of the file."""

    def seek(self, offset: int, /) -> int:
        """Stand at ``offset`` bytes from the start."""


@contextmanager
def open_weights(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open the regular file at ``path``; give the stream and its size in bytes. A fault inside is told with the path.

    Raises:
        WeightsMissingError: nothing is there.
        MetadataError: it is no regular file, or it cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            yield stream, _regular_size(stream)
    except MetadataError as error:
        error.details = (*error.details, f"in {label(str(path), limit=4096)}")
        raise
    except (FileNotFoundError, NotADirectoryError):
        msg = f"there is no file `{label(str(path), limit=4096)}`"
        raise WeightsMissingError(msg, help="check the path; `launch list` shows the models that are known") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        msg = f"the file `{label(str(path), limit=4096)}` cannot be read: {reason}"
        raise MetadataError(msg, offset=0, field="file") from error


def _regular_size(stream: BinaryIO) -> int:
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode):
        msg = "not a regular file"
        raise MetadataError(msg, offset=0, field="file")
    return status.st_size


def label(name: str, *, limit: int = _LABEL_CHARS) -> str:
    """Return a name from a file as it may be shown: without control characters, and not longer than ``limit``."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
