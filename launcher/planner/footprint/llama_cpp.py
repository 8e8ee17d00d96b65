"""Predicted memory of llama.cpp for one configuration of one model.

Weights and cache restate the engine's own allocation rules (llama.cpp build 11434: ``src/llama-model.cpp``,
``src/llama-kv-cache*.cpp``) and are exact for the architectures that ``architecture.py`` knows. Compute buffers are
an upper estimate of the largest moment of the graph, checked against recorded breakdowns in the tests; they err high.
It chooses nothing: every value comes in ``LlamaCppConfig``.
"""

import struct
from bisect import bisect_right
from enum import StrEnum
from typing import Final

from msgspec import Struct

from launcher.domain import CacheType, Footprint, HostUse, MemoryUse, ModelSpec, TensorInfo
from launcher.planner.architecture import (
    Architecture,
    FullAttention,
    LayerCache,
    NoCache,
    RecurrentState,
    SlidingAttention,
    is_expert,
    layer_of,
)
from launcher.tensor_types import TensorType, tensor_bytes
from launcher.units import pad

CELL_PADDING: Final = 256
"""Cells are allocated in multiples of this (``llama_context``: ``GGML_PAD(n_ctx, 256)``)."""
DEFAULT_N_BATCH: Final = 2048
DEFAULT_N_UBATCH: Final = 512
_F32_BYTES: Final = 4
_F16_BYTES: Final = 2
_OP_OFFLOAD_MIN_BATCH: Final = 32
"""Batches below this stay on the CPU (``ggml_backend_cuda_device_offload_op``: ``min_batch_size``)."""
_PIPELINE_INPUT_COPIES: Final = 9
"""Copies of the graph's inputs with pipeline parallelism: measured on recorded breakdowns with two devices."""


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
        return k_bytes + tensor_bytes(type_v.tensor_type, (n_embd_v, n_rows))

    match layer:
        case FullAttention():
            return attention_bytes(layer.n_embd_k, layer.n_embd_v, cells.n_cells)
        case SlidingAttention():
            return attention_bytes(layer.n_embd_k, layer.n_embd_v, cells.sliding(layer.n_swa))
        case RecurrentState():
            return layer.n_elements * _F32_BYTES * cells.n_seq
        case NoCache():
            return 0


def _f32(value: float) -> float:
    """Round to single precision: the engine splits layers in ``float``."""
    result: float = struct.unpack("f", struct.pack("f", value))[0]
    return result


class Placement(Struct, frozen=True, kw_only=True):
    """Which memory each block and the output layer are in: a device's index, or ``None`` for the host."""

    blocks: tuple[int | None, ...]
    output: int | None


def place_layers(n_layer: int, n_gpu_layers: int, shares: tuple[float, ...]) -> Placement:
    """Assign blocks to devices: the last ``n_gpu_layers - 1`` blocks, and before them the output layer.

    Restates ``llama_model::load_tensors``: the offloaded items (output included) are split over the devices by the
    cumulative share, in single precision.
    """
    n_items = min(n_gpu_layers, n_layer + 1)
    if n_items <= 0 or not shares:
        return Placement(blocks=(None,) * n_layer, output=None)
    total, running, bounds = sum(shares), 0.0, []
    for share in shares:
        running += share
        bounds.append(_f32(running / total))
    start = n_layer + 1 - n_items

    def device(idx: int) -> int | None:
        if idx < start:
            return None
        return min(bisect_right(bounds, _f32((idx - start) / n_items)), len(shares) - 1)

    return Placement(blocks=tuple(device(idx) for idx in range(n_layer)), output=device(n_layer))


class BlockWeights(Struct, frozen=True, kw_only=True):
    """Bytes of one block's tensors, routed experts apart, and of the largest tensor of each kind."""

    dense_bytes: int
    expert_bytes: int
    largest_dense_bytes: int
    largest_expert_bytes: int


class ModelWeights(Struct, frozen=True, kw_only=True):
    """Where the bytes of a model's weights are, summed once so that many configurations can be tried.

    ``input_bytes`` always stays on the host. ``output_bytes`` counts the output layer's own tensors;
    ``tied_output_type`` is set where the token embeddings serve as output too, and ``input_bytes`` may be held twice.
    """

    blocks: tuple[BlockWeights, ...]
    input_bytes: int
    output_bytes: int
    largest_output_bytes: int
    tied_output_type: TensorType | None

    @property
    def total_bytes(self) -> int:
        """Sum over all tensors, each counted once."""
        blocks = sum(block.dense_bytes + block.expert_bytes for block in self.blocks)
        return blocks + self.input_bytes + self.output_bytes


