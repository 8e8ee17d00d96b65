"""Where a file of a repository lies in the hub's cache, which every program that uses huggingface_hub shares.

Blobs are called after their content; a snapshot is a folder of links to them under the names of one commit. The layout:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache. It must not know how bytes get there.
"""

import errno
import os
from pathlib import Path
from typing import Final

from msgspec import Struct

from launcher.errors import DownloadError
from launcher.fetch.download import Place
from launcher.fetch.hub import REVISION

_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


class RepositoryFolder(Struct, frozen=True, kw_only=True):
    """The folder of one repository in the cache."""

    cache: Path
    repository: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return "--".join(("models", *self.repository.split("/")))

    @property
    def path(self) -> Path:
        """The folder."""
        return self.cache / self.name

    def place(self, blob: str) -> Place:
        """Return where the content with the name ``blob``, a digest, goes; huggingface_hub takes the same lock."""
        blobs = self.path / "blobs"
        return Place(
            path=blobs / blob,
            partial=blobs / f"{blob}.incomplete",
            lock=self.cache / ".locks" / self.name / f"{blob}.lock",
        )

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit."""
        return self.path / "snapshots" / commit

    def require_links(self) -> None:
        """Make sure, before gigabytes come, that they can be given their names: exFAT, for one, knows no links.

        Raises:
            DownloadError: the file system has none.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        probe = self.path / f".link.{os.getpid()}"
        probe.unlink(missing_ok=True)
        try:
            probe.symlink_to("blobs")
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            msg = f"the file system of {self.cache} has no symbolic links, which the hub's cache is made of"
            raise DownloadError(msg, help="name a cache on another one in $HF_HUB_CACHE") from error
        probe.unlink()

    def link(self, commit: str, file: str, blob: Path) -> Path:
        """Give a blob its name in a commit's snapshot, and return that path.

        Raises:
            DownloadError: something else than a link stands there.
        """
        path = self.snapshot(commit) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(blob, path.parent)
        if path.is_symlink() and os.readlink(path) == target:  # noqa: PTH115  as text: it may lead nowhere
            return path
        if path.exists() and not path.is_symlink():
            if not path.is_file():
                msg = f"{path} is in the way: it is no file"
                raise DownloadError(msg, help="remove it, or name another cache in $HF_HUB_CACHE")
            path.unlink()  # a copy, as in a cache that was on a file system without links: the checked one goes there
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(path)  # who looks sees the old link or the new one
        return path

    def point(self, commit: str) -> None:
        """Note which commit the main branch was at."""
        path = self.path / "refs" / REVISION
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.write_text(commit, encoding="ascii")
        temporary.replace(path)
