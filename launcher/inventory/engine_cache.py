"""What was learned of an engine's binary, remembered on disk until the binary changes.

It must not know how it was learned. Free memory is never kept here. A file that cannot be read, is damaged or was
written by another version counts as absent: the engine is asked again and the file rewritten.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from launcher.domain import SCHEMA_VERSION
from launcher.private import make_private, read_own

_LIBRARY_PREFIXES: Final = ("libllama", "libggml", "libmtmd")
_EDGE_BYTES: Final = 1 << 16
_MAX_BYTES: Final = 1 << 20
"""Of what is kept of one binary: its options take some tens of KiB."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The facts of one binary; ``fingerprint`` says of which."""

    path: str
    fingerprint: str
    version: str | None
    build: str
    flags: frozenset[str]
    schema_version: int = SCHEMA_VERSION


def fingerprint(binary: Path) -> str:
    """Return a value that changes when the binary or a library beside it is replaced; it reads no content.

    The libraries count because llama.cpp's programs can be of 18 KB, with all the code in libraries beside them, so
    that an update leaves the program's own size as it was.

    Raises:
        OSError: there is no such file.
    """
    stats = [(path.name, path.stat()) for path in _files(binary)]
    text = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def build_id(binary: Path, version: str | None) -> str:
    """Return what identifies a build wherever and whenever it is installed.

    A hash of the version it tells, and of size, first and last 64 KiB of the program and of the libraries beside it: a
    version alone may be ``build 0, commit unknown``, and a linker's build id stands in the first 64 KiB.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(repr(version).encode())
    for path in _files(binary):
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(f"{path.name} {size}".encode())
            digest.update(stream.read(_EDGE_BYTES))
            stream.seek(max(0, size - _EDGE_BYTES))
            digest.update(stream.read(_EDGE_BYTES))
    return digest.hexdigest()[:16]


def _files(binary: Path) -> Iterator[Path]:
    resolved = binary.resolve()
    yield resolved
    libraries = {
        path.resolve() for path in resolved.parent.iterdir() if path.name.startswith(_LIBRARY_PREFIXES) and path.is_file()
    }  # fmt: skip
    yield from sorted(libraries)


def read_capabilities(folder: Path, binary: Path, mark: str) -> Capabilities | None:
    """Return what is remembered of the binary whose ``fingerprint`` is ``mark``."""
    try:
        kept = msgspec.json.decode(read_own(_file(folder, binary), _MAX_BYTES), type=Capabilities)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    same = (kept.path, kept.fingerprint, kept.schema_version) == (str(binary.resolve()), mark, SCHEMA_VERSION)
    return kept if same else None


def write_capabilities(folder: Path, binary: Path, capabilities: Capabilities) -> None:
    """Remember, replacing what was known as one act; where the disk does not allow it, nothing is remembered."""
    with contextlib.suppress(OSError):
        make_private(folder)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(msgspec.json.encode(capabilities, order="deterministic"))
            Path(temporary).replace(_file(folder, binary))
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise


def _file(folder: Path, binary: Path) -> Path:
    """One file per binary, so that two launchers never rewrite each other's knowledge."""
    return folder / f"{hashlib.sha256(str(binary.resolve()).encode()).hexdigest()[:24]}.json"
