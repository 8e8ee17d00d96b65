"""The files of a model's weights that are on this machine: size, readability, how fast they come from their disk.

It must not know of plans, nor read a whole file: what it reads of one is a few tens of MiB.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from launcher.doctor.facts import WeightsFile
from launcher.doctor.probes.files import listed
from launcher.domain import Artifact

_SAMPLE_BYTES: Final = 32 << 20
_CHUNK_BYTES: Final = 1 << 20
_SAMPLE_S: Final = 3.0


def probe_weights(
    artifact: Artifact, first: Path, what_changed: Callable[[Path], tuple[str, ...] | None] = lambda _: None
) -> Iterator[WeightsFile]:
    """Yield the files of an artifact whose first file, or folder, is at ``first``; the rate is measured on the largest.

    ``what_changed`` names what of a file changed since its digest was found; ``None`` where none is recorded.
    """
    published = {file.name.rpartition("/")[2]: file.size_bytes for file in artifact.files}
    paths = _paths(first, list(published))
    sizes = {path: _size(path) for path in paths}
    largest = max(paths, key=lambda path: sizes[path] or 0, default=None)
    for path in paths:
        error = _why_unreadable(path)
        changed = what_changed(path)
        sample = _measure(path) if path == largest and error is None else None
        yield WeightsFile(
            path=str(path),
            size_bytes=sizes[path],
            # A file that a profile names by its own path may be another than the published one.
            published_bytes=published.get(path.name),
            error=error,
            is_recorded=changed is not None,
            changed=", ".join(changed) if changed else None,
            read_bytes=None if sample is None else sample[0],
            read_s=None if sample is None else sample[1],
        )


def _paths(first: Path, names: list[str]) -> list[Path]:
    if first.is_dir():
        return listed(first, "*.safetensors") or listed(first, "*.gguf") or [first]
    beside = [first.with_name(name) for name in names]
    return beside if first in beside else [first]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _why_unreadable(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _measure(path: Path) -> tuple[int, float] | None:
    """Read a part from the middle of a file, which is asked to be forgotten first; return bytes and seconds.

    The kernel keeps pages that somebody has mapped, so that of weights in use the rate is that of memory: never too low.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        n_bytes = min(os.fstat(fd).st_size, _SAMPLE_BYTES)
        start = (os.fstat(fd).st_size - n_bytes) // 2
        os.posix_fadvise(fd, start, n_bytes, os.POSIX_FADV_DONTNEED)
        os.lseek(fd, start, os.SEEK_SET)
        began = time.monotonic()
        n_read = 0
        while n_read < n_bytes and time.monotonic() - began < _SAMPLE_S:
            chunk = os.read(fd, min(_CHUNK_BYTES, n_bytes - n_read))
            if not chunk:
                break
            n_read += len(chunk)
        return n_read, time.monotonic() - began
    except OSError:
        return None
    finally:
        os.close(fd)