class _BlockSums:
    """Running sums of one block."""

    __slots__ = ("dense", "experts", "largest_dense", "largest_expert")

    def __init__(self) -> None:
        self.dense = self.experts = self.largest_dense = self.largest_expert = 0

    def add(self, n_bytes: int, *, expert: bool) -> None:
        if expert:
            self.experts += n_bytes
            self.largest_expert = max(self.largest_expert, n_bytes)
        else:
            self.dense += n_bytes
            self.largest_dense = max(self.largest_dense, n_bytes)


def sum_weights(spec: ModelSpec, n_layer: int) -> ModelWeights:
    """Sort the tensors of a model into input, blocks and output, as ``llama_model::load_tensors`` assigns them."""
    blocks = [_BlockSums() for _ in range(n_layer)]
    input_bytes = output_bytes = largest_output = 0
    embedding: TensorInfo | None = None
    has_output = False
    for tensor in spec.tensors:
        idx = layer_of(tensor.name)
        if idx is not None and idx < n_layer:
            blocks[idx].add(tensor.n_bytes, expert=is_expert(tensor.name))
        elif idx is None and not tensor.name.startswith("output"):
            input_bytes += tensor.n_bytes
            embedding = tensor if tensor.name == "token_embd.weight" else embedding
        else:
            output_bytes += tensor.n_bytes
            largest_output = max(largest_output, tensor.n_bytes)
            has_output = has_output or tensor.name == "output.weight"
    return ModelWeights(
        blocks=tuple(
            BlockWeights(
                dense_bytes=block.dense,
                expert_bytes=block.experts,
                largest_dense_bytes=block.largest_dense,
                largest_expert_bytes=block.largest_expert,
            )
            for block in blocks
        ),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        largest_output_bytes=embedding.n_bytes if embedding and not has_output else largest_output,
        tied_output_type=embedding.type if embedding and not has_output else None,
    )


class _Memory:
    """Running sums of one memory while a footprint is added up."""

    __slots__ = ("kv_cache_bytes", "largest_tensor_bytes", "weights_bytes")

    def __init__(self) -> None:
        self.weights_bytes = 0
        self.kv_cache_bytes = 0
        self.largest_tensor_bytes = 0

    def add_weights(self, n_bytes: int, largest_bytes: int) -> None:
        self.weights_bytes += n_bytes
        self.largest_tensor_bytes = max(self.largest_tensor_bytes, largest_bytes)


def _add_weights(
    weights: ModelWeights, placement: Placement, config: LlamaCppConfig, devices: list[_Memory], host: _Memory
) -> None:
    def memory(target: int | None) -> _Memory:
        return host if target is None else devices[target]

    host.add_weights(weights.input_bytes, 0)
    for idx, (block, target) in enumerate(zip(weights.blocks, placement.blocks, strict=True)):
        memory(target).add_weights(block.dense_bytes, block.largest_dense_bytes)
        experts = None if idx < config.n_cpu_moe else target
        memory(experts).add_weights(block.expert_bytes, block.largest_expert_bytes)
    output = memory(placement.output)
    output.add_weights(weights.output_bytes, weights.largest_output_bytes)
    # Tied embeddings are held twice as soon as output and input live in different buffer types.
    if weights.tied_output_type is None:
        return
    repacked = config.backend is not Backend.GPU and weights.tied_output_type in config.repacked
    if placement.output is not None or repacked:
        output.add_weights(weights.largest_output_bytes, weights.largest_output_bytes)


def _mask_bytes(architecture: Architecture, cells: Cells, *, flash_attn: bool) -> int:
    """Attention masks: one per kind of attention, ``n_cells x n_ubatch`` over the streams of a batch."""
    element = _F16_BYTES if flash_attn else _F32_BYTES
    extents = set()
    for layer in architecture.layers:
        match layer:
            case FullAttention():
                extents.add((0, cells.n_cells))
            case SlidingAttention(n_swa=n_swa):
                extents.add((n_swa, cells.sliding(n_swa)))
            case RecurrentState() | NoCache():
                pass
    return sum(n_cells for _, n_cells in extents) * cells.n_ubatch * element


