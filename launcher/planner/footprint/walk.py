"""A sequence shortened to what cannot be foreseen from its beginning.

It must not know what the sequence is of.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Walk(NamedTuple):
    """A shorter sequence, and the longer one told by it.

    ``kept`` are indices into the longer sequence; ``steps`` has, for each of its members, the place in ``kept`` of one
    in the same surroundings.
    """

    kept: tuple[int, ...]
    steps: tuple[int, ...]


class _Surroundings(NamedTuple):
    """All that a member and the beginning of the next can have to do with.

    What came before, its neighbours, and what comes after the next one, in the order of first occurrence.
    """

    before: frozenset[Hashable]
    previous: Hashable
    own: Hashable
    following: Hashable
    after: tuple[Hashable, ...]


def _surroundings(kinds: Sequence[Hashable]) -> list[_Surroundings]:
    after: list[tuple[Hashable, ...]] = [(), ()]
    for kind in kinds[:1:-1]:
        latest = after[-1]
        after.append(latest if latest[:1] == (kind,) else (kind, *(other for other in latest if other != kind)))
    after.reverse()
    before: frozenset[Hashable] = frozenset()
    found = []
    for idx, kind in enumerate(kinds):
        previous = kinds[idx - 1] if idx else None
        following = kinds[idx + 1] if idx + 1 < len(kinds) else None
        found.append(_Surroundings(before, previous, kind, following, after[idx]))
        if kind not in before:
            before |= {kind}
    return found


def shorten(kinds: Sequence[Hashable]) -> Walk:
    """Leave out every loop: a stretch between two members in the same surroundings that shows no new ones.

    What remains has the same neighbours as before, and the same kinds before and after it: each member of the whole is
    in the surroundings of a kept one.
    """
    surroundings = _surroundings(kinds)
    kept: list[int] = []
    place: dict[_Surroundings, int] = {}
    newest = -1
    for idx, around in enumerate(surroundings):
        known = place.get(around)
        if known is not None and known >= newest:
            del kept[known + 1 :]
            continue
        kept.append(idx)
        if known is None:
            newest = place[around] = len(kept) - 1
    return Walk(tuple(kept), tuple(place[around] for around in surroundings))
