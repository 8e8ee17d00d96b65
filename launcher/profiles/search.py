"""Finds the profile that answers to a name.

A profile's file is called after its name, so a name is resolved without parsing other profiles; files that merely
mention the name are looked into for an alias. It must not know what a profile's keys mean beyond name and aliases.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from launcher.domain import Profile
from launcher.errors import ProfileError, ProfileNotFoundError
from launcher.folders import xdg_dir
from launcher.profiles.document import MAX_FILE_BYTES, count_profile_parameters, parse_toml, read_profile
from launcher.resources import data_dir, from_home

DIRECTORY_VARIABLE: Final = "LAUNCHER_PROFILES"
"""Names the user's directory of profiles instead of the one that XDG gives."""

_SUFFIX: Final = ".toml"


def shipped_directory() -> Path:
    """Return the folder of the profiles that ship with the program."""
    return data_dir("profiles")


def user_directory() -> Path:
    """Return the folder of the user's own profiles, which need not exist."""
    if chosen := os.environ.get(DIRECTORY_VARIABLE):
        return from_home(chosen)
    return xdg_dir("XDG_CONFIG_HOME", ".config") / "launcher" / "profiles"


def load_profile(name: str) -> Profile:
    """Return the profile that answers to a name, an alias, or a path ending in ``.toml``.

    The user's directory comes before the shipped one.

    Raises:
        ProfileNotFoundError: nothing answers; the nearest names are proposed.
        ProfileError: the file is wrong, or two of one directory claim the name.
    """
    if name.endswith(_SUFFIX):
        path = from_home(name)
        if not _is_file(path):
            message = f"there is no profile file `{_short(name)}`"
            raise ProfileNotFoundError(message, help="`launch list` shows the profiles that are known")
        return read_profile(path, fallback_specs=shipped_directory())
    for directory in _directories():
        if path_found := _find(name, directory):
            return _read_named(path_found)
    raise _not_found(name)


def load_all(on_broken: Callable[[ProfileError], None]) -> tuple[Profile, ...]:
    """Return every profile that can be loaded, by name; the user's shadow the shipped ones of that name.

    ``on_broken`` is told of each file that is wrong; it hides no other.
    """
    profiles: dict[str, Profile] = {}
    claimed: dict[str, str] = {}
    for directory in _directories():
        found, here = _load_directory(directory, on_broken)
        profiles |= {name: profile for name, profile in found.items() if name not in claimed}
        claimed = {**here, **claimed}
    return tuple(profiles[name] for name in sorted(profiles))


def load_smaller(n_parameters: int) -> Iterator[Profile]:
    """Yield the profiles of ``load_all`` whose models have fewer parameters, largest first, then by name.

    A shipped profile's weights are expanded only when it is its turn: that is most of what loading takes.
    """
    first, *shipped = _directories()
    own, claimed = _load_directory(first, lambda _: None)
    waiting: list[tuple[int, str, Profile | Path]] = [
        (_n_parameters(profile), name, profile) for name, profile in own.items()
    ]
    for path in (path for directory in shipped for path in _files(directory) if path.stem not in claimed):
        with suppress(ProfileError):
            waiting.append((count_profile_parameters(path), path.stem, path))
    for n, _, found in sorted(waiting, key=lambda each: (-each[0], each[1])):
        if not 0 < n < n_parameters:
            continue
        if isinstance(found, Profile):
            yield found
            continue
        with suppress(ProfileError):
            yield _read_named(found)


def _n_parameters(profile: Profile) -> int:
    return next((artifact.spec.n_parameters for artifact in profile.artifacts if artifact.spec is not None), 0)


def _load_directory(
    directory: Path, on_broken: Callable[[ProfileError], None]
) -> tuple[dict[str, Profile], dict[str, str]]:
    """Return the profiles of a directory by name, and the file that claims each name and alias."""
    profiles: dict[str, Profile] = {}
    claimed: dict[str, str] = {}
    for path in _files(directory):
        try:
            profile = _read_named(path)
            _claim(profile, claimed)
        except ProfileError as error:
            on_broken(error)
            continue
        profiles[profile.name] = profile
    return profiles, claimed


def _directories() -> Iterator[Path]:
    user, shipped = user_directory(), shipped_directory()
    yield user
    if user != shipped:
        yield shipped


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == _SUFFIX and _is_file(path))
    except OSError:  # the user has no directory of profiles, or none that can be read
        return []


def _find(name: str, directory: Path) -> Path | None:
    """Return the file of ``directory`` that claims a name or alias, parsing only those that mention it."""
    claims = [
        path for path in _files(directory) if path.stem == name or (_mentions(path, name) and name in _names(path))
    ]
    if len(claims) > 1:
        raise _clash(name, str(claims[0]), str(claims[1]))
    return claims[0] if claims else None


def _mentions(path: Path, name: str) -> bool:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES)
    except OSError:
        return False
    # A quoted name may be written with escapes; that nobody does is cheaper to assume than to parse every file.
    return name.encode(errors="surrogatepass") in content


def _names(path: Path) -> tuple[str, ...]:
    """Return the name and the aliases that a file claims; none if it is broken, for that must not hide other files."""
    try:
        document: dict[str, Any] = parse_toml(path.read_bytes(), str(path))
    except (ProfileError, OSError):
        return ()
    aliases = document.get("aliases")
    claims = [document.get("name"), *(aliases if isinstance(aliases, list) else ())]
    return tuple(claim for claim in claims if isinstance(claim, str))


def _read_named(path: Path) -> Profile:
    """Return the profile of a file in a directory of profiles, where the file has the profile's name."""
    profile = read_profile(path, fallback_specs=shipped_directory())
    if profile.name != path.stem:
        message = f"{path} is not a valid profile: its name and its file differ"
        detail = f'name: "{profile.name}" must stand in {profile.name}{_SUFFIX}'
        raise ProfileError(message, details=(detail,), help=f"rename the file, or set name to `{path.stem}`")
    return profile


def _claim(profile: Profile, claimed: dict[str, str]) -> None:
    for name in (profile.name, *profile.aliases):
        if name in claimed:
            raise _clash(name, claimed[name], profile.source)
    claimed.update(dict.fromkeys((profile.name, *profile.aliases), profile.source))


def _clash(name: str, first: str, second: str) -> ProfileError:
    message = f"two profiles claim the name `{name}`"
    return ProfileError(message, details=(first, second), help="change the name or the alias in one of them")


def _not_found(name: str) -> ProfileNotFoundError:
    known = sorted({claim for directory in _directories() for claim in _claims(directory)})
    from difflib import get_close_matches  # noqa: PLC0415  only this fault needs it

    near = get_close_matches(name[:80].lower(), known, n=3, cutoff=0.5)
    proposal = f"did you mean {' or '.join(f'`{word}`' for word in near)}? " if near else ""
    message = f"no profile or alias is called `{_short(name)}`"
    return ProfileNotFoundError(message, help=f"{proposal}`launch list` shows all that are known")


def _short(name: str) -> str:
    """Return what a terminal can show of a name that someone typed."""
    return name[:80] if name[:80].isprintable() else ascii(name[:80])[1:-1]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows
        return False


def _claims(directory: Path) -> Iterable[str]:
    for path in _files(directory):
        yield path.stem
        yield from _names(path)
