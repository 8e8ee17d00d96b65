"""The two digests by which servers say what a file is.

It must not know where a file is from.
"""

import hashlib
import os
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from launcher.units import MIB

_CHUNK_BYTES: Final = 4 * MIB


class DigestKind(StrEnum):
    """How a digest is computed."""

    SHA256 = "sha256"
    GIT_SHA1 = "git-sha1"
    """Git's name of a file: SHA-1 over its size and its bytes. Hubs tell no other one of small files."""


class Hasher(Protocol):
    """A digest that is being computed."""

    def update(self, data: bytes, /) -> None:
        """Take further bytes."""

    def hexdigest(self) -> str:
        """Return the digest of what came."""


def new_hasher(kind: DigestKind, size_bytes: int | None) -> Hasher:
    """Return what hashes a file of this size."""
    match kind:
        case DigestKind.SHA256:
            return hashlib.sha256()
        case DigestKind.GIT_SHA1:
            hasher = hashlib.sha1(usedforsecurity=False)  # the hub knows no other; small files without weights
            hasher.update(b"blob %d\0" % (size_bytes or 0))
            return hasher


def hash_of(path: Path, kind: DigestKind) -> str:
    """Return the digest of a whole file."""
    with path.open("rb") as file:
        hasher = new_hasher(kind, os.fstat(file.fileno()).st_size)
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
