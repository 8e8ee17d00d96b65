"""Makes sure that a file has the sha256 that somebody promised, reading it once.

What was found is recorded with what the file system says of the file then; a change of that is a reason to read it again.
Records are in the cache, or where that cannot be written beside the state: who serves can write there, and would else read
weights anew for each engine. It must not know where a file is from.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from launcher.errors import WeightsMissingError
from launcher.folders import cache_dir
from launcher.metadata.files import label
from launcher.private import own_directory, read_own
from launcher.units import MIB

_CHUNK_BYTES: Final = MIB
"""Between two of them who waits can break the reading off: little enough for a slow disk."""
_MAX_RECORD_BYTES: Final = 64 * 1024
_TICK_NS: Final = 20_000_000
"""Two ticks of the slowest clock that a file's times are taken from (100 Hz)."""


class _Record(Struct, frozen=True, kw_only=True):
    """A digest, and the file as it was when its bytes were read.

    ``changed_ns`` (ctime) cannot be set by who rewrites a file and puts its time back; ``inode`` tells a file that was
    put in its place. The device's number is left out: it may differ after each boot.
    """

    sha256: str
    size_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int


def check_digest(
    path: Path,
    sha256: str,
    *,
    on_hash: Callable[[int], None] | None = None,
    on_read: Callable[[int], None] = lambda _: None,
) -> None:
    """Make sure that the file has this digest; ``on_hash`` is told its size in bytes before it is read.

    ``on_read`` is told how many bytes were read so far, after each piece of them; what it raises ends the reading.

    Raises:
        WeightsMissingError: it has another one, it cannot be read, or it changes while it is read.
    """
    path = path.resolve()
    try:
        if is_recorded(path, sha256):
            return
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            _let_tick_pass(status)
            before = _look(sha256, status)
            if on_hash is not None:
                on_hash(before.size_bytes)
            digest = hashlib.sha256()
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                on_read(stream.tell())
            after = _look(sha256, os.fstat(stream.fileno()))
    except OSError as error:
        msg = f"`{label(str(path), limit=4096)}` cannot be read: {error.strerror or error}"
        raise WeightsMissingError(msg, help="check its permissions and its disk") from error
    if before != after:
        msg = f"`{label(str(path), limit=4096)}` changed while its sha256 was computed"
        raise WeightsMissingError(msg, help="wait until whoever writes it has finished")
    if digest.hexdigest() != sha256.lower():
        msg = (
            f"`{label(str(path), limit=4096)}` does not have the sha256 that it should: it is damaged, or another file"
        )
        details = (f"it has {digest.hexdigest()}", f"it should have {label(sha256)}")
        raise WeightsMissingError(msg, help="remove it and download it again", details=details)
    _write(path, after)


def record_digest(path: Path, sha256: str) -> None:
    """Record what whoever wrote the file has computed meanwhile, so that it need not be read again."""
    path = path.resolve()
    _let_tick_pass(path.stat())
    _write(path, _look(sha256, path.stat()))


def is_recorded(path: Path, sha256: str) -> bool:
    """Return whether the file had this digest when it was read, and has not changed since."""
    path = path.resolve()
    try:
        now = _look(sha256, path.stat())
    except OSError:
        return False
    return now in _records(path)


def what_changed(path: Path) -> tuple[str, ...] | None:
    """Say what of a file is no longer as it was when its digest was found; ``None`` where none is recorded."""
    path = path.resolve()
    try:
        status = path.stat()
    except OSError:
        return None
    names = {
        "size_bytes": "size",
        "modified_ns": "time of its content",
        "changed_ns": "time of change",
        "inode": "file",
    }
    changes = [
        tuple(words for field, words in names.items() if getattr(record, field) != getattr(now, field))
        for record in _records(path)
        for now in (_look(record.sha256, status),)
    ]
    return min(changes, key=len, default=None)


def _let_tick_pass(status: os.stat_result) -> None:
    """Wait until a further change of the file would show in its times: within one tick of the clock two changes are one."""
    left_ns = status.st_ctime_ns + _TICK_NS - time.time_ns()
    if 0 < left_ns <= _TICK_NS:
        time.sleep(left_ns / 1e9)


def _look(sha256: str, status: os.stat_result) -> _Record:
    return _Record(
        sha256=sha256.lower(),
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
        inode=status.st_ino,
    )


def _folders() -> tuple[Path, Path]:
    from launcher.store import state_root  # noqa: PLC0415  for most plans no file is looked at

    return cache_dir() / "verified", state_root() / "verified"


def _record_name(path: Path) -> str:
    return f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"


def _records(path: Path) -> Iterator[_Record]:
    """Yield what is recorded of a file. That of somebody else is nothing: they could vouch for a file of their own."""
    for folder in _folders():
        with suppress(OSError, ValueError, RecursionError):  # no record, or one that somebody spoilt
            yield msgspec.json.decode(read_own(folder / _record_name(path), _MAX_RECORD_BYTES), type=_Record)


def _write(path: Path, record: _Record) -> None:
    """Keep the record in the first place that takes it: without it the file is read again, and nothing else is lost."""
    from launcher.store import replace_file  # noqa: PLC0415  as above

    for folder in _folders():
        with suppress(OSError):
            directory = own_directory(folder)
            try:
                replace_file(directory, _record_name(path), msgspec.json.encode(record))
            finally:
                os.close(directory)
            return
