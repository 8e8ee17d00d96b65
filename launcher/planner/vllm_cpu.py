"""What vLLM holds and how fast it is where it computes on the CPU: one process, the cache of exactly the size that is asked for.

It must not know GPUs, nor compare what would fit.
"""

from typing import Final

from msgspec.structs import replace

from launcher.domain import HOST_MEMORY, Host, ModelSpec, Provenance, Speed
from launcher.planner.footprint.vllm import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    Note,
    RankUse,
    VllmChoice,
    VllmConfig,
    VllmEstimate,
    activation_peak_bytes,
    lay_out_kv,
)
from launcher.planner.footprint.vllm_model import VllmModel, read_model
from launcher.planner.footprint.vllm_place import Ranks
from launcher.planner.footprint.vllm_support import refuse_division, weights_kind
from launcher.planner.speed import DEFAULT_HOST_BYTES_PER_S, HOST
from launcher.planner.vllm_speed import cache_bytes

CPU_BLOCK_SIZE: Final = 128
"""Tokens per block of the cache on a CPU (logged by vLLM 0.32.0: ``tests/transcripts/vllm/0.32.0-cpu-kv.log``)."""
STEP_S: Final = 3e-3
"""Of one token whatever the model's size, in an uncompiled model of two layers (measured: 350 tokens/s of one request)."""


def plan_vllm_cpu(
    spec: ModelSpec, *, n_ctx_per_request: int, n_parallel: int, models: dict[int, VllmModel]
) -> VllmChoice | str:
    """Return the one configuration that holds ``n_parallel`` requests of ``n_ctx_per_request`` tokens, or why there is none.

    Whether the host has the memory is the caller's question. ``models`` is as in ``plan_vllm``.
    """
    kind = weights_kind(spec)
    if kind != "none":
        return f"on a CPU this release plans vllm for unquantized weights, not {kind or 'an unknown quantization'}"
    if 2 not in models:  # noqa: PLR2004 - bytes of a half
        models[2] = read_model(spec, dtype_bytes=2)
    model = models[2]
    if reason := refuse_division(model, 1):
        return reason
    config = VllmConfig(
        max_model_len=n_ctx_per_request,
        max_num_seqs=n_parallel,
        max_num_batched_tokens=max(DEFAULT_MAX_NUM_BATCHED_TOKENS, n_parallel),
        enforce_eager=True,
        block_size=CPU_BLOCK_SIZE,
    )
    layers = range(model.n_layer)
    layout = lay_out_kv(model, config)
    per_request = layout.blocks_per_request(n_ctx_per_request)
    n_blocks = n_parallel * per_request + 1  # one block is never given to a request
    kv_bytes = n_blocks * layout.block_bytes(layers)
    config = replace(config, kv_cache_memory_bytes=kv_bytes)
    rank = RankUse(
        name=HOST_MEMORY,
        weights_bytes=model.weights_bytes(layers, 1, first=True, last=True),
        activation_bytes=activation_peak_bytes(model, config, last=True),
        graph_bytes=0,
        non_torch_bytes=0,
        kv_cache_bytes=kv_bytes,
        available_kv_bytes=kv_bytes,
    )
    concurrency = n_blocks / per_request if per_request else float(n_parallel)
    notes = (
        Note(text="working memory on a CPU: the rules for GPUs are taken over", provenance=Provenance.ASSUMED),
        Note(
            text="cache: blocks of 128 tokens, as vLLM 0.32 logs them",
            provenance=Provenance.DERIVED,
        ),
    )
    return VllmChoice(
        model=model,
        config=config,
        ranks=Ranks(()),
        estimate=VllmEstimate(
            ranks=(rank,),
            n_blocks=n_blocks,
            max_concurrency=concurrency,
            kv_tokens=int(concurrency * n_ctx_per_request),
            largest_max_model_len=layout.max_model_len(n_blocks, model.n_ctx_train or n_ctx_per_request),
            required_utilization=0.0,
            minimum_utilization=0.0,
            refusal=None,
            notes=notes,
        ),
    )


def estimate_cpu_speed(model: VllmModel, config: VllmConfig, host: Host) -> Speed:
    """Predict the tokens per second of one request whose context is half full, by the host's bandwidth; prompts unknown."""
    layers = range(model.n_layer)
    n_bytes = model.read_bytes(layers, 1, last=True) + cache_bytes(model, config, layers)
    bandwidth = host.bandwidth_bytes_per_s or DEFAULT_HOST_BYTES_PER_S
    token_s = STEP_S + n_bytes / (bandwidth * HOST.efficiency) + model.n_layer * HOST.layer_s
    return Speed(generation_tps=1.0 / token_s, basis=Provenance.ASSUMED)
