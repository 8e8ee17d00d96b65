"""Predicted memory of vLLM for one configuration of one model, per GPU rank.

Restates vLLM 0.32.0 (files named under ``vllm/``): weights per rank, the KV cache's groups and blocks, and the start-up
profile that decides how much is left for the cache. The few constants that no source tells were fitted to start-up logs of
vLLM 0.19.0 on an H100 (``tests/planner/data/vllm_published.json``); every assumption stands in the estimate's notes.
``plan_vllm`` chooses a configuration for given GPUs; it does not compare engines, nor read a machine.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import Device, Footprint, HostUse, MemoryUse, ModelSpec, Provenance
from launcher.planner.footprint.vllm_learnt import NOTHING, Learnt
from launcher.planner.footprint.vllm_model import FullKv, SlidingKv, StateKv, VllmModel, read_model
from launcher.planner.footprint.vllm_place import Hosts, Ranks, list_parallelisms, place_ranks
from launcher.planner.footprint.vllm_support import activation_bytes, activation_note, refuse_division, refuse_gpu
from launcher.units import GIB, KIB, MIB, ceil_div, format_bytes

DEFAULT_BLOCK_SIZE: Final = 16
DEFAULT_UTILIZATION: Final = 0.92
DEFAULT_MAX_NUM_BATCHED_TOKENS: Final = 2048
"""The API server's own below 70 GiB (``engine/arg_utils.py``: ``get_batch_defaults``)."""

DRIVER_RESERVED_BYTES: Final = 480 * MIB
"""What NVML counts as memory of a GPU and the CUDA runtime does not (published: 0.43 to 0.48 GiB on L4, 3090, 4090, 5090,
H100). ``gpu_memory_utilization`` is of the CUDA runtime's total."""
CONTEXT_BYTES: Final = 532 * MIB
"""Taken by the CUDA context before the engine's first look at free memory (published: 0.51 GiB, H100, one GPU)."""
CONTEXT_PARALLEL_BYTES: Final = 1588 * MIB
"""The same with NCCL and several GPUs (published: 1.43 to 1.55 GiB, H100)."""
NON_TORCH_BYTES: Final = 272 * MIB
"""Taken outside the tensor allocator during the profile (published: 0.24 to 0.27 GiB, H100, one GPU)."""
NON_TORCH_PARALLEL_BYTES: Final = 512 * MIB
"""The same with tensor parallelism (published: 0.2 to 0.33 GiB on PCIe GPUs with older releases; assumed larger now)."""
NON_TORCH_NVLINK_BYTES: Final = 2264 * MIB
"""The same on data-centre GPUs from 9.0 (published: 2.06 to 2.21 GiB, 2 and 4 H100: all-reduce buffers)."""
SYMMETRIC_MEMORY_FROM: Final = (9, 0)

LOGIT_EXTRA_BYTES: Final = 12.4
"""Per row and vocabulary entry beside the logits themselves: their float32 copy, the probabilities, and the random numbers of
the sampler (``v1/sample/sampler.py``, ``topk_topp_sampler.py``: 3 x 4 bytes); 0.4 was fitted on 15 logs."""
ACTIVATION_BASE_BYTES: Final = 64 * MIB
"""Workspaces of the linear algebra library (fitted on the same logs)."""
ENCODER_BYTES: Final = 256 * MIB
"""Of an image or audio encoder's profile run (published: 0.1 to 0.25 GiB; it depends on the largest image)."""
LINEAR_CHUNK: Final = 64
"""Tokens per chunk of linear attention, each of which keeps a state (``fla/ops/chunk.py``)."""

GRAPH_BASE_BYTES: Final = 50 * MIB
GRAPH_LAYER_BYTES: Final = 221 * KIB
"""Per captured graph and layer, and where experts are routed 4 MiB more per graph (fitted on 30 logs; single logs differ by
a third, three of them by a factor of two)."""
GRAPH_MOE_BYTES: Final = 4 * MIB
MAX_CAPTURE: Final = 512
"""Largest captured batch; 1024 on data-centre Blackwell (``config/vllm.py``: ``_set_cudagraph_sizes``)."""
MAX_CAPTURE_BLACKWELL: Final = 1024

