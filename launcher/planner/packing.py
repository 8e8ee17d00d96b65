"""Which whole layers lie on which of several devices, by their bytes.

It must not know compute buffers or budgets: the room that they leave is its caller's to say.
"""

from collections.abc import Iterable, Sequence

from launcher.planner.footprint.weights import ModelWeights


def fill_with(n_layer: int, counts: Sequence[int]) -> tuple[float, ...]:
    """Return ``n_layer`` layers per device where each could hold ``counts``; empty where they are too few.

    The first ones give way: they hold what comes next after the layers on the host.
    """
    surplus = sum(counts) - n_layer
    kept = []
    for count in counts:
        taken = max(0, min(count, surplus))
        surplus -= taken
        kept.append(float(count - taken))
    return tuple(kept) if surplus == 0 else ()


def layer_bytes(weights: ModelWeights, caches: Sequence[int]) -> list[int]:
    """Return the bytes of each layer with its cache, the output last."""
    blocks = zip(weights.blocks, caches, strict=False)
    items = [block.dense_bytes + block.expert_bytes + cache_bytes for block, cache_bytes in blocks]
    return [*items, max(weights.output_bytes, weights.largest_output_bytes)]


def fill_in_order(weights: ModelWeights, caches: Sequence[int], rooms: Sequence[int]) -> tuple[float, ...]:
    """Return whole layers per device, each filled before the next; empty where they do not all find a place."""
    items = layer_bytes(weights, caches)
    counts = _fill(items, rooms)
    return tuple(map(float, counts)) if sum(counts) == len(items) and all(counts) else ()


def pack(weights: ModelWeights, caches: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """Return how many layers each device holds, counted from the last layer and the last device."""
    return _fill(layer_bytes(weights, caches)[::-1], reversed(rooms))[::-1]


def _fill(items: Sequence[int], rooms: Iterable[int]) -> list[int]:
    """Return how many items of so many bytes each room takes, filled before the next one is begun."""
    counts, position = [], 0
    for room_bytes in rooms:
        room, first = room_bytes, position
        while position < len(items) and items[position] <= room:
            room -= items[position]
            position += 1
        counts.append(position - first)
    return counts
