"""Compute buffers: the graph of a model, cut down to representative layers, measured on its backends.

Blocks that are alike need the same memory, so it is enough to look at those at each change of kind or of place; every
kind of neighbourhood is kept ``_REPEATS`` times, since what one block leaves behind may still be held in the next.
Where weights are copied to a device, the order of their sizes can still fragment a buffer differently (by at
most 6 MiB in the recorded rows), so all blocks can be asked for. Of those that are looked at, the graph is built
without what only repeats, and its events are replayed for each of them with its own weights; one that was built for
another placement serves where it has all that this one has. It does not know the engine's defaults or how layers were
placed.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from msgspec import Struct

from launcher.planner.architecture import (
    ENCODER_DECODERS,
    Architecture,
    AttentionAndState,
    CompressedAttention,
    IndexedAttention,
    LayerCache,
    RecurrentState,
)
from launcher.planner.footprint.blocks import Batch, Heads, Layer, Weight
from launcher.planner.footprint.families import build_graph
from launcher.planner.footprint.family import Model, counts_blocks
from launcher.planner.footprint.replay import NO_WEIGHTS, Paddings, Recording, Weights, largest
from launcher.planner.footprint.scheduler import OFFLOAD_MIN_BATCH, record
from launcher.planner.footprint.standin import CELLS, SLIDING_CELLS, TOKENS, powers, work_out
from launcher.planner.footprint.walk import Surroundings, shorten, surroundings

_REPEATS: Final = 2
_PER_LAYER: Final = "per_layer_token_embd.weight"
_FIRST_LAYERS: Final = 3
"""Always kept: vision models add embeddings to that many (deepstack)."""
_UNKNOWN_PERCENT: Final = 115
"""Assumed of architectures that were not compared with the engine: most are transformers like the others."""
_EXOTIC: Final = frozenset(("qwen4exp",))
_EXOTIC_PERCENT: Final = 350
"""Of those whose graph is known to hold more than their tensors tell; the same step was up to 3.2 times it in others."""
_CACHE_SIZE: Final = 4096
_AS_THEY_ARE: Final = (1,)
"""What the digits of sizes count where nothing stood in for a dimension."""


class Shapes(Struct, frozen=True, cache_hash=True):
    """The tensors of each block by suffix (``attn_q.weight``), and those outside the blocks by name."""

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


class Spot(NamedTuple):
    """What the graph of a block depends on, and of those around it."""

    alike: int
    """The first block of the model that has the same graph."""
    home: int
    experts_home: int
    last: bool
    borrows: bool
    owner_home: int


def _owner(architecture: Architecture, idx: int) -> int:
    """Return the layer whose cache block ``idx`` reads (``layer_reuse_cb`` in ``llama_model::create_memory``)."""
    n_own = architecture.n_layer - architecture.n_layer_shared
    if idx < n_own:
        return idx
    return max(0, n_own - (2 if architecture.sliding[idx] else 1))


def _state(cache: LayerCache) -> tuple[int, int]:
    """Elements of a layer's two recurrent states, zero without."""
    if isinstance(cache, CompressedAttention):
        return 0, cache.n_state
    state = cache.state if isinstance(cache, AttentionAndState) else cache
    return (state.n_conv, state.n_state) if isinstance(state, RecurrentState) else (0, 0)


def _chooses(architecture: Architecture) -> bool:
    """Whether queries see chosen tokens only, or rows that stand for several."""
    return any(isinstance(cache, IndexedAttention | CompressedAttention) for cache in architecture.layers)


def _has_slices(shapes: Shapes) -> bool:
    """Whether each block reads a slice of its own of a tensor that is made before the first."""
    return any(name == _PER_LAYER for name, _ in shapes.table)


def _needs_every_layer(architecture: Architecture, shapes: Shapes, places: Places) -> bool:
    """Whether no block can be left out."""
    if _has_slices(shapes) and (places.n_devices > 1 or len(set(places.blocks)) > 1):
        return True
    if architecture.name in ENCODER_DECODERS:  # all read a table of the first block
        return True
    if architecture.n_loop > 1:  # copies of weights outlast the loop that they were made for
        return True
    if dict(architecture.numbers).get("attn_res.block_size", 0.0) > 0:  # what blocks read grows with their number
        return True
    # each block has a mask of its own, all of which are allocated first
    return _chooses(architecture)


