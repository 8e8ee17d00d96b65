"""Looks into the folder of another program's store, never beyond it.

Nothing is written. What a link leads to is used only where it lies in the same store; listings and files are bounded;
whatever stands in the way is a ``ModelStoreError``. It must not know any store's layout.
"""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from msgspec import Struct

from launcher.domain import WeightsFormat
from launcher.errors import ModelStoreError
from launcher.metadata.files import label

MAX_ENTRIES: Final = 20_000
"""Names that are listed of one store. Assumed: twenty times what large ones have."""

_SHOWN: Final = 4096


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file of a store: its ``path`` as an engine has to be given it, and its ``name`` in its repository, if it has one.

    ``sha256`` is what the store says; nobody has compared it yet.
    """

    path: str
    name: str
    size_bytes: int
    sha256: str | None = None


class StoredModel(Struct, frozen=True, kw_only=True):
    """A model as a store has it.

    ``name`` is what a command calls it (``ollama:gemma2:27b``), ``store`` whose it is, in words ("Ollama's store").
    ``folder`` is given for safetensors. ``notes`` say what of it is left out; ``unusable`` why it cannot be served,
    empty where it can.
    """

    store: str
    name: str
    format: WeightsFormat
    files: tuple[StoredFile, ...]
    repository: str | None = None
    quantization: str | None = None
    folder: str | None = None
    notes: tuple[str, ...] = ()
    unusable: str = ""

    @property
    def size_bytes(self) -> int:
        """Sum of its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def path(self) -> str:
        """What an engine loads: the folder, else the first file; empty where there is none."""
        return self.folder or (self.files[0].path if self.files else "")


class Shelf(Struct, frozen=True, kw_only=True):
    """All that the stores of this machine hold, and in words what of them could not be read."""

    models: tuple[StoredModel, ...] = ()
    faults: tuple[str, ...] = ()


class Walk:
    """Reads within one store's folder, ``root``, and collects in ``faults`` what its user notes."""

    def __init__(self, root: Path, store: str, *, help: str | None = None) -> None:  # noqa: A002  as in a LauncherError
        """Stand at ``root``, which may itself be a link; ``help`` goes with "permission denied".

        Raises:
            ModelStoreError: it cannot be entered.
        """
        self.store = store
        self.faults: list[str] = []
        self._help = help
        self._n_left = MAX_ENTRIES
        try:
            self.root = root.resolve(strict=True)
            os.stat(self.root / ".")  # a folder that cannot be entered is told now, once  # noqa: PTH116
        except (OSError, RuntimeError, ValueError) as error:
            raise self._refused(root, error) from error
        if not str(self.root).isprintable():
            msg = f"{self.store} is at `{self._show(self.root)}`, a path that cannot be shown"
            raise ModelStoreError(msg, help="give the path of the weights themselves")

    def names(self, *parts: str) -> list[str]:
        """Return the sorted names in a folder of the store; none where there is no such folder."""
        folder = self._inside(*parts)
        if folder is None:
            return []
        try:
            with os.scandir(folder) as entries:
                found = [entry.name for entry in islice(entries, self._n_left + 1)]
        except NotADirectoryError:
            return []
        except OSError as error:
            raise self._refused(folder, error) from error
        if len(found) > self._n_left:
            msg = f"{self.store} at `{self._show(self.root)}` has more than {MAX_ENTRIES} entries"
            raise ModelStoreError(msg, help="give the path of the weights themselves")
        self._n_left -= len(found)
        if odd := [name for name in found if not name.isprintable()]:
            # Nobody can give such a name to a command, and one that is no UTF-8 cannot even be written as JSON.
            self.faults.append(
                f"{self.store} has names that cannot be shown, {label(odd[0])} for one: they are left out"
            )
        return sorted(name for name in found if name.isprintable())

    def files(self, *parts: str, depth: int) -> Iterator[tuple[str, ...]]:
        """Yield the parts of each path below a folder that may be a file, at most ``depth`` folders deeper."""
        for name in self.names(*parts):
            if depth and self._is_folder(self.root.joinpath(*parts, name)):
                yield from self.files(*parts, name, depth=depth - 1)
            else:
                yield (*parts, name)

    def locate(self, *parts: str) -> tuple[Path, int] | None:
        """Return where a file's bytes really lie, in the store, and its size; ``None`` where there is none.

        Raises:
            ModelStoreError: it leads out of the store, is no regular file, or cannot be looked at.
        """
        real = self._inside(*parts)
        if real is None:
            return None
        try:
            status = real.stat()
        except OSError as error:
            raise self._refused(real, error) from error
        if not stat.S_ISREG(status.st_mode):
            msg = f"`{self._show(real)}` in {self.store} is no regular file"
            raise ModelStoreError(msg, help=None)
        return real, status.st_size

    def read(self, *parts: str, limit: int) -> bytes | None:
        """Return the content of a file of at most ``limit`` bytes; ``None`` where there is none.

        Raises:
            ModelStoreError: as ``locate`` says, or it is larger.
        """
        found = self.locate(*parts)
        if found is None:
            return None
        try:
            # A pipe put in its place meanwhile would wait for a writer, a link lead elsewhere.
            with os.fdopen(os.open(found[0], os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise self._refused(found[0], error) from error
        if len(content) > limit:
            msg = f"`{self._show(found[0])}` in {self.store} has more than {limit} bytes"
            raise ModelStoreError(msg)
        return content

    @staticmethod
    def _is_folder(path: Path) -> bool:
        """Whether it is a folder itself: what a link leads to is not asked."""
        try:
            return stat.S_ISDIR(path.lstat().st_mode)
        except OSError:
            return False

    def _inside(self, *parts: str) -> Path | None:
        path = self.root.joinpath(*parts)
        try:
            real = path.resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a ring of links, before Python 3.13
            raise self._refused(path, error) from error
        if not real.is_relative_to(self.root):
            msg = f"`{self._show(path)}` leads out of {self.store}"
            raise ModelStoreError(msg, help="give the path of the weights themselves")
        return real

    def _refused(self, path: Path, error: Exception) -> ModelStoreError:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        help_ = self._help if isinstance(error, PermissionError) else None
        return ModelStoreError(f"{self.store} cannot be read at `{self._show(path)}`: {reason.lower()}", help=help_)

    @staticmethod
    def _show(path: Path) -> str:
        return label(str(path), limit=_SHOWN)
