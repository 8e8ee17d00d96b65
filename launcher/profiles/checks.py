"""Checks of single values that came out of a TOML file.

A check takes a value and its key path and returns what the value means, or notes a fault and returns ``None``; so all
faults of a file are found in one pass. It must not know what a profile is.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, TypeAlias, TypeVar

_Member = TypeVar("_Member", bound=StrEnum)

Check: TypeAlias = "Callable[[object, str, Faults], Any]"
"""``check(value, key_path, faults)``: the checked value, or ``None`` after a fault was noted."""

_SHOWN_CHARACTERS: Final = 60
_MAX_FAULTS: Final = 200
_MAX_ITEMS: Final = 1000
"""Of an array; the longest in use has the shards of a file, a few dozen."""
_TYPE_NAMES: Final = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array"}


class Faults(list[str]):
    """The faults of one file, in the order in which they were found; a file of mere noise is not told to its end."""

    @property
    def is_full(self) -> bool:
        """Whether nobody would read on."""
        return len(self) >= _MAX_FAULTS

    def note(self, path: str, fact: str) -> None:
        """Add a line: where, then what was found and what is allowed."""
        if len(self) == _MAX_FAULTS - 1:
            self.append("further faults are left out")
        elif not self.is_full:
            self.append(f"{path}: {fact}")


def show(value: object) -> str:
    """Write a value briefly, as TOML would, so that its writer recognises it."""
    match value:
        case bool():
            shown = "true" if value else "false"
        case str():
            escaped = ascii(value)[1:-1]
            shown = f'"{escaped if len(escaped) <= _SHOWN_CHARACTERS else escaped[:_SHOWN_CHARACTERS] + "..."}"'
        case int() if abs(value) > 10**_SHOWN_CHARACTERS:
            shown = "a huge integer"
        case int() | float():
            shown = str(value)
        case dict():
            shown = "a table"
        case list():
            shown = "an array"
        case _:
            shown = f"a {type(value).__name__}"
    return shown


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like ``word``, if one is close."""
    from difflib import get_close_matches  # noqa: PLC0415  only faults need it, and start-up time is a promise

    # Longer input makes the comparison slow, and is no typo.
    return next(iter(get_close_matches(word[:_SHOWN_CHARACTERS].lower(), list(known), n=1, cutoff=0.6)), None)


def propose(word: str, known: Iterable[str]) -> str:
    """Return the end of a fault about an unknown word: the nearest known one, or all that are known."""
    words = list(known)
    near = nearest(word, words)
    return f"did you mean `{near}`?" if near else f"known are {', '.join(words)}"


def _wrong_type(value: object, path: str, faults: Faults, expected: str) -> None:
    found = _TYPE_NAMES.get(type(value))
    faults.note(path, f"{show(value)} is {found}, not {expected}" if found else f"{show(value)} is not {expected}")


def text(meaning: str, pattern: str) -> Check:
    """Return a check for a printable string that matches ``pattern`` as a whole; ``meaning`` says what it must be.

    What is not printable (controls, marks that turn the direction of writing) could steer a terminal. The pattern is
    compiled when it is first needed, since most are not.
    """

    def check(value: object, path: str, faults: Faults) -> str | None:
        if not isinstance(value, str):
            _wrong_type(value, path, faults, f"a string: {meaning}")
        elif not (value.isprintable() and re.fullmatch(pattern, value)):
            faults.note(path, f"{show(value)} is not {meaning}")
        else:
            return value
        return None

    return check


def whole(low: int, high: int = 2**31 - 1) -> Check:
    """Return a check for an integer between ``low`` and ``high``, both included."""

    def check(value: object, path: str, faults: Faults) -> int | None:
        if not isinstance(value, int) or isinstance(value, bool):
            _wrong_type(value, path, faults, f"an integer from {low} to {high}")
        elif not low <= value <= high:
            faults.note(path, f"{show(value)} is not from {low} to {high}")
        else:
            return value
        return None

    return check


def rate(low: float, high: float) -> Check:
    """Return a check for a number, whole or not, above ``low`` and up to ``high``."""

    def check(value: object, path: str, faults: Faults) -> float | None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            _wrong_type(value, path, faults, f"a number above {low:g} and up to {high:g}")
        elif not low < value <= high:
            faults.note(path, f"{show(value)} is not above {low:g} and up to {high:g}")
        else:
            return float(value)
        return None

    return check


def flag(value: object, path: str, faults: Faults) -> bool | None:
    """Check for ``true`` or ``false``."""
    if isinstance(value, bool):
        return value
    _wrong_type(value, path, faults, "true or false")
    return None


def one_of(members: type[_Member]) -> Check:
    """Return a check for one value of an enumeration."""

    def check(value: object, path: str, faults: Faults) -> _Member | None:
        allowed = [member.value for member in members]
        if not isinstance(value, str):
            _wrong_type(value, path, faults, f"one of {', '.join(allowed)}")
        elif value not in allowed:
            near = nearest(value, allowed)
            hint = f"; did you mean `{near}`?" if near else ""
            faults.note(path, f"{show(value)} is none of {', '.join(allowed)}{hint}")
        else:
            return members(value)
        return None

    return check


def many(item: Check, *, at_least: int = 0) -> Check:
    """Return a check for an array whose items, counted from 1 in key paths, all pass ``item``.

    A scalar stands there once; tables are told apart by whoever knows what identifies them.
    """

    def check(value: object, path: str, faults: Faults) -> tuple[Any, ...] | None:
        if not isinstance(value, list):
            _wrong_type(value, path, faults, "an array")
            return None
        if not at_least <= len(value) <= _MAX_ITEMS:
            faults.note(path, f"has {len(value)} items, not from {at_least} to {_MAX_ITEMS}")
            return None
        kept: list[Any] = []
        for n, raw in enumerate(value, start=1):
            checked = item(raw, f"{path}[{n}]", faults)
            if checked is not None and not isinstance(checked, dict) and checked in kept:
                faults.note(f"{path}[{n}]", f"{show(raw)} stands there twice")
            kept.append(checked)
        return tuple(checked for checked in kept if checked is not None)

    return check


def table(
    keys: Mapping[str, Check], *, required: tuple[str, ...] = (), synonyms: Mapping[str, str] | None = None
) -> Check:
    """Return a check for a table of ``keys``; the result holds only those that are present and right.

    ``synonyms`` maps names from elsewhere to keys here; they are not accepted, only recognised in the proposal.
    """

    def check(value: object, path: str, faults: Faults) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            _wrong_type(value, path, faults, "a table")
            return None
        prefix = f"{path}." if path else ""
        checked = {}
        for key, raw in value.items():
            if faults.is_full:
                break
            if known := keys.get(key):
                result = known(raw, prefix + key, faults)
                if result is not None:
                    checked[key] = result
            else:
                faults.note(prefix + show(key)[1:-1], f"unknown key; {_propose_key(key, keys, synonyms or {})}")
        for key in required:
            if key not in value:
                faults.note(prefix + key, "is missing")
        return checked

    return check


def _propose_key(key: str, keys: Mapping[str, Check], synonyms: Mapping[str, str]) -> str:
    meant = synonyms.get(key.replace("-", "_"))
    return f"did you mean `{meant}`?" if meant else propose(key, keys)
