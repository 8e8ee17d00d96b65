"""A complete plan to change one thing of."""

from launcher.domain import (
    Address,
    Artifact,
    CacheType,
    Engine,
    Footprint,
    HostUse,
    Plan,
    WeightsFormat,
)


def plan_for() -> Plan:
    """Return a plan for a processor alone, which needs nothing yet."""
    return Plan(
        model="gemma3-270m",
        engine=Engine.LLAMA_SERVER,
        format=WeightsFormat.GGUF,
        quantization="q4_k_m",
        n_ctx=2048,
        n_ctx_per_request=2048,
        n_parallel=1,
        kv_unified=False,
        n_batch=2048,
        n_ubatch=512,
        n_layer=18,
        n_gpu_layers=0,
        n_cpu_moe=0,
        cache_type_k=CacheType.F16,
        cache_type_v=CacheType.F16,
        flash_attn=True,
        n_threads=2,
        n_threads_batch=2,
        address=Address(port=8080),
        footprint=Footprint(devices=(), host=HostUse()),
        budgets=(),
        artifact=Artifact(format=WeightsFormat.GGUF, quantization="q4_k_m"),
    )
