"""Compute buffers: the graph of a model, cut down to representative layers, measured on its backends.

Blocks that are alike need the same memory, so it is enough to build those at each change of kind or of place; every
kind of neighbourhood is kept ``_REPEATS`` times, since what one block leaves behind may still be held in the next.
Where weights are copied to a device, the order of their sizes can still fragment a buffer differently (by at
most 6 MiB in the recorded rows), so all blocks can be asked for. It does not know the engine's defaults or how layers
were placed.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Final

from msgspec import Struct

from launcher.planner.architecture import (
    Architecture,
    AttentionAndState,
    IndexedAttention,
    LayerCache,
    RecurrentState,
)
from launcher.planner.footprint.blocks import Batch, Heads, Layer, Weight
from launcher.planner.footprint.families import build_graph
from launcher.planner.footprint.family import Model
from launcher.planner.footprint.scheduler import measure

_REPEATS: Final = 2
_PER_LAYER: Final = "per_layer_token_embd.weight"
_FIRST_LAYERS: Final = 3
"""Always kept: vision models add embeddings to that many (deepstack)."""
_UNKNOWN_PERCENT: Final = 115
"""Assumed of architectures that were not compared with the engine: most are transformers like the others."""
_EXOTIC: Final = frozenset(
    (
        "bailingmoe3",
        "deepseek4",
        "dots3note",
        "glm5-next",
        "hy_v4",
        "kimi-k3",
        "minimax-01",
        "minimax-m3",
        "qwen4exp",
        "t5",
    )
)
_EXOTIC_PERCENT: Final = 350
"""Of those whose graph is known to hold more than their tensors tell; the same step was up to 3.2 times it in others."""
_CACHE_SIZE: Final = 4096


class Shapes(Struct, frozen=True, cache_hash=True):
    """The tensors of each block by suffix (``attn_q.weight``), and those outside the blocks by name.

    Where no weights can be copied to a device their bytes are zero, so that all quantizations of a model are one key.
    """

    blocks: tuple[tuple[tuple[str, Weight], ...], ...] = ()
    table: tuple[tuple[str, Weight], ...] = ()


class Places(Struct, frozen=True):
    """The backend of each block, of its routed experts and of the output: devices by index, then the host."""

    blocks: tuple[int, ...]
    experts: tuple[int, ...]
    output: int
    n_devices: int


class Caches(Struct, frozen=True):
    """Cache cells per stream, of layers that see everything and of those that slide."""

    n_cells: int
    n_cells_sliding: int


def _owner(architecture: Architecture, idx: int) -> int:
    """Return the layer whose cache block ``idx`` reads (``layer_reuse_cb`` in ``llama_model::create_memory``)."""
    n_own = architecture.n_layer - architecture.n_layer_shared
    if idx < n_own:
        return idx
    return max(0, n_own - (2 if architecture.sliding[idx] else 1))


def _state(cache: LayerCache) -> tuple[int, int]:
    """Elements of a layer's two recurrent states, zero without."""
    state = cache.state if isinstance(cache, AttentionAndState) else cache
    return (state.n_conv, state.n_state) if isinstance(state, RecurrentState) else (0, 0)


def _layers(
    architecture: Architecture, shapes: Shapes, places: Places, caches: Caches, *, every_layer: bool
) -> tuple[Layer, ...]:
    """Return the layers needed to see every neighbourhood ``_REPEATS`` times, or all of them, in order."""
    n_trunk = architecture.n_layer - architecture.n_layer_nextn
    last = n_trunk - 1
    # each block reads its own slice of what the first device holds
    every_layer = every_layer or (places.n_devices > 1 and any(name == _PER_LAYER for name, _ in shapes.table))
    # each block has a mask of its own, all of which are allocated first
    every_layer = every_layer or any(isinstance(cache, IndexedAttention) for cache in architecture.layers)
    kinds = _kinds(architecture, shapes, places)[:n_trunk]
    seen: Counter[tuple[int, ...]] = Counter()
    kept = []
    for idx in range(n_trunk):
        around = tuple(kinds[max(0, idx - 1) : idx + 2])
        seen[around] += 1
        if not every_layer and seen[around] > _REPEATS and idx != last and idx >= _FIRST_LAYERS:
            continue
        home, experts_home, heads = places.blocks[idx], places.experts[idx], architecture.heads[idx]
        cache = architecture.layers[idx]
        slides = architecture.sliding[idx]
        owner = _owner(architecture, idx)
        n_cells = caches.n_cells_sliding if slides else caches.n_cells
        kept.append(
            Layer(
                weights=dict(shapes.blocks[idx]),
                home=home,
                experts_home=experts_home,
                heads=Heads(heads.n_head, heads.n_head_kv, heads.head_k, heads.head_v, n_cells, slides),
                recurrent=_state(cache),
                n_index=cache.n_index if isinstance(cache, IndexedAttention) else 0,
                n_expert_used=max(1, architecture.n_expert_used),
                last=idx == last,
                number=idx,
                owner=owner,
                owner_home=places.blocks[owner],
            )
        )
    return tuple(kept)


