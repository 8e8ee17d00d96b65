"""What a published fault of an engine is, and which of them a version has.

It must not know engines, nor how a version was found.
"""

import os
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

ACCEPT_VARIABLE: Final = "LAUNCHER_ACCEPT_HOLES"
"""Names faults, by one id of each, with commas or spaces, that do not keep an engine from being used: of a build that a
distribution has mended without a new version, for example."""


_MAX_DIGITS: Final = 9


class Hole(NamedTuple):
    """One advisory of an engine's project: versions from ``since`` on have it, those from ``mended`` on no longer."""

    ids: str
    since: tuple[int, ...]
    mended: tuple[int, ...]
    what: str


def parse_release(version: str) -> tuple[int, ...] | None:
    """Return the numbers of a release (``0.32.0+cpu``, ``0.18.0rc1``); ``None`` where it begins with none.

    A release candidate counts as its release, a local build (after ``+``) as what it was built from.
    """
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits or len(digits) > _MAX_DIGITS:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers) or None


def describe_holes(holes: Iterable[Hole], release: tuple[int, ...]) -> tuple[str, ...]:
    """Return in words the faults that a release has and that were not accepted."""
    accepted = accepted_holes()
    return tuple(
        f"{hole.what} ({hole.ids}; mended in {'.'.join(map(str, hole.mended))})"
        for hole in holes
        if hole.since <= release < hole.mended and accepted.isdisjoint(hole.ids.split(", "))
    )


def accepted_holes() -> frozenset[str]:
    """Return the ids of the faults that the user accepts."""
    return frozenset(re.split(r"[\s,]+", os.environ.get(ACCEPT_VARIABLE, "").strip()))


def tell_holes(name: str, holes: tuple[str, ...]) -> tuple[str, ...]:
    """Return a note on an engine that is not used for its faults: the first of them, and the ways out."""
    if not holes:
        return ()
    more = f" and {len(holes) - 1} more" if len(holes) > 1 else ""
    return (f"{name} is not used: {holes[0]}{more}; install a newer one, or accept them by id in ${ACCEPT_VARIABLE}",)
