"""Say what the supervisor did: one notice per real act, for people as a line and for machines as one JSON object.

It must not know who listens, nor decide anything.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import msgspec

from launcher.domain import Noun
from launcher.supervisor.logs import RotatingFile

Fact: TypeAlias = str | int | float | bool | None


class Notice(Noun, frozen=True):
    """One act: its fixed dotted name, the words for a person, the facts as fields.

    ``transient`` marks a line of progress, which a terminal may overwrite by the next.
    """

    event: str
    text: str
    facts: Mapping[str, Fact] = {}
    transient: bool = False


Report: TypeAlias = Callable[[Notice], None]


class Notify(Protocol):
    """Makes and reports a notice."""

    def __call__(self, event: str, text: str, *, transient: bool = False, **facts: Fact) -> None:
        """Report one act, in words and with its facts."""


def write_notice(file: RotatingFile, notice: Notice) -> None:
    """Append the notice as a JSON line with the time in seconds since 1970 as ``at``."""
    line = {"at": round(time.time(), 3), "event": notice.event, **notice.facts}
    file.write(msgspec.json.encode(line).decode())
