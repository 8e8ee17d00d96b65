"""Finds weights that other programs have on this machine, to be used where they lie.

Ollama's local store, LM Studio's folder and the cache of the hub's client are read, never written to. It must not know
plans, nor how weights are brought here.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from launcher.domain import Profile
from launcher.errors import ModelStoreError
from launcher.fetch.names import HUB_PREFIX, parse_name
from launcher.fetch.stores import hub_cache, lm_studio, ollama
from launcher.fetch.stores.finding import checked, find, mark_found, profile_of_repository, profile_of_tag, relatives
from launcher.fetch.stores.shelf import Shelf, StoredFile, StoredModel, Walk

__all__ = [
    "PREFIXES",
    "Shelf",
    "Stored",
    "StoredFile",
    "StoredModel",
    "checked",
    "find",
    "look",
    "mark_found",
    "read_stored",
    "relatives",
]

PREFIXES: Final = (ollama.PREFIX, lm_studio.PREFIX)
"""How names begin that are of a store."""


class Stored(Struct, frozen=True, kw_only=True):
    """A model of a store as a profile, whose it is, and what of it is left out."""

    profile: Profile
    store: str
    notes: tuple[str, ...] = ()


def look(environ: Mapping[str, str] = os.environ) -> Shelf:
    """Return what the stores of this machine hold: names and sizes; no header is read, and no digest compared.

    What cannot be read is in ``faults``, and hides nothing else. Where two programs have a file, the hub's cache goes before
    LM Studio's folder and Ollama's store.
    """
    home = Path(environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111  Path.home() fails where there is none
    stores: tuple[tuple[str, tuple[Path, ...], Callable[[Walk], Iterator[StoredModel]], str | None], ...] = (
        (hub_cache.STORE, hub_cache.folders(environ, home), hub_cache.look, None),
        (lm_studio.STORE, lm_studio.folders(home), lm_studio.look, None),
        (ollama.STORE, ollama.folders(environ, home), ollama.look, ollama.HELP),
    )
    models: list[StoredModel] = []
    faults: list[str] = []
    seen: set[Path] = set()
    for store, folders, read, help_ in stores:
        for folder in folders:
            if not folder.is_absolute():
                continue
            try:
                walk = _open(folder, store, help_)
                if walk is None or walk.root in seen:
                    continue
                seen.add(walk.root)
                try:
                    models.extend(read(walk))
                finally:
                    faults.extend(walk.faults)
            except ModelStoreError as error:
                faults.append(error.message if error.help is None else f"{error.message}; {error.help}")
    return Shelf(models=tuple(models), faults=tuple(dict.fromkeys(faults)))


def _open(folder: Path, store: str, help_: str | None) -> Walk | None:
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        pass  # said with its reason below
    return Walk(folder, store, help=help_)


def read_stored(name: str, shelf: Shelf | None = None) -> Stored:
    """Describe what ``ollama:MODEL:TAG``, ``lmstudio:PUBLISHER/REPOSITORY[:FILE.gguf]`` or ``hf:OWNER/NAME`` is here.

    A quantization behind a repository's name is for the caller to choose by: all that are there are described.

    Raises:
        UsageError: it is no such name.
        ModelStoreError: it is here and cannot be served.
        MetadataError, WeightsMissingError: it is not here, or not whole.
    """
    shelf = look() if shelf is None else shelf
    if name.startswith(ollama.PREFIX):
        profile, notes = profile_of_tag(ollama.parse_tag(name.removeprefix(ollama.PREFIX)), shelf)
        return Stored(profile=profile, store=ollama.STORE, notes=notes)
    if name.startswith(lm_studio.PREFIX):
        repository, selector = lm_studio.parse_model(name.removeprefix(lm_studio.PREFIX))
        profile, notes = profile_of_repository(
            repository, selector, shelf, prefix=lm_studio.PREFIX, stores=(lm_studio.STORE,)
        )
    else:
        parsed = parse_name(name)
        everywhere = (hub_cache.STORE, lm_studio.STORE, ollama.STORE)
        profile, notes = profile_of_repository(
            parsed.repository, parsed.selector, shelf, prefix=HUB_PREFIX, stores=everywhere
        )
    names = dict.fromkeys(artifact.store or "" for artifact in profile.artifacts)
    return Stored(profile=profile, store=" and ".join(names), notes=notes)
