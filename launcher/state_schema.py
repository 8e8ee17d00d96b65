"""What a state file says, whichever version of the launcher wrote it.

An upgrade keeps what was measured and learnt: JSON of an older schema is brought forward one version at a time, and only
then checked. It must not know files: bytes come in, a noun goes out.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from launcher.domain import SCHEMA_VERSION
from launcher.errors import NewerStateError

T = TypeVar("T")


class _Stamp(msgspec.Struct, frozen=True):
    """The one field that every version writes; the others are not looked at."""

    schema_version: int = SCHEMA_VERSION


def _to_2(value: Any) -> Any:
    """From 1: what it can say is a part of what 2 can say; it only calls itself, and what it holds, by another number."""
    if isinstance(value, list):
        return [_to_2(item) for item in value]
    if isinstance(value, dict):
        return {key: 2 if key == "schema_version" else _to_2(item) for key, item in value.items()}
    return value


STEPS: Final[Mapping[int, Callable[[Any], Any]]] = {1: _to_2}
"""By version, what brings its JSON to the next one."""


def decode_state(data: bytes, kind: type[T]) -> T:
    """Return the noun that a state file of any version up to ``SCHEMA_VERSION`` holds.

    Raises:
        NewerStateError: a newer launcher wrote it.
        msgspec.DecodeError: it holds no such noun.
    """
    try:
        return _decode(data, kind)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def _decode(data: bytes, kind: type[T]) -> T:
    version = msgspec.json.decode(data, type=_Stamp).schema_version
    if version > SCHEMA_VERSION:
        message = f"a newer launcher wrote it (schema {version}; this one reads up to {SCHEMA_VERSION})"
        raise NewerStateError(
            message, help="upgrade the launcher, or give this one a state of its own: set LAUNCHER_STATE_DIR"
        )
    if version == SCHEMA_VERSION:
        return msgspec.json.decode(data, type=kind)
    value = msgspec.json.decode(data)
    while version < SCHEMA_VERSION:
        if version not in STEPS:
            message = f"schema {version} never was"
            raise msgspec.ValidationError(message)
        value = STEPS[version](value)
        version += 1
    return msgspec.convert(value, kind)
