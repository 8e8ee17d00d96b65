"""What a shell offers where a value is being typed.

It must not fail nor ask a network: what cannot be read is not offered, and the shell's own file names take its place.
"""

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from launcher.domain import Profile

_Offers = list[tuple[str, str]]
"""Values with a few words on each, which some shells show."""
_NOT_PLAIN: Final = re.compile(r"[^\w .,:;/()+-]")
"""Zsh evaluates the words as its own, and Typer reads brackets in them as markup: nothing that means something to either is kept."""


def _beginning(offers: "Iterable[tuple[str, str]]", incomplete: str) -> _Offers:
    return [(value, _NOT_PLAIN.sub("", words)) for value, words in offers if value.startswith(incomplete)]


def _profiles() -> "tuple[Profile, ...]":
    from launcher.errors import LauncherError
    from launcher.profiles import load_all

    with suppress(LauncherError, OSError):
        return load_all(lambda _: None)
    return ()


def complete_model(incomplete: str) -> _Offers:
    """Offer the profiles; an alias is not offered, for shells end words at its colon."""
    return _beginning(((profile.name, profile.title) for profile in _profiles()), incomplete)


def complete_quantization(ctx: typer.Context, incomplete: str) -> _Offers:
    """Offer the quantizations of the profile that was named, or of all."""
    # Where an option still lacks its value, Click reads no further: what was named is among the words left over.
    named = ctx.params.get("name") or next(iter(ctx.args), None)
    profiles = _profiles()
    chosen = [profile for profile in profiles if named in (profile.name, *profile.aliases)] or profiles
    found = dict.fromkeys(artifact.quantization for profile in chosen for artifact in profile.artifacts)
    return _beginning(((name, "") for name in found), incomplete)


def complete_machine(incomplete: str) -> _Offers:
    """Offer the reference machines."""
    from launcher.inventory import list_machines

    return _beginning(((name, "") for name in list_machines()), incomplete)


def complete_instance(incomplete: str) -> _Offers:
    """Offer what is or was served here, with its state."""
    from launcher.errors import LauncherError
    from launcher.store import list_instances

    with suppress(LauncherError, OSError):
        return _beginning(((view.name, str(view.state)) for view in list_instances()), incomplete)
    return []


def complete_unit(ctx: typer.Context, incomplete: str) -> _Offers:
    """Offer what is installed as a unit where the command would look."""
    import os
    from pathlib import Path

    from launcher.errors import LauncherError
    from launcher.installation.places import units_folder
    from launcher.render.systemd import Scope

    scope = Scope.USER if ctx.params.get("user") else Scope.SYSTEM
    with suppress(LauncherError, OSError):
        found = units_folder(scope, Path(ctx.params.get("root") or "/"), os.environ).glob("launch@*.service.d")
        names = (path.name.removeprefix("launch@").removesuffix(".service.d") for path in found)
        return _beginning(((name, "") for name in sorted(names)), incomplete)
    return []


def complete_code(incomplete: str) -> _Offers:
    """Offer the codes that have a page; a log's name is completed as any file's."""
    from launcher.pages import PAGES

    return _beginning(((page.code, page.means) for page in PAGES.values()), incomplete)


def complete_engine(incomplete: str) -> _Offers:
    """Offer the engines."""
    from launcher.domain import Engine

    return _beginning(((str(engine), "") for engine in Engine), incomplete)


def complete_target(incomplete: str) -> _Offers:
    """Offer the programs that a plan is exported for."""
    from launcher.export import Target

    return _beginning(((str(target), "") for target in Target), incomplete)


def complete_cache_type(incomplete: str) -> _Offers:
    """Offer the element types of a cache."""
    from launcher.domain import CacheType

    return _beginning(((str(kind), "") for kind in CacheType), incomplete)


def complete_switch(incomplete: str) -> _Offers:
    """Offer the words of llama-server's switches."""
    return _beginning((("on", ""), ("off", "")), incomplete)