def _kept(architecture: Architecture, sizes: Shapes, places: Places) -> list[int]:
    """Return the blocks needed to see every neighbourhood ``_REPEATS`` times, in order."""
    n_trunk = architecture.n_trunk
    kinds = _kinds(architecture, sizes, places)[:n_trunk]
    seen: dict[tuple[int, int, int], int] = {}
    kept = []
    for idx, around in enumerate(zip((-1, *kinds), kinds, (*kinds[1:], -1), strict=False)):
        n_seen = seen.get(around, 0)
        if n_seen < _REPEATS:
            seen[around] = n_seen + 1
            kept.append(idx)
        elif idx == n_trunk - 1 or idx < _FIRST_LAYERS:
            kept.append(idx)
    return kept


def _in_step(kept: Sequence[int], kinds: Sequence[int]) -> list[int]:
    """Return the kept blocks, with others between them so that each gap leaves out whole repetitions of a pattern.

    Placements of one model then differ in how often it repeats, and their graphs in nothing.
    """
    around = list(zip((-1, -1, *kinds), (-1, *kinds), kinds, kinds[1:], strict=False))
    aligned = list(kept[:1])
    for before, after in pairwise(kept):
        start, end = _gap(around, before, after)
        aligned += (*range(before + 1, start + 1), *range(end, after + 1))
    return aligned


def _gap(around: Sequence[Hashable], before: int, after: int) -> tuple[int, int]:
    """Return the blocks next to the widest gap between two of them that leaves out whole repetitions."""
    for n_more in range(after - before):
        for n_forward in range(n_more + 1):
            start, end = before + n_forward, after - n_more + n_forward
            if around[start] == around[end - 1]:
                return start, end
    return after - 1, after


def _spot(architecture: Architecture, alike: tuple[int, ...], places: Places, idx: int) -> Spot:
    owner, block = _owner(architecture, idx), idx % architecture.n_block
    return Spot(
        alike=alike[idx],
        home=places.blocks[block],
        experts_home=places.experts[block],
        last=idx == architecture.n_trunk - 1,
        borrows=owner != idx,
        owner_home=places.blocks[owner],
    )


def _layer(architecture: Architecture, shapes: Shapes, caches: Caches, spot: Spot, place: int) -> Layer:
    """Return a block as its graph is built from it."""
    idx = spot.alike
    heads, cache, slides = architecture.heads[idx], architecture.layers[idx], architecture.sliding[idx]
    n_cells = caches.n_cells_sliding if slides else caches.n_cells
    return Layer(
        weights=dict(shapes.blocks[idx % architecture.n_block]),
        home=spot.home,
        experts_home=spot.experts_home,
        heads=Heads(heads.n_head, heads.n_head_kv, heads.head_k, heads.head_v, n_cells, slides),
        recurrent=_state(cache),
        n_index=cache.n_index if isinstance(cache, IndexedAttention | CompressedAttention) else 0,
        n_expert_used=max(1, architecture.n_expert_used),
        last=spot.last,
        place=place,
        number=idx,
        origin=place % architecture.n_block,
        borrows=spot.borrows,
        owner_home=spot.owner_home,
    )


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
def _alike(architecture: Architecture, shapes: Shapes) -> tuple[int, ...]:
    """Return for each block the first that has the same graph.

    Itself where the engine counts its blocks or loops, or where one depends on another far behind it: slices are all
    copied to a device when its first block begins.
    """
    counted = architecture.n_loop > 1 or counts_blocks(architecture.name, architecture.numbers)
    if counted or _has_slices(shapes):
        return tuple(range(architecture.n_layer))
    plain = zip(_weight_kinds(shapes)[0], _layer_kinds(architecture), architecture.sliding, strict=True)
    first: dict[tuple[int, int, bool], int] = {}
    return tuple([first.setdefault(kind, idx) for idx, kind in enumerate(plain)])