def _number(keys: Iterable[Hashable]) -> tuple[int, ...]:
    """Number keys by their first occurrence: equal keys have equal numbers."""
    numbers: dict[Hashable, int] = {}
    return tuple([numbers.setdefault(key, len(numbers)) for key in keys])


@lru_cache(maxsize=256)
def _weight_kinds(shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Number the blocks by the dimensions of their weights, and by dimensions and bytes."""
    sized = _number(shapes.blocks)
    first = dict(zip(sized, shapes.blocks, strict=True))
    plain = {number: tuple((name, weight.ne) for name, weight in block) for number, block in first.items()}
    return _number(plain[number] for number in sized), sized


@lru_cache(maxsize=256)
def _layer_kinds(architecture: Architecture) -> tuple[int, ...]:
    return _number(zip(architecture.layers, architecture.heads, strict=True))


def _kinds(architecture: Architecture, shapes: Shapes, places: Places) -> tuple[int, ...]:
    """Number the blocks so that those alike in weights, cache and place have one number.

    Bytes of weights tell blocks apart only on the host, where they may be copied from.
    """
    plain, sized = _weight_kinds(shapes)
    cpu, layers = places.n_devices, _layer_kinds(architecture)
    homes = zip(places.blocks, places.experts, strict=True)
    return _number(
        [
            (home, experts, layers[idx], plain[idx], sized[idx] if cpu in {home, experts} else -1)
            for idx, (home, experts) in enumerate(homes)
        ]
    )


def _crude_bytes(architecture: Architecture, batch: Batch) -> int:
    """A bound without a graph: ten residual streams, three hidden rows and the logits, in f32."""
    n_row = 10 * architecture.n_embd + 3 * max(architecture.n_ff, architecture.n_ff_active)
    return 4 * (n_row * batch.n_tokens + architecture.n_vocab * batch.n_outputs)


@lru_cache(maxsize=_CACHE_SIZE)
def compute_bytes(
    architecture: Architecture,
    shapes: Shapes,
    places: Places,
    caches: Caches,
    batch: Batch,
    *,
    op_offload: bool,
    pipeline: bool,
    every_layer: bool,
) -> tuple[int, ...]:
    """Return the compute bytes of each device and, last, of the host."""
    if architecture.n_layer <= architecture.n_layer_nextn:
        return (0,) * (places.n_devices + 1)
    model = Model(
        name=architecture.name,
        numbers=dict(architecture.numbers),
        n_embd=architecture.n_embd,
        layers=_layers(architecture, shapes, places, caches, every_layer=every_layer),
        table=dict(shapes.table),
        output_home=places.output,
        cpu=places.n_devices,
        batch=batch,
    )
    try:
        measured = measure(build_graph(model), places.n_devices, op_offload=op_offload, pipeline=pipeline)
    except (ArithmeticError, LookupError, ValueError):
        # keys and tensors contradict each other: the engine would refuse the file, a figure is still owed
        return (_crude_bytes(architecture, batch),) * (places.n_devices + 1)
    if architecture.known:
        return measured
    percent = _EXOTIC_PERCENT if architecture.name in _EXOTIC else _UNKNOWN_PERCENT
    return tuple(n_bytes * percent // 100 for n_bytes in measured)
