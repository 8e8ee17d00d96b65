"""Makes and opens what is for its owner alone: folders of mode 0700, files of mode 0600, nothing through a link.

Whoever can write where our files are could have put a link, a second name of another file, a pipe or a device there: none
of these is opened, written to or waited for. It must not know what is kept in a file.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

_SAFE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Not through a link, not inherited, not as a terminal, and without waiting for whoever is at the other end of a pipe."""
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
UMASK: Final = 0o077
"""What a process of ours takes away from whatever it, or a library, or an engine creates."""


def close_to_others() -> None:
    """Let this process, and all that it starts, create files and folders for their owner alone."""
    os.umask(os.umask(UMASK) | UMASK)


def own_directory(path: Path) -> int:
    """Create a folder for its owner alone where it is missing, close one that is open to others, and open it.

    Raises:
        NotOursError: it belongs to another user.
        OSError: it cannot be made or opened, or something else stands there, a link among them.
    """
    make_private(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        if path.is_symlink():  # of which the kernel says no more than that it is no folder
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        raise
    try:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid():
            raise NotOursError(info.st_uid, path)
        if stat.S_IMODE(info.st_mode) & _OTHERS:
            os.fchmod(fd, 0o700)
    except OSError:
        os.close(fd)
        raise
    return fd


class NotOursError(PermissionError):
    """A file or folder belongs to another user, whose number is ``uid``."""

    def __init__(self, uid: int, path: str | Path) -> None:
        """Hold whose it is."""
        super().__init__(errno.EPERM, f"it belongs to user {uid}", str(path))
        self.uid = uid


def make_private(path: Path) -> None:
    """Make a folder and those above it that are missing, each for its owner alone, whatever the umask."""
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        make_private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        return


def open_private(path: str | Path, flags: int, *, directory: int | None = None) -> int:
    """Open a file of ours alone, created with mode 0600 where ``flags`` say so; one that was open to others is closed to them.

    ``path`` is relative to the open folder ``directory``, where one is given. ``O_TRUNC`` is heeded once it is known that the
    file is ours.

    Raises:
        NotOursError: it belongs to another user.
        OSError: it cannot be opened; it is a link, a pipe or a device; or it has another name elsewhere.
    """
    fd = os.open(path, (flags & ~os.O_TRUNC) | _SAFE, 0o600, dir_fd=directory)
    try:
        info = os.fstat(fd)
        _check_regular(info, path)
        if info.st_uid != os.geteuid():
            raise NotOursError(info.st_uid, path)
        if info.st_nlink != 1:
            raise PermissionError(errno.EPERM, "it has another name elsewhere", str(path))
        if stat.S_IMODE(info.st_mode) & _OTHERS:
            os.fchmod(fd, 0o600)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def create_private(path: str | Path, *, directory: int | None = None) -> int:
    """Create a file of mode 0600 for writing; what had its name is removed, never opened.

    Raises:
        OSError: it cannot be made, or a folder has its name.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path, dir_fd=directory)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=directory)


def open_regular(path: str | Path, *, directory: int | None = None) -> int:
    """Open a file for reading, whoever owns it, but nothing else: no link, no pipe, no folder.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    fd = os.open(path, os.O_RDONLY | _SAFE, dir_fd=directory)
    try:
        _check_regular(os.fstat(fd), path)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_own(path: Path, max_bytes: int) -> bytes:
    """Return the first bytes of a file that nobody else could have written: ours, and not writable by others.

    Raises:
        NotOursError: it belongs to another user.
        OSError: it cannot be opened, is no file, or others can write to it.
    """
    with open(open_regular(path), "rb") as file:
        info = os.fstat(file.fileno())
        if info.st_uid != os.geteuid():
            raise NotOursError(info.st_uid, path)
        if info.st_mode & _OTHERS_WRITE:
            raise PermissionError(errno.EPERM, "others can write to it", str(path))
        return file.read(max_bytes)


def _check_regular(info: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))


def find_open_parent(path: Path) -> Path | None:
    """Return the first folder above ``path`` in which anybody may rename what is there, ``None`` where there is none.

    That is: writable by everybody, without the sticky bit that leaves each name to its owner (``/tmp`` has it).
    """
    for parent in path.absolute().parents:
        with contextlib.suppress(OSError):
            mode = parent.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return parent
    return None
