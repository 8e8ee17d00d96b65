"""Predicted generation speed: the bytes that one token makes each memory read, over what that memory delivers.

Generation reads every active weight and the request's cache once per token, so it is bound by bandwidth. The
efficiencies are assumed, one per kind of memory; measured ones differ by a factor of two between GPUs and model sizes.
"""

from typing import Final

from launcher.domain import Device, Footprint, Host, Provenance, Speed
from launcher.planner.architecture import Architecture
from launcher.planner.footprint.llama_cpp import LlamaCppConfig, ModelWeights, Placement

GPU_EFFICIENCY: Final = 0.6
"""Assumed: published values run from 0.37 (H100) over 0.48 to 0.78 (RTX 4090, by model size)."""
HOST_EFFICIENCY: Final = 0.6
"""Assumed."""
DEFAULT_GPU_BYTES_PER_S: Final = 300e9
"""Assumed where the driver tells neither clock nor bus width."""
DEFAULT_HOST_BYTES_PER_S: Final = 25e9
"""Assumed where nothing was measured: one channel of DDR5."""


def estimate_speed(
    *,
    architecture: Architecture,
    weights: ModelWeights,
    placement: Placement,
    config: LlamaCppConfig,
    footprint: Footprint,
    devices: tuple[Device, ...],
    host: Host,
) -> Speed:
    """Predict the tokens per second of one request whose context is half full."""
    active = architecture.n_expert_used / architecture.n_expert if architecture.n_expert else 1.0
    read = [0.0] * len(devices)
    host_read = 0.0
    for idx, (block, target) in enumerate(zip(weights.blocks, placement.blocks, strict=True)):
        expert_bytes = block.expert_bytes * active
        if target is None:
            host_read += block.dense_bytes + expert_bytes
            continue
        read[target] += block.dense_bytes
        if idx < config.n_cpu_moe:
            host_read += expert_bytes
        else:
            read[target] += expert_bytes
    output_bytes = max(weights.output_bytes, weights.largest_output_bytes)
    if placement.output is None:
        host_read += output_bytes
    else:
        read[placement.output] += output_bytes
    depth = 0.5 / config.n_parallel
    seconds = (host_read + footprint.host.kv_cache_bytes * depth) / (
        HOST_EFFICIENCY * (host.bandwidth_bytes_per_s or DEFAULT_HOST_BYTES_PER_S)
    )
    for device, use, n_bytes in zip(devices, footprint.devices, read, strict=True):
        bandwidth = GPU_EFFICIENCY * (device.bandwidth_bytes_per_s or DEFAULT_GPU_BYTES_PER_S)
        seconds += (n_bytes + use.kv_cache_bytes * depth) / bandwidth
    return Speed(generation_tps=1.0 / seconds if seconds else 0.0, basis=Provenance.ASSUMED)
