"""Host memory beside the engine's own account: what llama-server's serving options may fill by default.

Prompt cache and checkpoints grow while serving, up to the limits here (``common/common.h``, build 11434:
``cache_ram_mib``, ``n_ctx_checkpoints``). It must not know a machine: a plan sets its own, smaller limits.
"""

from typing import Final

from msgspec.structs import replace

from launcher.domain import Footprint
from launcher.planner.architecture import (
    Architecture,
    AttentionAndState,
    CompressedAttention,
    RecurrentState,
    SlidingAttention,
)
from launcher.planner.footprint.llama_cpp import (
    LlamaCppConfig,
    cells_by_slot,
    count_cells,
    is_compressed,
    layer_cache_bytes,
)
from launcher.planner.footprint.weights import ModelWeights
from launcher.units import GIB

DEFAULT_CACHE_RAM_BYTES: Final = 8 * GIB
DEFAULT_CHECKPOINTS: Final = 32
"""Of each slot."""


def checkpoint_bytes(architecture: Architecture, config: LlamaCppConfig) -> int:
    """Return the bytes of one checkpoint of every slot: what sliding and recurrent layers keep, but no compressed rows."""
    cells = count_cells(config)
    if is_compressed(architecture):
        cells = cells_by_slot(cells)
    n_bytes = 0
    for layer in architecture.layers:
        kept = layer.state if isinstance(layer, AttentionAndState) else layer
        if isinstance(kept, CompressedAttention):
            kept = replace(kept, ratio=0, n_index=0)
        if isinstance(kept, SlidingAttention | RecurrentState | CompressedAttention):
            n_bytes += layer_cache_bytes(kept, cells, config.cache_type_k, config.cache_type_v)
    return n_bytes


def add_serving_defaults(
    footprint: Footprint, architecture: Architecture, weights: ModelWeights, config: LlamaCppConfig
) -> Footprint:
    """Fill in the last three host figures: prompt cache, checkpoints of all slots, and mapped pages of the file.

    The pages of weights that went to devices stay in the page cache until something else wants the memory.
    """
    on_devices = sum(use.weights_bytes for use in footprint.devices)
    host = replace(
        footprint.host,
        prompt_cache_bytes=DEFAULT_CACHE_RAM_BYTES,
        checkpoints_bytes=DEFAULT_CHECKPOINTS * checkpoint_bytes(architecture, config),
        resident_mmap_bytes=min(on_devices, weights.total_bytes),
    )
    return replace(footprint, host=host)
