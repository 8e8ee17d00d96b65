"""A sequence shortened to what cannot be foreseen from its beginning.

It must not know what the sequence is of.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias


class Walk(NamedTuple):
    """A shorter sequence, and the longer one told by it.

    ``kept`` are indices into the longer sequence; ``steps`` has, for each of its members, the place in ``kept`` of one
    in the same surroundings.
    """

    kept: tuple[int, ...]
    steps: tuple[int, ...]


Surroundings: TypeAlias = tuple[frozenset[Hashable], Hashable, Hashable, Hashable, tuple[Hashable, ...]]
"""All that a member and the beginning of the next can have to do with.

What came before, the previous one, itself, the following one, and what comes after that, in the order of first occurrence.
"""


def surroundings(kinds: Sequence[Hashable]) -> list[Surroundings]:
    """Return those of each member."""
    after: list[tuple[Hashable, ...]] = [(), ()]
    latest: tuple[Hashable, ...] = ()
    preceded: dict[tuple[Hashable, tuple[Hashable, ...]], tuple[Hashable, ...]] = {}
    for kind in kinds[:1:-1]:
        key = kind, latest
        found = preceded.get(key)
        if found is None:
            found = preceded[key] = (kind, *[other for other in latest if other != kind])
        latest = found
        after.append(latest)
    after.reverse()
    befores: list[frozenset[Hashable]] = []
    before: frozenset[Hashable] = frozenset()
    for kind in kinds:
        befores.append(before)
        if kind not in before:
            before |= {kind}
    return list(zip(befores, (None, *kinds), kinds, (*kinds[1:], None), after, strict=False))


def shorten(kinds: Sequence[Hashable]) -> Walk:
    """Leave out every loop: a stretch between two members in the same surroundings that shows no new ones.

    What remains has the same neighbours as before, and the same kinds before and after it: each member of the whole is
    in the surroundings of a kept one.
    """
    found = surroundings(kinds)
    kept: list[int] = []
    place: dict[Surroundings, int] = {}
    newest = -1
    for idx, around in enumerate(found):
        known = place.get(around)
        if known is not None and known >= newest:
            del kept[known + 1 :]
            continue
        kept.append(idx)
        if known is None:
            newest = place[around] = len(kept) - 1
    return Walk(tuple(kept), tuple(place[around] for around in found))
