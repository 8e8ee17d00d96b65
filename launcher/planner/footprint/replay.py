"""How large a backend's buffer grows while the tensors of a graph come and go.

Restates ``ggml_dyn_tallocr`` (``ggml/src/ggml-alloc.c``, llama.cpp build 11434). It does not know graphs: what comes and
goes is told to it in segments, one for what precedes the blocks and one for each block, which can be replayed in another
order, for another step and with weights of other sizes than those of the graph that they were taken from.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from launcher.units import pad

ALIGNMENT: Final = 32
"""Of CPU and RPC buffers (``TENSOR_ALIGNMENT``); CUDA's 128 changes a total by a few KiB."""
GIVEN_BACK: Final = -1
"""In place of a size: the register's memory is free again."""
OUTSIDE: Final = -1
"""In place of a block in the key of a weight that is in none."""
UNWEIGHED: Final = -1
"""In place of a weight's index: the event's size stands."""
_ENDLESS: Final = 1 << 62

WeightKey: TypeAlias = tuple[int, str]
"""The place of a block among those of a graph, or ``OUTSIDE``, then the tensor's name."""
_Blocks: TypeAlias = tuple[tuple[int, int], ...]
"""Offset and size of stretches of memory."""


class Pool:
    """One backend's buffer: best fit with merging of neighbours (``ggml_dyn_tallocr``)."""

    __slots__ = ("_is_odd", "max_size", "rooms", "starts")

    def __init__(self, free: _Blocks = ((0, _ENDLESS),)) -> None:
        """Start with one free block that has no end, or with the given ones."""
        self.starts = [start for start, _ in free]
        self.rooms = [room for _, room in free]
        self.max_size = 0
        self._is_odd = 0 in self.rooms or self.starts != sorted(self.starts)
        """Blocks may be empty, or, since some were, be out of order."""

    @property
    def free(self) -> _Blocks:
        """What is free, in the order in which it is looked through."""
        return tuple(zip(self.starts, self.rooms, strict=True))

    def take(self, size: int) -> int:
        """Reserve ``size`` bytes; return the offset."""
        rooms = self.rooms
        # the block without end is the largest, though not always the last: empty ones may be given back beyond it
        best, best_size = -1, _ENDLESS
        for idx, room in enumerate(rooms):
            if size <= room <= best_size:
                best, best_size = idx, room
        offset = self.starts[best]
        end = offset + size
        if rooms[best] == size:
            del rooms[best], self.starts[best]
        else:
            self.starts[best] = end
            rooms[best] -= size
        if end > self.max_size:  # noqa: PLR1730 - asked for every tensor, and max takes several times as long
            self.max_size = end
        return offset

    def give(self, offset: int, size: int) -> None:
        """Return bytes to the pool: to the first block that ends where they begin, or begins where they end."""
        starts, rooms = self.starts, self.rooms
        end = offset + size
        idx = self._find(offset, end) if self._is_odd else bisect_left(starts, offset)
        if idx and starts[idx - 1] + rooms[idx - 1] == offset:
            rooms[idx - 1] += size
            if idx < len(starts) and starts[idx] == end:
                rooms[idx - 1] += rooms[idx]
                del starts[idx], rooms[idx]
        elif idx < len(starts) and starts[idx] == end:
            starts[idx] = offset
            rooms[idx] += size
        else:
            starts.insert(idx, offset)
            rooms.insert(idx, size)
            self._is_odd = self._is_odd or size == 0

    def _find(self, offset: int, end: int) -> int:
        """Return behind which block bytes belong where blocks are odd."""
        for idx, (start, room) in enumerate(self.free):
            if start + room == offset:
                return idx + 1
            if start == end:
                return idx
        return next((idx for idx, start in enumerate(self.starts) if start >= offset), len(self.starts))


Event: TypeAlias = tuple[int, int, int]
"""A tensor takes memory of its pool: its register, then the index of its size among those of the recording, then that of
its weight among those of the segment or ``UNWEIGHED``. Or it gives it back: its register, ``GIVEN_BACK``, ``UNWEIGHED``."""


