"""Finds models in the cache of the hub's client.

The layout (huggingface.co/docs/hub/local-cache; huggingface_hub 1.x ``constants.py`` for the variables)::

    CACHE/models--OWNER--NAME/refs/main                 the commit that `main` was
    CACHE/models--OWNER--NAME/snapshots/COMMIT/FILE     a link to a blob, or a copy where links cannot be made
    CACHE/models--OWNER--NAME/blobs/ETAG                a file's bytes; of large files ETAG is their sha256
    CACHE/models--OWNER--NAME/blobs/ETAG.incomplete     a download that has not ended

CACHE is ``$HF_HUB_CACHE``, ``$HUGGINGFACE_HUB_CACHE`` or ``hub`` in ``$HF_HOME``, which is ``huggingface`` in ``$XDG_CACHE_HOME``
or ``~/.cache``. llama.cpp keeps its own downloads so, too. It must not know what a file holds.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from launcher.domain import WeightsFormat
from launcher.errors import ModelStoreError, UsageError
from launcher.fetch.names import HUB_PREFIX, RemoteFile, group_files, parse_name
from launcher.fetch.places import hub_cache_dir
from launcher.fetch.stores.shelf import StoredFile, StoredModel, Walk

STORE: Final = "the hub's cache"

_FOLDER: Final = "models--"
_COMMIT: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")
_MAX_REF_BYTES: Final = 4096
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SAFETENSORS_SHARD: Final = re.compile(r".+-(\d{5})-of-(\d{5})\.safetensors")
_TOKENIZERS: Final = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"})
_ENDINGS: Final = (".gguf", ".safetensors", ".json", ".model")
_DEPTH: Final = 2
"""Folders in a repository that are looked into: one per quantization is usual."""


def folders(environ: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """Return where the cache is."""
    return (hub_cache_dir(environ, home),)


def repository_of(folder: str) -> str | None:
    """Return the repository whose folder in the cache is called so; ``None`` where it is of none."""
    if not folder.startswith(_FOLDER):
        return None
    repository = folder.removeprefix(_FOLDER).replace("--", "/")
    try:
        return parse_name(f"{HUB_PREFIX}{repository}").repository
    except UsageError:
        return None


def look(walk: Walk) -> Iterator[StoredModel]:
    """Yield the models of the cache, by repository; what cannot be read is noted in ``walk.faults``."""
    for folder in walk.names():
        repository = repository_of(folder)
        if repository is None:
            continue
        try:
            yield from _look_repository(walk, folder, repository)
        except ModelStoreError as error:
            walk.faults.append(f"{HUB_PREFIX}{repository}: {error.message}")


def _look_repository(walk: Walk, folder: str, repository: str) -> Iterator[StoredModel]:
    seen: set[str] = set()
    for commit in _commits(walk, folder):
        files = whole_files(walk, (folder, "snapshots", commit), _ENDINGS)
        for model in (*_gguf(repository, files), *_safetensors(walk, (folder, "snapshots", commit), repository, files)):
            if model.name not in seen:  # an older revision of the same file is not what is asked for
                seen.add(model.name)
                yield model


def _commits(walk: Walk, folder: str) -> list[str]:
    """Return the snapshots: that of ``main`` first, then the others, by name."""
    there = [name for name in walk.names(folder, "snapshots") if _COMMIT.fullmatch(name)]
    content = walk.read(folder, "refs", "main", limit=_MAX_REF_BYTES) or b""
    main = content.decode("ascii", "replace").strip()
    return sorted(there, key=lambda name: (name != main, name))


def whole_files(walk: Walk, folder: tuple[str, ...], endings: tuple[str, ...]) -> dict[str, StoredFile]:
    """Return the files of a repository's folder that end so, by their paths in it; downloads under way are left out."""
    found: dict[str, StoredFile] = {}
    for parts in walk.files(*folder, depth=_DEPTH):
        name = "/".join(parts[len(folder) :])
        if not name.endswith(endings):
            continue
        try:
            located = walk.locate(*parts)
        except ModelStoreError as error:
            walk.faults.append(error.message)
            continue
        if located is None or located[0].name.endswith(".incomplete"):
            continue
        real, size_bytes = located
        sha256 = real.name if real.parent.name == "blobs" and _SHA256.fullmatch(real.name) else None
        # An engine finds a file's shards by its name, which the blob does not have.
        path = str(walk.root.joinpath(*parts))
        found[name] = StoredFile(path=path, name=name, size_bytes=size_bytes, sha256=sha256)
    return found


def _gguf(repository: str, files: Mapping[str, StoredFile]) -> Iterator[StoredModel]:
    yield from group_models(files, store=STORE, prefix=f"{HUB_PREFIX}{repository}", repository=repository)


def group_models(files: Mapping[str, StoredFile], *, store: str, prefix: str, repository: str) -> Iterator[StoredModel]:
    """Yield the GGUF models among a repository's files, which are given by their paths in it; side files are left out."""
    listed = (RemoteFile(path=name, size_bytes=file.size_bytes, sha256=file.sha256) for name, file in files.items())
    for group in group_files(listed):
        n_missing = group.n_shards - len(group.files)
        yield StoredModel(
            store=store,
            name=f"{prefix}:{group.title}",
            format=WeightsFormat.GGUF,
            files=tuple(files[file.path] for file in group.files),
            repository=repository,
            quantization=group.quantization,
            unusable=f"{n_missing} of its {group.n_shards} files are missing" if n_missing else "",
        )


def _safetensors(
    walk: Walk, snapshot: tuple[str, ...], repository: str, files: Mapping[str, StoredFile]
) -> Iterator[StoredModel]:
    """Yield the folder of a snapshot as a model, where it has safetensors at its top."""
    names = [name for name in files if "/" not in name]
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        return
    yield StoredModel(
        store=STORE,
        name=f"{HUB_PREFIX}{repository}",
        format=WeightsFormat.SAFETENSORS,
        files=tuple(files[name] for name in names),
        repository=repository,
        folder=str(walk.root.joinpath(*snapshot)),
        unusable=_why_not_whole(names, weights),
    )


def _why_not_whole(names: list[str], weights: list[str]) -> str:
    shards = [match for name in weights if (match := _SAFETENSORS_SHARD.fullmatch(name))]
    expected = max((int(match[2]) for match in shards), default=0)
    if len(shards) < expected:
        return f"{expected - len(shards)} of its {expected} files are missing"
    if "config.json" not in names:
        return "its config.json is missing"
    return "" if _TOKENIZERS & set(names) else "its tokenizer is missing"
