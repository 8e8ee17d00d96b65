"""What somebody could have put where our files are to be, and what must be true of a tree afterwards."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

CONTENT: Final = b"the victim's own\n"

KINDS: Final = (
    "link to a file",
    "link to a folder",
    "link to nothing",
    "second name of a file",
    "pipe",
    "socket",
    "folder",
    "file open to all",
    "device",
    *(("file of somebody else",) if os.geteuid() == 0 else ()),
)
"""The last can be made by root alone."""
SOMEBODY: Final = 54321


class Victim:
    """What must not be read, written, waited for or removed: a file, and a folder with one in it."""

    def __init__(self, folder: Path) -> None:
        """Make it in ``folder``, open to be looked at by whoever does the harm."""
        self.folder = folder / "victim"
        self.folder.mkdir()
        self.file = self.folder / "file"
        self.file.write_bytes(CONTENT)
        self.file.chmod(0o644)
        self.folder.chmod(0o755)

    def plant(self, kind: str, where: Path) -> None:
        """Put it where a file of ours is to be; its folder is made, as open as anybody could have left it."""
        where.parent.mkdir(parents=True, exist_ok=True)
        if where.is_symlink() or where.is_file():
            where.unlink()
        makers: dict[str, Callable[[], object]] = {
            "link to a file": lambda: where.symlink_to(self.file),
            "link to a folder": lambda: where.symlink_to(self.folder),
            "link to nothing": lambda: where.symlink_to(self.folder / "made"),
            "second name of a file": lambda: where.hardlink_to(self.file),
            "pipe": lambda: os.mkfifo(where),
            "socket": lambda: _make_socket(where),
            "folder": where.mkdir,
            "device": lambda: where.symlink_to("/dev/full"),
            "file open to all": where.touch,
            "file of somebody else": where.touch,
        }
        makers[kind]()
        if kind == "file open to all":
            where.chmod(0o666)
        elif kind == "file of somebody else":
            os.chown(where, SOMEBODY, SOMEBODY)

    def is_whole(self) -> bool:
        """Whether nothing of it was changed."""
        same = self.file.read_bytes() == CONTENT and stat.S_IMODE(self.file.stat().st_mode) == 0o644
        return same and stat.S_IMODE(self.folder.stat().st_mode) == 0o755 and [*self.folder.iterdir()] == [self.file]


def _make_socket(where: Path) -> None:
    """Bind by a short way: a path below a test's folder may be longer than a socket's name can be."""
    fd = os.open(where.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{fd}/{where.name}")
    finally:
        os.close(fd)


def open_to_others(root: Path) -> Iterator[str]:
    """Yield what lies below a folder, itself included, that others could read or write, or that is not ours."""
    for path in (root, *sorted(root.rglob("*"))):
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            continue
        if info.st_uid != os.geteuid():
            yield f"{path} belongs to {info.st_uid}"
        if stat.S_IMODE(info.st_mode) & 0o077:
            yield f"{path} has mode {stat.S_IMODE(info.st_mode):03o}"