class Segment:
    """What comes and goes of one pool during one block.

    Registers are numbered as the segment before left them, the memory longest in the same hands first; each that is taken
    has the next number. ``left`` are those that are held at the end. Compared by identity: it is made once and replayed
    often.
    """

    __slots__ = ("events", "is_idle", "left", "weights")

    def __init__(
        self, events: tuple[Event, ...], held_before: int, left: tuple[int, ...], weights: tuple[WeightKey, ...]
    ) -> None:
        """Take what was recorded; ``held_before`` is the number of registers at the beginning."""
        self.events = events
        self.left = left
        self.weights = weights
        self.is_idle = not events and left == tuple(range(held_before))
        """Whether it leaves everything as it was."""


class Recording:
    """What comes and goes of each pool: before the first block, then during each; and the sizes that its events name.

    Compared by identity, like its segments.
    """

    __slots__ = ("pools", "sizes")

    def __init__(self, pools: tuple[tuple[Segment, ...], ...], sizes: tuple[int, ...]) -> None:
        """Take what was recorded."""
        self.pools = pools
        self.sizes = sizes


class Paddings:
    """The bytes that each size of a recording takes of its pool. Compared by identity: worked out once, used often."""

    __slots__ = ("sizes",)

    def __init__(self, sizes: Iterable[int]) -> None:
        """Pad sizes in bytes."""
        self.sizes: Sequence[int] = [pad(size, ALIGNMENT) for size in sizes]


class Weights:
    """Bytes of weights by name. Compared by identity: the blocks of a model that have equal ones share them."""

    __slots__ = ("sizes",)

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Take what the weights are."""
        self.sizes = sizes


NO_WEIGHTS: Final = Weights({})


class _State:
    """Of a pool between two segments: what is free, and what is held in the order of the registers.

    Compared by identity, for one is looked up for every block: ``_state`` makes one of each.
    """

    __slots__ = ("free", "held")

    def __init__(self, free: _Blocks, held: _Blocks) -> None:
        self.free = free
        self.held = held


@lru_cache(maxsize=16384)
def _state(free: _Blocks, held: _Blocks) -> _State:
    return _State(free, held)


_EMPTY: Final = _State(((0, _ENDLESS),), ())


@lru_cache(maxsize=16384)
def _pass(segment: Segment, state: _State, paddings: Paddings, weights: tuple[int, ...]) -> tuple[_State, int]:
    """Replay a segment: the state behind it, and the end of the last byte that was ever taken.

    Remembered, because a pool soon comes back to a state in which it was, and the quantizations of a model share theirs
    wherever no weights are copied.
    """
    pool = Pool(state.free)
    held = list(state.held)
    take, give, hold, sizes = pool.take, pool.give, held.append, paddings.sizes
    for register, size, weight in segment.events:
        if size == GIVEN_BACK:
            offset, n_bytes = held[register]
            give(offset, n_bytes)
        else:
            n_bytes = sizes[size] if weight == UNWEIGHED else weights[weight]
            hold((take(n_bytes), n_bytes))
    return _state(pool.free, tuple([held[register] for register in segment.left])), pool.max_size


@lru_cache(maxsize=16384)
def _weights(segment: Segment, block: Weights, table: Weights) -> tuple[int, ...]:
    """Return the bytes that a segment's weights take of the pool, in the order of their indices."""
    n_bytes = [(table if place == OUTSIDE else block).sizes.get(name, 0) for place, name in segment.weights]
    return tuple([pad(size, ALIGNMENT) for size in n_bytes])


def largest(segments: Iterable[tuple[Segment, Weights]], table: Weights, paddings: Paddings) -> int:
    """Return the bytes that a pool reaches over segments of one recording, each with the weights of its block.

    ``table`` has the weights outside the blocks; what neither tells of takes nothing.
    """
    state, most = _EMPTY, 0
    settled: Segment | None = None
    settled_block = NO_WEIGHTS
    for segment, block in segments:
        if segment.is_idle or (segment is settled and block is settled_block):
            continue
        weights = _weights(segment, block, table) if segment.weights else ()
        after, reached = _pass(segment, state, paddings, weights)
        # what left the pool as it found it would do so again
        settled, settled_block = (segment if after is state else None), block
        state = after
        if reached > most:  # noqa: PLR1730 - asked for every block
            most = reached
    return most
