"""Predicted memory of llama.cpp for one configuration of one model.

Weights and cache restate the engine's own allocation rules (llama.cpp build 11434: ``src/llama-model.cpp``,
``src/llama-kv-cache*.cpp``) for the architectures that ``architecture.py`` knows. Compute buffers are measured on the
graph that llama-server reserves (``compute.py``). All are checked against recorded breakdowns in the tests.
It chooses nothing: every value comes in ``LlamaCppConfig``.
"""

import struct
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import CacheType, Footprint, HostUse, MemoryUse
from launcher.planner.architecture import (
    ENCODER_DECODERS,
    Architecture,
    AttentionAndState,
    CompressedAttention,
    FullAttention,
    IndexedAttention,
    LayerCache,
    NoCache,
    RecurrentState,
    SlidingAttention,
)
from launcher.planner.footprint.blocks import Batch, count_compressed
from launcher.planner.footprint.compute import Caches, Places, compute_bytes
from launcher.planner.footprint.graph import F16, F32, Element
from launcher.planner.footprint.weights import ModelWeights
from launcher.tensor_types import TRAITS, TensorType, tensor_bytes
from launcher.units import pad

CELL_PADDING: Final = 256
"""Cells are allocated in multiples of this (``llama_context``: ``GGML_PAD(n_ctx, 256)``)."""
DEFAULT_N_BATCH: Final = 2048
DEFAULT_N_UBATCH: Final = 512
_F32_BYTES: Final = 4


WITHOUT_FLASH_ATTENTION: Final = frozenset({"grok"})
"""The engine switches it off for these (``llama_init_from_model``)."""
X86_REPACKED: Final = frozenset(
    {TensorType.Q4_0, TensorType.Q4_K, TensorType.IQ4_NL, TensorType.MXFP4, TensorType.Q2_K}
)
"""What a build for AVX-512 without AMX repacks (``ggml/src/ggml-cpu/repack.cpp``): the recorded breakdowns' build."""
_REPACKED_ROWS: Final = 8
"""Only matrices of so many rows, or a multiple, are repacked."""


class Backend(StrEnum):
    """Which of llama.cpp's allocation rules apply.

    ``GPU``: a device with a pinned host buffer and operation offload (CUDA, Vulkan, Metal, ROCm); ``RPC``: a remote
    worker, which has neither; ``CPU``: no device.
    """

    GPU = "gpu"
    RPC = "rpc"
    CPU = "cpu"


class LlamaCppConfig(Struct, frozen=True, kw_only=True):
    """Everything that llama.cpp's memory depends on, by llama-server's names; ``n_ctx`` is the total of all slots.

    ``shares`` is one weight per device (``--tensor-split``, or free bytes where it is not given); its length is the
    number of devices. ``repacked`` are the types that this CPU repacks where the engine repacks at all.
    """

    n_ctx: int
    n_gpu_layers: int
    backend: Backend = Backend.GPU
    shares: tuple[float, ...] = (1.0,)
    n_parallel: int = 1
    kv_unified: bool = False
    n_batch: int = DEFAULT_N_BATCH
    n_ubatch: int = DEFAULT_N_UBATCH
    cache_type_k: CacheType = CacheType.F16
    cache_type_v: CacheType = CacheType.F16
    flash_attn: bool = True
    swa_full: bool = False
    n_cpu_moe: int = 0
    op_offload: bool = True
    repacked: frozenset[TensorType] = frozenset()
    n_outputs: int | None = None
    """Rows of logits that a batch may ask for; ``None``: one per sequence, to which llama-server bounds them."""


class Cells(Struct, frozen=True, kw_only=True):
    """How many cache cells one stream has, and how many streams there are."""

    n_stream: int
    n_cells: int
    n_seq: int
    n_ubatch: int
    window_factor: int
    swa_full: bool
    n_embd_v_padded: int = 0

    def sliding(self, n_swa: int) -> int:
        """Return the cells of a sliding layer (``llama_kv_cache_iswa``)."""
        if self.swa_full:
            return self.n_cells
        return pad(min(self.n_cells, n_swa * self.window_factor + self.n_ubatch), CELL_PADDING)


