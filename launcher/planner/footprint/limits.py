"""What llama-server does not start with: settings that contradict the model or each other.

Restates the checks of ``llama_init_from_model`` and the assertions behind them (``src/llama-context.cpp``, llama.cpp
build 11434). It does not know memories or how large they are.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from launcher.domain import CacheType
from launcher.planner.architecture import ENCODER_DECODERS, Architecture, Heads, NoCache, RecurrentState
from launcher.planner.footprint.llama_cpp import WITHOUT_FLASH_ATTENTION, LlamaCppConfig
from launcher.tensor_types import TRAITS

MAX_PARALLEL: Final = 256
"""``LLAMA_MAX_SEQ``."""
MAX_DEVICES: Final = 15
"""``--tensor-split`` takes fewer than ``llama_max_devices``, which is 16."""


@lru_cache(maxsize=64)
def _block_size(cache: CacheType) -> int:
    return TRAITS[cache.tensor_type].block_size


@lru_cache(maxsize=64)
def can_pack_heads(architecture: Architecture, cache: CacheType) -> bool:
    """Tell whether every head is a whole number of the cache type's blocks."""
    block = _block_size(cache)
    return all(head.head_k % block == head.head_v % block == 0 for head in architecture.heads)


_ALIKE: Final = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
_GROUPED: Final[Mapping[tuple[int, int], int]] = {(192, 128): 8, (320, 256): 32, (512, 512): 1, (576, 512): 1}
"""Sizes of K and V heads, and what the number of query heads to each must divide by (``ggml-cuda/fattn.cu``)."""


@lru_cache(maxsize=64)
def can_flash(architecture: Architecture) -> bool:
    """Tell whether CUDA has a kernel for every attention head; else flash attention would run on the CPU."""
    return all(
        _has_kernel(head)
        for head, layer in zip(architecture.heads, architecture.layers, strict=True)
        if not isinstance(layer, NoCache | RecurrentState)
    )


def _has_kernel(head: Heads) -> bool:
    if head.head_k == head.head_v and head.head_k in _ALIKE:
        return True
    group = _GROUPED.get((head.head_k, head.head_v))
    n_query = head.n_head // max(1, head.n_head_kv)
    return group is not None and n_query > 1 and n_query % group == 0


def find_contradiction(architecture: Architecture, config: LlamaCppConfig) -> tuple[str, str] | None:
    """Return the fact for which the engine would refuse, and what to do about it; ``None`` where it would start."""
    type_k, type_v = config.cache_type_k, config.cache_type_v
    found = None
    if config.n_parallel > MAX_PARALLEL:
        found = f"{config.n_parallel} slots are more than llama.cpp's {MAX_PARALLEL}", "use fewer slots"
    elif config.n_batch < config.n_parallel:
        fact = f"a batch of {config.n_batch} tokens cannot give each of {config.n_parallel} slots its token"
        found = fact, "use a larger batch, or fewer slots"
    elif _block_size(type_v) > 1 and not config.flash_attn:
        found = f"a V cache of {type_v} needs flash attention", "switch flash attention on, or use another V cache"
    elif _block_size(type_v) > 1 and architecture.name in WITHOUT_FLASH_ATTENTION:
        fact = f"a V cache of {type_v} needs flash attention, which `{architecture.name}` has not"
        found = fact, "use another V cache"
    elif architecture.is_latent and type_k is not type_v:
        fact = f"`{architecture.name}` keeps one cache for both K and V, which cannot be {type_k} and {type_v}"
        found = fact, "use the same type for both"
    return found or _find_uneven_slots(architecture, config) or _find_uneven_head(architecture, config)


_ONE_STREAM: Final = ENCODER_DECODERS
"""Their biases by distance are made for one stream of the cache."""
_RESERVES_FOR_ONE: Final = frozenset({"kimi-linear", "minimax-01"})
"""The engine also reserves their graph as if one slot filled the step, and then cuts it into the slots' streams."""


def _find_uneven_slots(architecture: Architecture, config: LlamaCppConfig) -> tuple[str, str] | None:
    if architecture.name in _ONE_STREAM and config.n_parallel > 1 and not config.kv_unified:
        fact = f"{config.n_parallel} slots with a cache each are more than `{architecture.name}` can do"
        return fact, "use --kv-unified, or one slot"
    n_step = min(config.n_ubatch, config.n_batch, config.n_ctx)
    # after the last block few rows are left, which no longer have to fit
    attends = any(not isinstance(layer, NoCache | RecurrentState) for layer in architecture.layers[:-1])
    reserves = architecture.name in _RESERVES_FOR_ONE and attends
    if not reserves or config.kv_unified or n_step % config.n_parallel == 0:
        return None
    fact = f"{config.n_parallel} slots do not divide a step of {n_step} tokens, as `{architecture.name}` needs them to"
    return fact, "use another --ubatch-size or number of slots, or --kv-unified"


def _find_uneven_head(architecture: Architecture, config: LlamaCppConfig) -> tuple[str, str] | None:
    """Packed elements are a whole number per head."""
    for head in architecture.heads:
        for cache, size, part in ((config.cache_type_k, head.head_k, "K"), (config.cache_type_v, head.head_v, "V")):
            if size % _block_size(cache):
                fact = f"a {part} cache of {cache} packs {_block_size(cache)} elements, and heads have {size}"
                return fact, "use f16 or another type that is not packed"
    return None