HOST_BYTES: Final = 2 * GIB
"""Assumed: API server with engine core; measured on CPU at 1.7 GiB for all processes of a tiny model."""
HOST_RANK_BYTES: Final = 2 * GIB
"""Assumed: one worker process with the CUDA libraries."""

_STATE_BLOCKS: Final = 2
"""Blocks that a sequence's state takes with prefix caching, which aligns states to blocks (``MambaSpec``: ``align``)."""
_PADDING_LIMIT: Final = 1.5
_UTILIZATION_STEPS: Final = 1000
MARGIN_BYTES: Final = 512 * MIB
"""Left free on every GPU by ``plan_vllm``: the project's margin for devices."""


class VllmConfig(Struct, frozen=True, kw_only=True):
    """Everything that vLLM's memory depends on, by its own names."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = DEFAULT_UTILIZATION
    kv_cache_dtype: str = "auto"
    enforce_eager: bool = False
    block_size: int = DEFAULT_BLOCK_SIZE
    kv_cache_memory_bytes: int | None = None
    """Of the cache, where it is fixed; then the utilization does not count."""

    @property
    def n_rank(self) -> int:
        """Number of GPUs."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class Note(Struct, frozen=True, kw_only=True):
    """One assumption of an estimate, and where it comes from."""

    text: str
    provenance: Provenance


class KvGroup(Struct, frozen=True, kw_only=True):
    """Layers that share a block table (``v1/core/kv_cache_utils.py``: ``KVCacheGroupSpec``).

    A page is what one layer stores in one block of ``block_size`` tokens. ``window`` is ``None`` where all tokens stay; a
    ``block_size`` of ``None`` marks states, which take a fixed number of blocks per sequence.
    """

    layers: tuple[int, ...]
    page_bytes: tuple[int, ...]
    block_size: int | None
    window: int | None = None

    def n_blocks(self, max_model_len: int, n_in_flight: int) -> int:
        """Return the blocks that one request of full length may take (``max_admission_blocks_per_request``)."""
        if self.block_size is None:
            return _STATE_BLOCKS
        if self.window is None:
            return ceil_div(max_model_len, self.block_size)
        return ceil_div(min(self.window - 1 + n_in_flight, max_model_len), self.block_size) + 1


class KvLayout(Struct, frozen=True, kw_only=True):
    """How a model's cache is divided into blocks: all groups draw blocks of one size from one pool."""

    groups: tuple[KvGroup, ...]
    n_in_flight: int

    def block_bytes(self, layers: range) -> int:
        """Return the bytes of one block on a rank that holds these layers (``_get_kv_cache_bytes_per_block``)."""
        return max(
            (
                sum(page for idx, page in zip(group.layers, group.page_bytes, strict=True) if idx in layers)
                for group in self.groups
            ),
            default=0,
        )

    def blocks_per_request(self, max_model_len: int) -> int:
        """Return the blocks that one request of full length may take, over all groups."""
        return sum(group.n_blocks(max_model_len, self.n_in_flight) for group in self.groups)

    def max_model_len(self, n_blocks: int, limit: int) -> int:
        """Return the longest request that ``n_blocks`` hold beside the null block, at most ``limit``; 0 if none."""
        low, high = 0, max(0, limit)
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_per_request(middle) <= n_blocks - 1:
                low = middle
            else:
                high = middle - 1
        return low


class RankUse(Struct, frozen=True, kw_only=True):
    """What one rank holds on its GPU. ``graph_bytes`` and ``non_torch_bytes`` are counted within the utilization."""

    name: str
    weights_bytes: int
    activation_bytes: int
    graph_bytes: int
    non_torch_bytes: int
    kv_cache_bytes: int
    available_kv_bytes: int

    @property
    def fixed_bytes(self) -> int:
        """Everything but the cache."""
        return self.weights_bytes + self.activation_bytes + self.graph_bytes + self.non_torch_bytes


class VllmEstimate(Struct, frozen=True, kw_only=True):
    """What vLLM would say at start.

    ``n_blocks`` is the smallest of the ranks'. ``kv_tokens`` is what the engine logs: concurrency times length, which for models
    with windows or states is not the number of cached tokens. ``required_utilization`` holds ``max_num_seqs`` requests of full
    length, ``minimum_utilization`` one. ``refusal`` is why the engine would not start.
    """

    ranks: tuple[RankUse, ...]
    n_blocks: int
    max_concurrency: float
    kv_tokens: int
    largest_max_model_len: int
    required_utilization: float
    minimum_utilization: float
    refusal: str | None
    notes: tuple[Note, ...]