@lru_cache(maxsize=256)
def _layer_kinds(architecture: Architecture) -> tuple[int, ...]:
    return _number(zip(architecture.layers, architecture.heads, strict=True))


def _kinds(architecture: Architecture, shapes: Shapes, places: Places) -> tuple[int, ...]:
    """Number the blocks so that those alike in weights, cache and place have one number.

    Bytes of weights tell blocks apart only on the host, where they may be copied from.
    """
    plain, sized = _weight_kinds(shapes)
    cpu, layers = places.n_devices, _layer_kinds(architecture)
    homes = list(zip(places.blocks, places.experts, strict=True))
    if cpu in places.blocks or cpu in places.experts:
        told = [size if cpu in home else -1 for home, size in zip(homes, sized, strict=True)]
        return _number(zip(homes, layers, plain, told, strict=False))
    return _number(zip(homes, layers, plain, strict=False))


def _crude_bytes(architecture: Architecture, batch: Batch) -> int:
    """A bound without a graph: ten residual streams, three hidden rows and the logits, in f32."""
    n_row = 10 * architecture.n_embd + 3 * max(architecture.n_ff, architecture.n_ff_active)
    return 4 * (n_row * batch.n_tokens + architecture.n_vocab * batch.n_outputs)


class _Graphs:
    """The graphs of one model for one step on so many devices, each recorded when it is first needed.

    They are the same for all quantizations of a model.
    """

    def __init__(self, record_one: Callable[[tuple[Spot, ...]], Recording]) -> None:
        self._record_one = record_one
        self._shortened: list[tuple[dict[Surroundings, int], Recording]] = []
        self._whole: dict[tuple[Spot, ...], Recording] = {}

    def find(self, spots: tuple[Spot, ...]) -> tuple[Recording, Sequence[int]]:
        """Return a recording without what only repeats, and for each spot the block that tells of it."""
        around = surroundings(spots)
        for places, recording in self._shortened:
            if all(one in places for one in around):
                return recording, [places[one] for one in around]
        walk = shorten(spots)
        kept = tuple(spots[idx] for idx in walk.kept)
        recording = self._record_one(kept)
        self._shortened.append((dict(zip(around, walk.steps, strict=True)), recording))
        return recording, walk.steps

    def find_whole(self, spots: tuple[Spot, ...]) -> tuple[Recording, Sequence[int]]:
        """Return the recording that has all spots, in their order."""
        if spots not in self._whole:
            self._whole[spots] = self._record_one(spots)
        return self._whole[spots], range(len(spots))


@lru_cache(maxsize=_CACHE_SIZE)
def _graphs(
    architecture: Architecture,
    shapes: Shapes,
    caches: Caches,
    batch: Batch,
    *,
    output_home: int,
    n_devices: int,
    op_offload: bool,
    pipeline: bool,
) -> _Graphs:
    def record_one(spots: tuple[Spot, ...]) -> Recording:
        model = Model(
            name=architecture.name,
            numbers=dict(architecture.numbers),
            n_embd=architecture.n_embd,
            layers=tuple(_layer(architecture, shapes, caches, spot, place) for place, spot in enumerate(spots)),
            table=dict(shapes.table),
            output_home=output_home,
            cpu=n_devices,
            batch=batch,
        )
        return record(build_graph(model), len(spots), n_devices, op_offload=op_offload, pipeline=pipeline)

    return _Graphs(record_one)


