"""One writer for one file, among all processes of this machine.

The lock is the kernel's: it is gone with whoever held it, however that ended. It must not know what is written.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

POLL_S: Final = 0.2


@contextmanager
def exclusive(
    path: Path, *, waiting: Callable[[], None], sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Hold the lock of the file at ``path`` for as long as the block lasts; its folder must be there.

    While another process holds it, ``waiting`` is called a few times a second. The file stays: a lock on a name that
    is removed would let two in.

    Raises:
        OSError: it cannot be opened, or its file system knows no locks.
    """
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode=0o664)
        try:
            while not _take(lock):
                waiting()
                sleep(POLL_S)
            if _is_at(lock, path):  # else somebody removed it meanwhile, and locks another
                yield
                return
        finally:
            os.close(lock)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(lock: int, path: Path) -> bool:
    held = os.fstat(lock)
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