class VllmChoice(Struct, frozen=True, kw_only=True):
    """A configuration that ``plan_vllm`` chose: on which devices, what it predicts, and what it gave up for memory."""

    model: VllmModel
    config: VllmConfig
    ranks: Ranks
    estimate: VllmEstimate
    given_up: tuple[str, ...] = ()
    learnt_bytes: int = 0
    """What earlier starts taught of a rank's use, as far as it is counted in."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of the GPUs, one per rank."""
        return tuple(device.name for device in self.ranks.devices)


# --- Parts ------------------------------------------------------------------------------------------------------


def stage_layers(n_layer: int, n_stage: int) -> tuple[range, ...]:
    """Divide blocks over pipeline stages; what is left over goes to the stages before the last (``get_pp_indices``)."""
    sizes = [n_layer // n_stage] * n_stage
    for idx in range(n_layer % n_stage):
        sizes[-idx - 2] += 1
    bounds = [sum(sizes[:idx]) for idx in range(n_stage + 1)]
    return tuple(range(start, end) for start, end in pairwise(bounds))


def lay_out_kv(model: VllmModel, config: VllmConfig) -> KvLayout:
    """Divide the layers into groups as ``get_kv_cache_groups`` does, after making their pages equally large."""
    tp = config.tensor_parallel_size
    element = 1 if config.kv_cache_dtype.startswith("fp8") else model.dtype_bytes
    different = {id(layer): layer for layer in model.layers if layer is not None}.values()  # most blocks share theirs
    states = [layer.state_bytes(tp, model.dtype_bytes) for layer in different if isinstance(layer, StateKv)]
    tokens = [layer.bytes_per_token(tp, element) for layer in different if isinstance(layer, FullKv | SlidingKv)]
    largest = max(tokens, default=0)
    # A state has to fit in the page of an attention layer: tokens are added to the block until it does.
    block = config.block_size
    if states and largest:
        block = max(block, ceil_div(max(states), largest * block) * block)
    page = max(largest * block, max(states, default=0))
    # Batches may be in flight at once: two with asynchronous scheduling, one more per further stage.
    n_in_flight = (config.pipeline_parallel_size + 1) * config.max_num_batched_tokens
    kinds: dict[tuple[int | None, int | None, int], list[int]] = {}
    kind_of = {id(layer): _kind(layer, block, page, tp, element) for layer in different}
    for idx, layer in enumerate(model.layers):
        if layer is not None:
            kinds.setdefault(kind_of[id(layer)], []).append(idx)
    windows = {window for _, window, _ in kinds}
    if len(windows) <= 1 and not states:
        # All layers need the same tokens: one group, each layer with a page of its own size.
        pages = {
            id(layer): layer.bytes_per_token(tp, element) * block
            for layer in different
            if isinstance(layer, FullKv | SlidingKv)
        }
        per_layer = [(idx, pages[id(layer)]) for idx, layer in enumerate(model.layers) if id(layer) in pages]
        groups = [
            KvGroup(
                layers=tuple(idx for idx, _ in per_layer),
                page_bytes=tuple(n_bytes for _, n_bytes in per_layer),
                block_size=block,
                window=next(iter(windows), None),
            )
        ]
        return KvLayout(groups=tuple(groups) if per_layer else (), n_in_flight=n_in_flight)
    size = _group_size([len(layers) for layers in kinds.values()])
    return KvLayout(
        groups=tuple(
            KvGroup(layers=part, page_bytes=(page,) * len(part), block_size=block_size, window=window)
            for (block_size, window, _), layers in kinds.items()
            for part in _interleave(layers, ceil_div(len(layers), size))
        ),
        n_in_flight=n_in_flight,
    )


def _kind(
    layer: FullKv | SlidingKv | StateKv, block: int, page: int, tp: int, element: int
) -> tuple[int | None, int | None, int]:
    """Return block size, window and page before padding: layers equal in these share a group (``unify_kv_cache_spec_page_size``)."""
    if isinstance(layer, StateKv):
        return None, None, 0
    own = layer.bytes_per_token(tp, element) * block
    # A smaller page that divides the largest takes more tokens per block; any other is padded.
    ratio = page // own if own and page % own == 0 else 1
    return block * ratio, layer.window if isinstance(layer, SlidingKv) else None, own


def _group_size(counts: Sequence[int]) -> int:
    """Return the layers per group: the rarest kind's, unless the kinds are nearly equally frequent."""
    return max(counts) if max(counts) < min(counts) * _PADDING_LIMIT else min(counts)


def _interleave(layers: list[int], n_group: int) -> Iterator[tuple[int, ...]]:
    for idx in range(n_group):
        yield tuple(layers[idx::n_group])


def capture_sizes(config: VllmConfig, compute_capability: tuple[int, int] | None) -> tuple[int, int]:
    """Return the numbers of graphs captured for mixed batches and for pure generation (``_set_cudagraph_sizes``)."""
    if config.enforce_eager:
        return 0, 0
    blackwell = compute_capability is not None and compute_capability[0] == 10  # noqa: PLR2004 - B200, B300
    ceiling = MAX_CAPTURE_BLACKWELL if blackwell else MAX_CAPTURE
    largest = max(1, min(config.max_num_seqs * 2, ceiling, config.max_num_batched_tokens))
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)}
    sizes = {size for size in sizes if size <= largest}
    if config.max_num_batched_tokens <= largest:
        sizes.add(config.max_num_batched_tokens)
    return len(sizes), sum(size <= config.max_num_seqs for size in sizes)