def _stand_in(architecture: Architecture, caches: Caches, batch: Batch) -> tuple[Caches, Batch, tuple[int, ...]]:
    """Return what the graph is built with in place of ``caches`` and ``batch``, and what the digits of its sizes count.

    Step and cells shape no graph, only sizes, but for three things: whether a step is large enough for weights to be
    copied, how many tokens an indexer lets through, and rows of cells that are packed into blocks.
    """
    packs_cells = not batch.flash_attn and batch.element_v.block > 1
    if batch.n_per_seq < OFFLOAD_MIN_BATCH or packs_cells or _chooses(architecture):
        return caches, batch, _AS_THEY_ARE
    n_tokens = TOKENS * batch.n_seq
    general = batch._replace(
        n_tokens=n_tokens,
        n_outputs=n_tokens if batch.n_outputs == batch.n_tokens else batch.n_outputs,
        n_ctx=int(batch.n_ctx > batch.n_ctx_short),
        n_ctx_short=0,
    )
    counts = powers(batch.n_per_seq, caches.n_cells, caches.n_cells_sliding)
    return Caches(n_cells=CELLS, n_cells_sliding=SLIDING_CELLS), general, counts


@lru_cache(maxsize=_CACHE_SIZE)
def _paddings(recording: Recording, counts: tuple[int, ...]) -> Paddings:
    return Paddings(work_out(size, counts) for size in recording.sizes)


@lru_cache(maxsize=_CACHE_SIZE)
def compute_bytes(
    architecture: Architecture,
    shapes: Shapes,
    places: Places,
    caches: Caches,
    batch: Batch,
    *,
    sizes: Shapes | None,
    op_offload: bool,
    pipeline: bool,
    every_layer: bool,
) -> tuple[int, ...]:
    """Return the compute bytes of each device and, last, of the host.

    ``shapes`` has no bytes of weights, ``sizes`` has: ``None`` where no weights can be copied to a device, so that all
    quantizations of a model are one question.
    """
    n_trunk = architecture.n_trunk
    if n_trunk <= 0:
        return (0,) * (places.n_devices + 1)
    every = every_layer or _needs_every_layer(architecture, shapes, places)
    kept = list(range(n_trunk)) if every else _kept(architecture, sizes or shapes, places)
    alike = _alike(architecture, shapes)
    if not every and not pipeline:
        kept = _in_step(kept, _number(zip(alike, places.blocks, places.experts, strict=False)))
    spots = tuple([_spot(architecture, alike, places, idx) for idx in kept])
    general_caches, general_batch, counts = _stand_in(architecture, caches, batch)
    graphs = _graphs(
        architecture,
        shapes,
        general_caches,
        general_batch,
        output_home=places.output,
        n_devices=places.n_devices,
        op_offload=op_offload,
        pipeline=pipeline,
    )
    try:
        recording, steps = graphs.find_whole(spots) if every or pipeline else graphs.find(spots)
    except (ArithmeticError, LookupError, ValueError):
        # keys and tensors contradict each other: the engine would refuse the file, a figure is still owed
        return (_crude_bytes(architecture, batch),) * (places.n_devices + 1)
    measured = _replay(recording, _paddings(recording, counts), steps, kept, sizes)
    if architecture.known:
        return measured
    percent = _EXOTIC_PERCENT if architecture.name in _EXOTIC else _UNKNOWN_PERCENT
    return tuple(n_bytes * percent // 100 for n_bytes in measured)


def _replay(
    recording: Recording, paddings: Paddings, steps: Sequence[int], kept: Sequence[int], sizes: Shapes | None
) -> tuple[int, ...]:
    """Return what each backend's buffer reaches with a quantization's weights, block by block."""
    blocks, table = [NO_WEIGHTS] * len(kept), NO_WEIGHTS
    if sizes is not None:
        by_block, table = _weights(sizes)
        blocks = [by_block[idx] for idx in kept]
    return tuple(
        largest([(before, NO_WEIGHTS), *zip([during[step] for step in steps], blocks, strict=True)], table, paddings)
        for before, *during in recording.pools
    )


@lru_cache(maxsize=256)
def _weights(sizes: Shapes) -> tuple[list[Weights], Weights]:
    """Return the bytes of each block's weights, and of those outside the blocks."""
    numbers = _weight_kinds(sizes)[1]
    first = {
        number: Weights({name: weight.n_bytes for name, weight in block})
        for number, block in dict(zip(numbers, sizes.blocks, strict=True)).items()
    }
    return [first[number] for number in numbers], Weights({name: weight.n_bytes for name, weight in sizes.table})