def _graph_bytes(architecture: Architecture, cells: Cells, config: LlamaCppConfig, *, with_output: bool) -> int:
    """Upper estimate of the largest moment of the graph on one backend, inputs excluded.

    Three moments compete: the feed-forward block (gate, up and their product live together, beside the residual
    stream), attention without flash attention (the score matrix, heads x cells), and the output rows.
    """
    n_tokens = cells.n_ubatch
    stream = architecture.n_embd * n_tokens * _F32_BYTES
    ffn = 3 * max(architecture.n_ff_active, 0 if architecture.is_moe else architecture.n_ff) * n_tokens * _F32_BYTES
    if architecture.is_moe:
        # The experts' outputs are gathered per used expert before they are summed.
        ffn += architecture.n_expert_used * stream
    attention = 6 * stream
    if not config.flash_attn:
        attention += architecture.n_head * cells.n_cells * n_tokens * _F32_BYTES
    recurrent = max((x.n_elements for x in architecture.layers if isinstance(x, RecurrentState)), default=0)
    state = 3 * recurrent * _F32_BYTES * cells.n_seq + 4 * stream if recurrent else 0
    n_outputs = cells.n_seq if config.n_outputs is None else min(config.n_outputs, n_tokens)
    output = architecture.n_vocab * n_outputs * _F32_BYTES if with_output else 0
    return max(ffn, attention, state, output) + 4 * stream


def _device_compute(
    architecture: Architecture, cells: Cells, config: LlamaCppConfig, memory: _Memory, host: _Memory, *, last: bool
) -> int:
    offloads_ops = config.backend is Backend.GPU and config.op_offload and cells.n_ubatch >= _OP_OFFLOAD_MIN_BATCH
    used = memory.weights_bytes > 0 or memory.kv_cache_bytes > 0
    if not used and not offloads_ops:
        return 0
    masks = _mask_bytes(architecture, cells, flash_attn=config.flash_attn)
    n_bytes = _graph_bytes(architecture, cells, config, with_output=last) + masks
    if host.weights_bytes and offloads_ops:
        # Operations on host-resident weights run on the device for large batches: their operands are copied there.
        n_bytes += host.largest_tensor_bytes + _largest_host_cache(architecture, cells, config, host)
    if len(config.shares) > 1 and config.n_gpu_layers > architecture.n_layer:
        n_bytes += _PIPELINE_INPUT_COPIES * (architecture.n_embd * cells.n_ubatch * _F32_BYTES + masks)
    return n_bytes


def _largest_host_cache(architecture: Architecture, cells: Cells, config: LlamaCppConfig, host: _Memory) -> int:
    if not host.kv_cache_bytes:
        return 0
    return max(layer_cache_bytes(x, cells, config.cache_type_k, config.cache_type_v) for x in architecture.layers)


def _host_compute(architecture: Architecture, cells: Cells, config: LlamaCppConfig, host: _Memory) -> int:
    stream = architecture.n_embd * cells.n_ubatch * _F32_BYTES
    masks = _mask_bytes(architecture, cells, flash_attn=config.flash_attn)
    computes = config.backend is Backend.CPU or (host.kv_cache_bytes > 0 and config.backend is Backend.RPC)
    if computes or not (config.op_offload and config.backend is Backend.GPU):
        on_device = not host.kv_cache_bytes and config.backend is not Backend.CPU
        if not on_device:
            return _graph_bytes(architecture, cells, config, with_output=True) + stream + masks
    inputs = 4 * stream + masks
    if len(config.shares) > 1 and config.n_gpu_layers > architecture.n_layer:
        inputs += 4 * (stream + masks)
    return inputs


def estimate_footprint(
    architecture: Architecture, weights: ModelWeights, config: LlamaCppConfig, device_names: tuple[str, ...]
) -> Footprint:
    """Predict what llama-server holds per device and on the host, in bytes.

    ``device_names`` has one entry per share. The last three host figures are zero here: they depend on serving
    options that the caller adds.
    """
    cells = count_cells(config)
    devices = [_Memory() for _ in config.shares]
    host = _Memory()
    shares = () if config.backend is Backend.CPU else config.shares
    placement = place_layers(architecture.n_layer, config.n_gpu_layers, shares)
    _add_weights(weights, placement, config, devices, host)
    for layer, target in zip(architecture.layers, placement.blocks, strict=True):
        n_bytes = layer_cache_bytes(layer, cells, config.cache_type_k, config.cache_type_v)
        (host if target is None else devices[target]).kv_cache_bytes += n_bytes
    return Footprint(
        devices=tuple(
            MemoryUse(
                name=name,
                weights_bytes=memory.weights_bytes,
                kv_cache_bytes=memory.kv_cache_bytes,
                compute_bytes=_device_compute(architecture, cells, config, memory, host, last=memory is devices[-1]),
            )
            for name, memory in zip(device_names, devices, strict=True)
        ),
        host=HostUse(
            weights_bytes=host.weights_bytes,
            kv_cache_bytes=host.kv_cache_bytes,
            compute_bytes=_host_compute(architecture, cells, config, host),
        ),
    )