def count_cells(config: LlamaCppConfig) -> Cells:
    """Apply the engine's padding and caps to a requested context."""
    n_total = pad(config.n_ctx, CELL_PADDING)
    n_stream = 1 if config.kv_unified else config.n_parallel
    n_batch = min(config.n_batch, config.n_ctx)
    return Cells(
        n_stream=n_stream,
        n_cells=n_total if config.kv_unified else pad(n_total // config.n_parallel, CELL_PADDING),
        n_seq=config.n_parallel,
        n_ubatch=min(config.n_ubatch, n_batch),
        window_factor=config.n_parallel if config.kv_unified else 1,
        swa_full=config.swa_full,
    )


def layer_cache_bytes(layer: LayerCache, cells: Cells, type_k: CacheType, type_v: CacheType) -> int:
    """Return the bytes that one layer's cache takes over all streams."""

    def attention_bytes(n_embd_k: int, n_embd_v: int, n_cells: int) -> int:
        n_rows = n_cells * cells.n_stream
        k_bytes = tensor_bytes(type_k.tensor_type, (n_embd_k, n_rows))
        # without flash attention all V caches have rows of the longest (TAG_V_CACHE_VARIABLE)
        n_v = max(n_embd_v, cells.n_embd_v_padded) if n_embd_v or not n_embd_k else 0
        return k_bytes + tensor_bytes(type_v.tensor_type, (n_v, n_rows))

    match layer:
        case FullAttention() | SlidingAttention():
            n_cells = cells.sliding(layer.n_swa) if isinstance(layer, SlidingAttention) else cells.n_cells
            return attention_bytes(layer.n_embd_k, layer.n_embd_v, n_cells)
        case IndexedAttention():
            n_rows = cells.n_cells * cells.n_stream
            index_bytes = tensor_bytes(type_k.tensor_type, (layer.n_index, n_rows))
            index_bytes += tensor_bytes(type_v.tensor_type, (layer.n_index_v, n_rows))
            return attention_bytes(layer.n_embd_k, layer.n_embd_v, cells.n_cells) + index_bytes
        case CompressedAttention():
            n_rows = count_compressed(cells.n_cells, layer.ratio) * cells.n_stream
            row_bytes = tensor_bytes(type_k.tensor_type, (layer.n_embd_k, n_rows))
            row_bytes += tensor_bytes(type_k.tensor_type, (layer.n_index, n_rows))
            state_bytes = layer.n_state * _F32_BYTES * cells.n_seq
            n_sliding = cells.sliding(layer.n_swa) * cells.n_stream
            return tensor_bytes(type_k.tensor_type, (layer.n_embd_k, n_sliding)) + row_bytes + state_bytes
        case RecurrentState():
            return layer.n_elements * _F32_BYTES * cells.n_seq
        case AttentionAndState():
            state_bytes = layer.state.n_elements * _F32_BYTES * cells.n_seq
            return state_bytes + layer_cache_bytes(layer.attention, cells, type_k, type_v)
        case NoCache():
            return 0


def _f32(value: float) -> float:
    """Round to single precision: the engine splits layers in ``float``."""
    result: float = struct.unpack("f", struct.pack("f", value))[0]
    return result


class Run(NamedTuple):
    """Blocks ``start`` to ``end`` (exclusive) in one memory: a device's index, or ``None`` for the host."""

    memory: int | None
    start: int
    end: int


class Placement(Struct, frozen=True, kw_only=True):
    """Which memory each block and the output layer are in: a device's index, or ``None`` for the host.

    ``runs`` says the same of the blocks in as few pieces as there are memories.
    """

    blocks: tuple[int | None, ...]
    output: int | None
    runs: tuple[Run, ...]


def _first_from(bound: float, n_items: int) -> int:
    """Return the first item whose part of all lies at ``bound`` or above, in single precision; their number at most."""
    item = max(0, int(bound * n_items) - 1)  # that one is surely below, unless it is the first
    while item < n_items and _f32(item / n_items) < bound:
        item += 1
    return item


@lru_cache(maxsize=4096)  # the artifacts of a model are tried at the same counts
def place_layers(n_layer: int, n_gpu_layers: int, shares: tuple[float, ...]) -> Placement:
    """Assign blocks to devices: the last ``n_gpu_layers - 1`` blocks, and before them the output layer.

    Restates ``llama_model::load_tensors``: the offloaded items (output included) are split over the devices by the
    cumulative share, in single precision.
    """
    n_items = min(n_gpu_layers, n_layer + 1)
    if n_items <= 0 or not shares:
        return Placement(blocks=(None,) * n_layer, output=None, runs=(Run(None, 0, n_layer),))
    sums = list(accumulate(shares, lambda total, share: _f32(total + _f32(share)), initial=0.0))[1:]
    bounds = [_f32(total / sums[-1]) for total in sums]
    ends = [_first_from(bound, n_items) for bound in bounds[:-1]]
    start = n_layer + 1 - n_items
    runs = [Run(None, 0, start)]
    runs += [
        Run(device, start + first, start + end) for device, (first, end) in enumerate(pairwise([0, *ends, n_items]))
    ]
    homes = [run.memory for run in runs for _ in range(run.start, run.end)]
    return Placement(
        blocks=tuple(homes[:n_layer]),
        output=homes[n_layer],
        runs=tuple(
            Run(run.memory, run.start, min(run.end, n_layer)) for run in runs if run.start < min(run.end, n_layer)
        ),
    )


class Held(NamedTuple):
    """What is in one memory before any graph is built."""

    weights_bytes: int
    kv_cache_bytes: int


@lru_cache(maxsize=1024)
def _cache_sums(architecture: Architecture, cells: Cells, type_k: CacheType, type_v: CacheType) -> tuple[int, ...]:
    """Bytes of the caches of the blocks before each, and of all."""
    by_kind = {layer: layer_cache_bytes(layer, cells, type_k, type_v) for layer in set(architecture.layers)}
    return tuple(accumulate((by_kind[layer] for layer in architecture.layers), initial=0))


def block_caches(architecture: Architecture, config: LlamaCppConfig) -> tuple[int, ...]:
    """Return the bytes of each block's cache, wherever the block is."""
    config = _as_engine(architecture, config)
    return _caches(architecture, _cells(architecture, config), config.cache_type_k, config.cache_type_v)


@lru_cache(maxsize=1024)
def _caches(architecture: Architecture, cells: Cells, type_k: CacheType, type_v: CacheType) -> tuple[int, ...]:
    return tuple(after - before for before, after in pairwise(_cache_sums(architecture, cells, type_k, type_v)))


@lru_cache(maxsize=64)
def is_compressed(architecture: Architecture) -> bool:
    """Tell whether cached rows stand for several tokens."""
    return any(isinstance(layer, CompressedAttention) for layer in architecture.layers)


def cells_by_slot(cells: Cells) -> Cells:
    """Give each slot a stream, as the engine does with compressed rows however it is asked (``llama_kv_cache_dsv4``)."""
    return replace(cells, n_stream=cells.n_seq, window_factor=1)


def _cells(architecture: Architecture, config: LlamaCppConfig) -> Cells:
    cells = count_cells(config)
    if is_compressed(architecture):
        return cells_by_slot(cells)
    if config.flash_attn:
        return cells
    return replace(cells, n_embd_v_padded=_longest_row(architecture))


@lru_cache(maxsize=64)
def _longest_row(architecture: Architecture) -> int:
    """Return the elements of the longest row of V that any block caches."""
    return max((head.head_v * head.n_head_kv for head in architecture.heads), default=0)


def _as_engine(architecture: Architecture, config: LlamaCppConfig) -> LlamaCppConfig:
    if config.flash_attn and architecture.name in WITHOUT_FLASH_ATTENTION:
        config = replace(config, flash_attn=False)
    if architecture.cacheless:  # batches are bounded by the context as it is allocated, not as it was asked for
        cells = count_cells(config)
        config = replace(config, n_ctx=cells.n_cells * cells.n_stream)
    return config


def _place(architecture: Architecture, config: LlamaCppConfig) -> Placement:
    return place_layers(architecture.n_layer, config.n_gpu_layers, _shares(config))


def _shares(config: LlamaCppConfig) -> tuple[float, ...]:
    return () if config.backend is Backend.CPU else config.shares


def held_bytes(architecture: Architecture, weights: ModelWeights, config: LlamaCppConfig) -> tuple[Held, ...]:
    """Return weights and cache of each device and, last, of the host: exact, and quick enough to search with."""
    return hold_like(architecture, weights, config)(config.n_gpu_layers, config.n_cpu_moe)


def hold_like(
    architecture: Architecture, weights: ModelWeights, config: LlamaCppConfig
) -> Callable[[int, int], tuple[Held, ...]]:
    """Return what tells ``held_bytes`` by ``n_gpu_layers`` and ``n_cpu_moe``, all else being as in ``config``."""
    config = _as_engine(architecture, config)
    caches = _cache_sums(architecture, _cells(architecture, config), config.cache_type_k, config.cache_type_v)
    shares = _shares(config)

    def hold(n_gpu_layers: int, n_cpu_moe: int) -> tuple[Held, ...]:
        return _held(weights, config, caches, place_layers(architecture.n_layer, n_gpu_layers, shares), n_cpu_moe)

    return hold


def _held(
    weights: ModelWeights, config: LlamaCppConfig, caches: tuple[int, ...], placement: Placement, n_cpu_moe: int
) -> tuple[Held, ...]:
    n_devices = len(config.shares)
    dense, experts = weights.dense_sums, weights.expert_sums
    held = [0] * (n_devices + 1)
    cached = [0] * (n_devices + 1)
    held[-1] = weights.input_bytes
    for memory, start, end in placement.runs:
        at = n_devices if memory is None else memory
        on_host = min(max(n_cpu_moe, start), end)
        held[at] += dense[end] - dense[start] + experts[end] - experts[on_host]
        held[-1] += experts[on_host] - experts[start]
        cached[at] += caches[end] - caches[start]
    output = n_devices if placement.output is None else placement.output
    held[output] += weights.output_bytes
    # Tied embeddings are held twice as soon as output and input live in different buffer types.
    if weights.tied_output_type is not None:
        repacked = (
            config.backend is not Backend.GPU
            and weights.tied_output_type in config.repacked
            and weights.n_tied_rows % _REPACKED_ROWS == 0
        )
        if placement.output is not None or repacked or weights.always_twice:
            held[output] += weights.largest_output_bytes
    return tuple(map(Held, held, cached))


def _element(cache: CacheType) -> Element:
    kind = cache.tensor_type
    if kind in {TensorType.F16, TensorType.F32}:
        return F16 if kind is TensorType.F16 else F32
    traits = TRAITS[kind]
    return Element(cache.value, traits.block_size, traits.block_bytes)


def _compute(
    architecture: Architecture,
    weights: ModelWeights,
    config: LlamaCppConfig,
    placement: Placement,
    cells: Cells,
    *,
    every_layer: bool,
) -> tuple[int, ...]:
    """Compute bytes of each device and, last, of the host."""
    n_devices = 0 if config.backend is Backend.CPU else len(config.shares)
    blocks = tuple(n_devices if target is None else target for target in placement.blocks)
    op_offload = config.op_offload and config.backend is Backend.GPU
    on_host = op_offload and (n_devices in blocks or placement.output is None or config.n_cpu_moe > 0)
    n_tokens = -(-cells.n_ubatch // cells.n_seq) * cells.n_seq
    n_outputs = cells.n_seq if config.n_outputs is None else config.n_outputs
    if architecture.name in ENCODER_DECODERS:  # llama_context lets them ask for all
        n_outputs = cells.n_ubatch
    windowed = SlidingAttention | CompressedAttention
    n_swa = max((layer.n_swa for layer in architecture.layers if isinstance(layer, windowed)), default=0)
    return compute_bytes(
        architecture,
        weights.shapes,
        Places(
            blocks=blocks,
            experts=(n_devices,) * min(config.n_cpu_moe, len(blocks)) + blocks[config.n_cpu_moe :],
            output=n_devices if placement.output is None else placement.output,
            n_devices=n_devices,
        ),
        Caches(n_cells=cells.n_cells, n_cells_sliding=cells.sliding(n_swa)),
        Batch(
            n_tokens=n_tokens,
            n_seq=cells.n_seq,
            n_stream=cells.n_stream,
            n_outputs=min(cells.n_ubatch, n_outputs),
            flash_attn=config.flash_attn,
            cacheless=architecture.cacheless,
            element_k=_element(config.cache_type_k),
            element_v=_element(config.cache_type_v),
            n_embd_v_padded=cells.n_embd_v_padded,
            n_position=architecture.n_position,
            n_ctx=cells.n_cells,
            n_ctx_short=architecture.n_ctx_short,
        ),
        sizes=weights.sizes if on_host else None,
        op_offload=op_offload,
        every_layer=every_layer,
        pipeline=n_devices > 1 and config.n_gpu_layers > architecture.n_layer and config.n_cpu_moe == 0,
    )


def estimate_footprint(
    architecture: Architecture,
    weights: ModelWeights,
    config: LlamaCppConfig,
    device_names: tuple[str, ...],
    *,
    every_layer: bool = False,
) -> Footprint:
    """Predict what llama-server holds per device and on the host, in bytes.

    ``device_names`` has one entry per share. The last three host figures are zero here: they depend on serving
    options that the caller adds. ``every_layer`` simulates all blocks instead of representative ones: exact where
    weights on the host are copied to a device, and several times slower for a deep model.
    """
    config = _as_engine(architecture, config)
    cells = _cells(architecture, config)
    placement = _place(architecture, config)
    caches = _cache_sums(architecture, cells, config.cache_type_k, config.cache_type_v)
    *devices, host = _held(weights, config, caches, placement, config.n_cpu_moe)
    compute = _compute(architecture, weights, config, placement, cells, every_layer=every_layer)
    return Footprint(
        devices=tuple(
            MemoryUse(
                name=name,
                weights_bytes=memory.weights_bytes,
                kv_cache_bytes=memory.kv_cache_bytes,
                compute_bytes=n_bytes,
            )
            for name, memory, n_bytes in zip(device_names, devices, compute, strict=False)
        ),
        host=HostUse(
            weights_bytes=host.weights_bytes,
            kv_cache_bytes=host.kv_cache_bytes,
            compute_bytes=compute[-1],
        ),
    )