def graph_bytes(model: VllmModel, config: VllmConfig, n_layer: int, compute_capability: tuple[int, int] | None) -> int:
    """Return what the captured graphs take on a rank with ``n_layer`` blocks: fitted, see ``GRAPH_LAYER_BYTES``."""
    n_graph = sum(capture_sizes(config, compute_capability))
    if not n_graph:
        return 0
    per_graph = n_layer * GRAPH_LAYER_BYTES + (GRAPH_MOE_BYTES if model.is_moe else 0)
    return GRAPH_BASE_BYTES + n_graph * max(MIB, per_graph)


def activation_peak_bytes(
    model: VllmModel, config: VllmConfig, *, last: bool, compute_capability: tuple[int, int] | None = None
) -> int:
    """Return the peak of the profiling run over the weights (``v1/worker/gpu_model_runner.py``: ``profile_run``).

    A dummy batch of ``max_num_batched_tokens`` goes through the model, then its last rows through the sampler. Two moments
    compete: the feed-forward block (gate with up, their product, three copies of the stream) and the sampler
    (``max_num_seqs`` rows of logits). The workspace of routed experts stays once it was taken
    (``fused_moe/experts/triton_moe.py``: ``workspace_shapes``).
    """
    tp, n_tokens, size = config.tensor_parallel_size, config.max_num_batched_tokens, model.dtype_bytes
    stream = n_tokens * model.n_embd * size
    expert = model.n_ff_expert // tp
    workspace = 0
    hopper = compute_capability is not None and compute_capability >= SYMMETRIC_MEMORY_FROM
    if model.is_moe and not (model.quantization == "mxfp4" and hopper):
        rows = max(expert, model.n_embd) + max(2 * expert, model.n_embd)
        workspace = n_tokens * model.n_expert_used * rows * size
    n_ff = 0 if model.is_moe else model.n_ff // tp
    block = 3 * n_tokens * n_ff * size + 3 * stream
    states = [layer for layer in model.layers if isinstance(layer, StateKv)]
    if states:
        chunks = ceil_div(n_tokens, LINEAR_CHUNK) * states[0].n_recurrent // tp * size
        block = max(block, 3 * n_tokens * model.n_linear // tp * size + 3 * stream + chunks)
    moment = block + 2 * stream
    if last:
        n_rows = min(config.max_num_seqs, n_tokens)
        sampler = int(n_rows * model.n_vocab * (size + LOGIT_EXTRA_BYTES)) + stream
        moment = max(block, sampler)
    return ACTIVATION_BASE_BYTES + workspace + moment + (ENCODER_BYTES if model.multimodal else 0)


def _non_torch_bytes(config: VllmConfig, compute_capability: tuple[int, int] | None) -> int:
    if config.tensor_parallel_size == 1:
        return NON_TORCH_BYTES
    # Consumer Blackwell is 12.x and has no NVLink; data-centre GPUs are 9.x and 10.x.
    if compute_capability is not None and SYMMETRIC_MEMORY_FROM <= compute_capability < (12, 0):
        return NON_TORCH_NVLINK_BYTES
    return NON_TORCH_PARALLEL_BYTES


def cuda_total_bytes(device: Device) -> int:
    """Return the total that the CUDA runtime reports, which ``gpu_memory_utilization`` is a fraction of."""
    return max(0, device.total_bytes - DRIVER_RESERVED_BYTES)


def context_bytes(n_rank: int) -> int:
    """Return what is taken on each of so many GPUs before the engine first looks."""
    return CONTEXT_BYTES if n_rank == 1 else CONTEXT_PARALLEL_BYTES


def free_at_start_bytes(device: Device, config: VllmConfig) -> int:
    """Return what is free when the engine first looks, after the CUDA context and NCCL took their part."""
    free = cuda_total_bytes(device) if device.free_bytes is None else device.free_bytes
    return max(0, min(free, cuda_total_bytes(device)) - context_bytes(config.n_rank))


# --- The whole --------------------------------------------------------------------------------------------------


def estimate(model: VllmModel, config: VllmConfig, devices: Sequence[Device], learnt: Learnt = NOTHING) -> VllmEstimate:
    """Predict a start of vLLM. ``devices`` has one entry per rank: all of the first pipeline stage, then the next.

    Raises:
        ValueError: the number of devices is not the number of ranks.
    """
    if len(devices) != config.n_rank:
        msg = f"{len(devices)} devices for {config.n_rank} ranks"
        raise ValueError(msg)
    layout = lay_out_kv(model, config)
    stages = stage_layers(model.n_layer, config.pipeline_parallel_size)
    ranks = _size_ranks(model, config, devices, stages, learnt)
    block_bytes = [layout.block_bytes(stages[idx // config.tensor_parallel_size]) for idx in range(len(devices))]
    n_blocks = min(
        (
            max(0, rank.available_kv_bytes) // n_bytes
            for rank, n_bytes in zip(ranks, block_bytes, strict=True)
            if n_bytes
        ),
        default=0,
    )
    per_request = layout.blocks_per_request(config.max_model_len)
    concurrency = n_blocks / per_request if per_request else float(config.max_num_seqs)
    largest = layout.max_model_len(n_blocks, model.n_ctx_train or config.max_model_len)

    def utilization(n_request: int) -> float:
        """Round the fraction up, to steps that leave no doubt about the last digit."""
        return max(
            math.ceil(
                (rank.fixed_bytes + (n_request * per_request + 1) * n_bytes)
                / max(1, cuda_total_bytes(device))
                * _UTILIZATION_STEPS
            )
            / _UTILIZATION_STEPS
            for rank, n_bytes, device in zip(ranks, block_bytes, devices, strict=True)
        )

    return VllmEstimate(
        ranks=tuple(
            replace(rank, kv_cache_bytes=n_blocks * n_bytes) for rank, n_bytes in zip(ranks, block_bytes, strict=True)
        ),
        n_blocks=n_blocks,
        max_concurrency=concurrency,
        kv_tokens=int(concurrency * config.max_model_len),
        largest_max_model_len=largest,
        required_utilization=utilization(config.max_num_seqs),
        minimum_utilization=utilization(1),
        refusal=next(_refusals(model, config, devices, ranks, largest), None),
        notes=(*_learnt_notes(config, devices, learnt), *_notes(model, config, devices)),
    )


def _size_ranks(
    model: VllmModel,
    config: VllmConfig,
    devices: Sequence[Device],
    stages: tuple[range, ...],
    learnt: Learnt,
) -> list[RankUse]:
    """Size every rank; those of one stage on equal GPUs are sized once. What was learnt of a GPU comes to its libraries."""
    sized: dict[tuple[int, tuple[int, int] | None, int], RankUse] = {}
    ranks = []
    for idx, device in enumerate(devices):
        key = idx // config.tensor_parallel_size, device.compute_capability, device.total_bytes
        if key not in sized:
            sized[key] = _size_rank(model, config, device, stages, idx)
        rank, more = sized[key], learnt.within(device.name, config.n_rank)
        taken, left = rank.non_torch_bytes + more, rank.available_kv_bytes - more
        ranks.append(replace(rank, name=device.name, non_torch_bytes=taken, available_kv_bytes=left))
    return ranks


def _size_rank(model: VllmModel, config: VllmConfig, device: Device, stages: tuple[range, ...], idx: int) -> RankUse:
    stage = idx // config.tensor_parallel_size
    last = stage == len(stages) - 1
    capability = device.compute_capability
    layers = stages[stage]
    rank = RankUse(
        name=device.name,
        weights_bytes=model.weights_bytes(layers, config.tensor_parallel_size, first=stage == 0, last=last),
        activation_bytes=activation_peak_bytes(model, config, last=last, compute_capability=capability),
        graph_bytes=graph_bytes(model, config, len(layers), capability),
        non_torch_bytes=_non_torch_bytes(config, capability),
        kv_cache_bytes=0,
        available_kv_bytes=0,
    )
    requested = math.ceil(cuda_total_bytes(device) * config.gpu_memory_utilization)
    return replace(rank, available_kv_bytes=requested - rank.fixed_bytes)


def _refusals(
    model: VllmModel,
    config: VllmConfig,
    devices: Sequence[Device],
    ranks: Sequence[RankUse],
    largest: int,
) -> Iterator[str]:
    """Yield why the engine would not start, in the order in which it looks."""
    if model.n_ctx_train and config.max_model_len > model.n_ctx_train:
        yield f"{config.max_model_len} tokens are more than the model's {model.n_ctx_train}"
    if config.max_num_batched_tokens < config.max_num_seqs:
        yield f"batches of {config.max_num_batched_tokens} tokens cannot hold {config.max_num_seqs} requests"
    for device in devices:
        free = free_at_start_bytes(device, config)
        requested = math.ceil(cuda_total_bytes(device) * config.gpu_memory_utilization)
        if requested > free:
            yield (
                f"{device.name} has {format_bytes(free)} free when the engine looks, less than the "
                f"{format_bytes(requested)} that a utilization of {config.gpu_memory_utilization:g} asks for"
            )
    for rank in ranks:
        if rank.available_kv_bytes <= 0:
            yield (
                f"{rank.name}: weights {format_bytes(rank.weights_bytes)} with {format_bytes(rank.fixed_bytes - rank.weights_bytes)} "
                f"for running leave nothing for the cache, {format_bytes(-rank.available_kv_bytes)} are missing"
            )
    if largest < config.max_model_len:
        yield f"the cache holds requests of {largest} tokens at most, not of {config.max_model_len}"


def _learnt_notes(config: VllmConfig, devices: Sequence[Device], learnt: Learnt) -> Iterator[Note]:
    """Yield what earlier runs here taught, as far as it counts."""
    if more := max((learnt.within(device.name, config.n_rank) for device in devices), default=0):
        text = f"{format_bytes(more)} per GPU beyond the prediction, as earlier starts here told of their cache"
        yield Note(text=text, provenance=Provenance.MEASURED)
    if kept := max((learnt.beside(device.name, config.n_rank) for device in devices), default=0):
        text = f"{format_bytes(kept)} of a GPU stay free beside the margin, for with less it ran out here"
        yield Note(text=text, provenance=Provenance.MEASURED)


def _notes(model: VllmModel, config: VllmConfig, devices: Sequence[Device]) -> Iterator[Note]:
    """Yield the assumptions that this estimate rests on."""
    published, assumed = Provenance.PUBLISHED, Provenance.ASSUMED
    yield Note(
        text="activations, graphs and libraries: fitted to start-up logs of vLLM 0.19 on H100, rules of vLLM 0.32",
        provenance=published,
    )
    if config.tensor_parallel_size > 1:
        nvlink = _non_torch_bytes(config, devices[0].compute_capability) == NON_TORCH_NVLINK_BYTES
        yield Note(
            text=f"communication buffers of {format_bytes(_non_torch_bytes(config, devices[0].compute_capability))} per GPU",
            provenance=published if nvlink else assumed,
        )
    if config.n_rank > 1:
        yield Note(
            text=f"context and NCCL take {format_bytes(CONTEXT_PARALLEL_BYTES)} per GPU before the engine looks",
            provenance=published,
        )
    if any(isinstance(layer, StateKv) for layer in model.layers):
        yield Note(text="linear attention: two states per request, as with prefix caching", provenance=published)
        yield Note(text="linear attention: working memory of the profile run", provenance=assumed)
    if model.multimodal:
        yield Note(text=f"image or audio encoder: {format_bytes(ENCODER_BYTES)} of working memory", provenance=assumed)
    if model.quantization == "mxfp4":
        yield Note(text="mxfp4 experts padded as for Marlin; errs high by up to 2.4 %", provenance=Provenance.DERIVED)
    if not model.known:
        yield Note(
            text=f"`{model.architecture}` has a mechanism or a gap that is not modelled; every layer is taken to cache all "
            "tokens, which errs high",
            provenance=assumed,
        )
    for device in devices:
        if device.compute_capability is None:
            yield Note(text=f"compute capability of {device.name} unknown: every gate passed", provenance=assumed)


def estimate_footprint(model: VllmModel, config: VllmConfig, devices: Sequence[Device]) -> Footprint:
    """Predict what vLLM holds per rank and on the host, in bytes; the cache is all that the utilization leaves.

    Weights are read through a mapping of the files, which stay in the page cache.

    Raises:
        ValueError: the number of devices is not the number of ranks.
    """
    ranks = estimate(model, config, devices).ranks
    return Footprint(
        devices=tuple(
            MemoryUse(
                name=rank.name,
                weights_bytes=rank.weights_bytes,
                kv_cache_bytes=rank.kv_cache_bytes,
                compute_bytes=rank.activation_bytes + rank.graph_bytes + rank.non_torch_bytes,
            )
            for rank in ranks
        ),
        host=HostUse(
            compute_bytes=HOST_BYTES + HOST_RANK_BYTES * len(ranks),
            resident_mmap_bytes=sum(parameter.n_bytes for parameter in model.parameters),
        ),
    )


# --- The choice -------------------------------------------------------------------------------------------------

_ATTEMPTS: Final = ((2048, False), (1024, False), (512, False), (2048, True), (512, True))
"""Batched tokens, and whether graphs are given up: each step leaves more memory for the cache and costs speed."""


def plan_vllm(
    spec: ModelSpec,
    hosts: Hosts,
    *,
    n_ctx_per_request: int,
    n_parallel: int = 1,
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int | None = None,
    pipeline_parallel_size: int | None = None,
    gpu_memory_utilization: float | None = None,
    models: dict[int, VllmModel] | None = None,
    learnt: Learnt = NOTHING,
) -> VllmChoice | str:
    """Choose the configuration that serves ``n_parallel`` requests of ``n_ctx_per_request`` tokens at once, or say why none does.

    The fewest GPUs of one of the ``hosts`` that hold it by tensor parallelism alone, those with the most free memory first;
    pipelines where the model cannot be divided so; pipelines over several hosts where none holds it. Only equal GPUs of one
    host share a layer. What is not ``None`` is honoured. Without a fixed utilization the engine takes all that is free less a
    margin of 512 MiB per GPU, at most its own default of 0.92; smaller batches, then eager mode, are tried before more GPUs.
    Deterministic. ``models`` keeps what was read of ``spec``, by the size of an element, for whoever asks again. ``learnt`` is
    what earlier runs on these GPUs taught.
    """
    reason = "no GPU" if not any(hosts) else "the fixed parallelism needs more GPUs than there are"
    models = {} if models is None else models
    gates: dict[tuple[int, int] | None, str | None] = {}
    for tp, pp, across in list_parallelisms(hosts):
        if tensor_parallel_size not in {None, tp} or pipeline_parallel_size not in {None, pp}:
            continue
        config = VllmConfig(
            max_model_len=n_ctx_per_request,
            max_num_seqs=n_parallel,
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            kv_cache_dtype=kv_cache_dtype,
        )
        for ranks in place_ranks(hosts, tp, pp, across=across):
            weakest = weakest_capability(ranks.devices)
            if weakest not in gates:
                gates[weakest] = refuse_gpu(spec, weakest, kv_cache_dtype)
            if (refused := gates[weakest]) is not None:
                reason = refused
                continue
            dtype_bytes = activation_bytes(spec, weakest)
            if dtype_bytes not in models:
                models[dtype_bytes] = read_model(spec, dtype_bytes=dtype_bytes)
            found = try_ranks(models[dtype_bytes], config, ranks, gpu_memory_utilization, learnt)
            if isinstance(found, VllmChoice):
                note = activation_note(spec, weakest)
                return replace(found, given_up=(*found.given_up, note)) if note else found
            reason = found
    return reason


def weakest_capability(devices: Sequence[Device]) -> tuple[int, int] | None:
    """Return the lowest compute capability that is known; ``None`` where none is."""
    return min((d.compute_capability for d in devices if d.compute_capability is not None), default=None)


def try_ranks(
    model: VllmModel, config: VllmConfig, ranks: Ranks, utilization: float | None, learnt: Learnt = NOTHING
) -> VllmChoice | str:
    """Return the configuration with as much of it left to choose as ``plan_vllm`` says, on these ranks, or why it fails."""
    if reason := refuse_division(model, config.tensor_parallel_size):
        return reason
    if config.pipeline_parallel_size > model.n_layer:
        return f"{model.n_layer} layers cannot be divided over {config.pipeline_parallel_size} stages"
    devices = ranks.devices
    if len(set(ranks.hosts)) > 1 and (reason := _too_heavy(model, devices)):
        return reason  # over several hosts there are so many ways that each is worth a look before it is sized
    config = replace(
        config,
        gpu_memory_utilization=_free_utilization(config, devices, learnt) if utilization is None else utilization,
    )
    trials = [
        replace(config, max_num_batched_tokens=max(n_batched, config.max_num_seqs), enforce_eager=eager)
        for n_batched, eager in _ATTEMPTS
    ]
    # The last needs the least: where it fails, so do the others.
    smallest = estimate(model, trials[-1], devices, learnt)
    if reason := find_shortage(trials[-1], smallest):
        return reason
    sized = ((trial, estimate(model, trial, devices, learnt)) for trial in trials[:-1])
    chosen, found = next(
        ((trial, found) for trial, found in sized if find_shortage(trial, found) is None), (trials[-1], smallest)
    )
    return VllmChoice(
        model=model,
        config=chosen,
        ranks=ranks,
        estimate=found,
        given_up=tuple(_given_up(chosen)),
        learnt_bytes=max(learnt.within(device.name, config.n_rank) for device in devices),
    )


def _too_heavy(model: VllmModel, devices: Sequence[Device]) -> str | None:
    """Return that the weights alone are more than all the devices have free, where they are."""
    weights = sum(parameter.n_bytes for parameter in model.parameters)
    free = sum(device.known_free_bytes for device in devices)
    if weights <= free:
        return None
    return f"weights {format_bytes(weights)} are more than the {format_bytes(free)} that {len(devices)} GPUs have free"


def find_shortage(config: VllmConfig, found: VllmEstimate) -> str | None:
    """Return why a start would not serve what was asked for."""
    if found.refusal is None and found.max_concurrency < config.max_num_seqs:
        return (
            f"the cache holds {found.max_concurrency:.2f} requests of {config.max_model_len} tokens at once, "
            f"not {config.max_num_seqs}"
        )
    return found.refusal


def _free_utilization(config: VllmConfig, devices: Sequence[Device], learnt: Learnt) -> float:
    """Return the largest fraction that every GPU can give with the margin left free, rounded down."""

    def kept(device: Device) -> int:
        """Return what is learnt to stay free beyond the context, which is taken before the engine looks."""
        return max(0, learnt.beside(device.name, config.n_rank) - context_bytes(config.n_rank))

    fraction = min(
        (free_at_start_bytes(device, config) - kept(device) - MARGIN_BYTES) / max(1, cuda_total_bytes(device))
        for device in devices
    )
    return max(0.0, min(DEFAULT_UTILIZATION, math.floor(fraction * _UTILIZATION_STEPS) / _UTILIZATION_STEPS))


def _given_up(config: VllmConfig) -> Iterator[str]:
    if config.enforce_eager:
        yield "CUDA graphs, for memory: slower generation"
    if config.kv_cache_dtype.startswith("fp8"):
        yield "the cache in 8 bits instead of 16, for memory: published tests keep 94 to 99 % of their scores"
    if config.max_num_batched_tokens < DEFAULT_MAX_NUM_BATCHED_TOKENS:
        yield f"batches of {config.max_num_batched_tokens} tokens instead of {DEFAULT_MAX_NUM_BATCHED_TOKENS}: slower prompts"
