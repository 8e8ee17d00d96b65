"""Finds models in LM Studio's folder.

The layout (lmstudio.ai/docs/basics/import-model): ``MODELS/PUBLISHER/REPOSITORY/FILE.gguf``, as on the hub. A download that
has not ended is called ``FILE.gguf.part`` or ``downloading_FILE.gguf.part`` (lmstudio-bug-tracker #1477, #2291).

MODELS is ``downloadsFolder`` in ``HOME/settings.json``, else ``HOME/models`` (github.com/lmstudio-ai/lms,
``src/modelsFolder.ts``); HOME is what ``~/.lmstudio-home-pointer`` says, else ``~/.cache/lm-studio`` where that is, else
``~/.lmstudio`` (github.com/lmstudio-ai/lmstudio.js, ``findLMStudioHome.ts``). It must not know what a file holds.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from launcher.errors import ModelStoreError, UsageError
from launcher.fetch.names import HUB_PREFIX, parse_name
from launcher.fetch.stores.hub_cache import group_models, whole_files
from launcher.fetch.stores.shelf import StoredModel, Walk
from launcher.metadata.files import label
from launcher.units import MIB

PREFIX: Final = "lmstudio:"
STORE: Final = "LM Studio's store"

_MAX_SETTINGS_BYTES: Final = 4 * MIB
_MAX_POINTER_BYTES: Final = 4096


class _Settings(Struct, rename="camel"):
    downloads_folder: str = ""


def folders(home: Path) -> tuple[Path, ...]:
    """Return where LM Studio may have its models: where it has them now, then where it had them before."""
    homes = (_pointed(home), home / ".cache" / "lm-studio", home / ".lmstudio")
    found = [place for each in homes if each is not None for place in (_chosen(each), each / "models")]
    return tuple(dict.fromkeys(place for place in found if place is not None))


def _pointed(home: Path) -> Path | None:
    """Return the folder that the pointer names, if it is one."""
    with suppress(OSError, ValueError), (home / ".lmstudio-home-pointer").open("rb") as file:
        return _absolute(file.read(_MAX_POINTER_BYTES).decode().strip())
    return None


def _chosen(home: Path) -> Path | None:
    """Return the folder that the user chose, if settings that can be read name one."""
    with (
        suppress(OSError, msgspec.MsgspecError, ValueError, RecursionError),
        (home / "settings.json").open("rb") as file,
    ):
        settings = msgspec.json.decode(file.read(_MAX_SETTINGS_BYTES), type=_Settings)
        return _absolute(settings.downloads_folder)
    return None


def _absolute(text: str) -> Path | None:
    path = Path(text) if text.startswith("/") and text.isprintable() else None
    return path if path != Path("/") else None  # nobody keeps models so, and the whole system would be walked


def look(walk: Walk) -> Iterator[StoredModel]:
    """Yield the models of one folder, by publisher and repository; what cannot be read is noted in ``walk.faults``."""
    for publisher, name in _repositories(walk):
        repository = _repository(publisher, name)
        if repository is None:
            continue
        try:
            files = whole_files(walk, (publisher, name), (".gguf",))
        except ModelStoreError as error:
            walk.faults.append(error.message)
            continue
        yield from group_models(files, store=STORE, prefix=f"{PREFIX}{repository}", repository=repository)


def _repositories(walk: Walk) -> Iterator[tuple[str, str]]:
    for publisher in walk.names():
        if publisher.startswith("."):
            continue
        try:
            names = walk.names(publisher)
        except ModelStoreError as error:
            walk.faults.append(error.message)
            continue
        yield from ((publisher, name) for name in names)


def _repository(publisher: str, name: str) -> str | None:
    try:
        return parse_name(f"{HUB_PREFIX}{publisher}/{name}").repository
    except UsageError:
        return None


def parse_model(name: str) -> tuple[str, str]:
    """Return repository and selector of ``PUBLISHER/REPOSITORY[:QUANT|:FILE.gguf]``, without the prefix.

    Raises:
        UsageError: it is no such name.
    """
    try:
        parsed = parse_name(f"{HUB_PREFIX}{name}")
    except UsageError:
        msg = f"`{PREFIX}{label(name)}` is no name of a model in LM Studio"
        help_ = "write lmstudio:PUBLISHER/REPOSITORY[:QUANT]; `launch list --local` shows those here"
        raise UsageError(msg, help=help_) from None
    return parsed.repository, parsed.selector
