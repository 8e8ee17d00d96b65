"""The choice when vLLM was asked for: which artifact, on how many GPUs, or why none.

It decides only where the user names the engine; weighing vLLM against llama.cpp is not done here. What vLLM would do
with its memory is ``footprint/vllm.py``'s; its words become llama.cpp's in the plan (GLOSSARY.md).
"""

from launcher.domain import (
    Artifact,
    Budget,
    CacheType,
    Device,
    Engine,
    EngineInstall,
    Footprint,
    HostUse,
    Inventory,
    MemoryUse,
    Outcome,
    Plan,
    Provenance,
    Refusal,
    RefusalCode,
    Request,
    Speed,
    WeightsFormat,
)
from launcher.planner.ask import Ask, resolve_ask
from launcher.planner.footprint.vllm import VllmChoice, plan_vllm
from launcher.planner.quality import kl_divergence, meets_floor
from launcher.planner.speed import DEFAULT_GPU_BYTES_PER_S
from launcher.planner.target import DEVICE_MARGIN_BYTES, HOST_MARGIN_BYTES

_EFFICIENCY = 0.6
"""Assumed share of a GPU's bandwidth that generating one request reaches."""

_LLAMA_CPP_ONLY = (
    "n_batch",
    "n_ubatch",
    "n_gpu_layers",
    "n_cpu_moe",
    "cache_type_k",
    "cache_type_v",
    "flash_attn",
    "n_threads",
)
"""Settings that a plan for vLLM would not honour."""


def decide_vllm(request: Request, inventory: Inventory) -> Outcome:
    """Plan or refuse for vLLM: the best quality whose weights, cache and graphs the GPUs hold."""
    ask = resolve_ask(request)
    not_its_own = [name for name in _LLAMA_CPP_ONLY if getattr(ask.settings, name) is not None]
    if not_its_own:
        return _refuse_settings(ask, not_its_own)
    quantization = ask.settings.quantization
    artifacts = sorted(
        (a for a in request.profile.artifacts if a.format is WeightsFormat.SAFETENSORS and a.spec is not None),
        key=lambda artifact: (kl_divergence(artifact.quantization), artifact.quantization),
    )
    named = [a for a in artifacts if quantization in {None, a.quantization}]
    if not named:
        return _refuse_no_artifact(ask, artifacts)
    install = _find_install(ask, inventory)
    if isinstance(install, Refusal):
        return install
    reasons = []
    for artifact in named:
        if quantization is None and not meets_floor(artifact.quantization, ask.min_quantization):
            continue
        assert artifact.spec is not None  # noqa: S101 - selected above
        found = plan_vllm(
            artifact.spec,
            inventory.devices,
            n_ctx_per_request=ask.n_ctx_per_request,
            n_parallel=ask.n_parallel,
        )
        if isinstance(found, str):
            reasons.append(f"{artifact.quantization}: {found}")
            continue
        plan = _build_plan(artifact, found, ask, inventory, install)
        if plan.speed is None or plan.speed.generation_tps >= ask.min_tps:
            return plan
        reasons.append(
            f"{artifact.quantization}: about {plan.speed.generation_tps:.1f} tokens/s; the floor is {ask.min_tps:g}"
        )
    return Refusal(
        code=RefusalCode.EXCEEDS_DEVICE_MEMORY,
        model=ask.model,
        fact=f"`{ask.model}` cannot be served by vllm on this machine at {ask.n_ctx_per_request} tokens per request",
        derivation=tuple(reasons) or ("no artifact meets the quality floor",),
    )


def _refuse_settings(ask: Ask, names: list[str]) -> Refusal:
    """Say that what the user fixed has no meaning for vLLM: it is never dropped in silence."""
    return Refusal(
        code=RefusalCode.UNSUPPORTED,
        model=ask.model,
        fact=f"`{ask.model}`: vllm has no {', '.join(names)}",
        derivation=("leave them out, or ask for llama-server",),
    )


def _refuse_no_artifact(ask: Ask, artifacts: list[Artifact]) -> Refusal:
    known = ", ".join(artifact.quantization for artifact in artifacts) or "none"
    return Refusal(
        code=RefusalCode.NO_SUCH_QUANTIZATION,
        model=ask.model,
        fact=f"`{ask.model}` has no safetensors artifact at {ask.settings.quantization or 'any quantization'} "
        "whose metadata is known: vllm loads nothing else",
        derivation=(f"known for vllm: {known}",),
    )


def _find_install(ask: Ask, inventory: Inventory) -> EngineInstall | Refusal | None:
    """Return vLLM as it is installed; ``None`` on a machine whose engines are unknown."""
    if inventory.engines is None:
        return None
    for install in inventory.engines:
        if install.engine is Engine.VLLM:
            return install
    have = ", ".join(sorted({install.engine for install in inventory.engines})) or "none"
    return Refusal(
        code=RefusalCode.NO_ENGINE,
        model=ask.model,
        fact="vllm is not installed on this machine",
        derivation=(f"found {have}",),
    )


def _build_plan(
    artifact: Artifact, choice: VllmChoice, ask: Ask, inventory: Inventory, install: EngineInstall | None
) -> Plan:
    config, found = choice.config, choice.estimate
    by_name = {device.name: device for device in inventory.devices}
    used = [by_name[name] for name in choice.devices]
    uses = tuple(
        MemoryUse(
            name=rank.name,
            weights_bytes=rank.weights_bytes,
            kv_cache_bytes=rank.kv_cache_bytes,
            compute_bytes=rank.activation_bytes + rank.graph_bytes + rank.non_torch_bytes,
        )
        for rank in found.ranks
    )
    host = inventory.host
    n_layer = _n_layer(artifact)
    notes = (
        f"tensor parallel over {config.tensor_parallel_size}, pipeline over {config.pipeline_parallel_size}",
        f"gpu_memory_utilization {config.gpu_memory_utilization:.2f}",
        f"room for {found.max_concurrency:.1f} requests of full length at once",
        *(f"{note.text} ({note.provenance})" for note in found.notes),
        "this release plans for vllm but does not start it",
    )
    return Plan(
        model=ask.model,
        engine=Engine.VLLM,
        install=install,
        format=artifact.format,
        quantization=artifact.quantization,
        n_ctx=ask.n_ctx_per_request * ask.n_parallel,
        n_ctx_per_request=ask.n_ctx_per_request,
        n_parallel=ask.n_parallel,
        kv_unified=True,
        n_batch=config.max_num_batched_tokens,
        n_ubatch=config.max_num_batched_tokens,
        n_layer=n_layer,
        n_gpu_layers=n_layer + 1,
        n_cpu_moe=0,
        cache_type_k=CacheType.BF16,
        cache_type_v=CacheType.BF16,
        flash_attn=True,
        n_threads=host.n_cpu,
        n_threads_batch=host.n_cpu,
        address=ask.address,
        footprint=Footprint(devices=uses, host=HostUse()),
        budgets=(
            *(
                Budget(
                    name=device.name,
                    total_bytes=device.total_bytes,
                    free_bytes=device.total_bytes if device.free_bytes is None else device.free_bytes,
                    margin_bytes=DEVICE_MARGIN_BYTES,
                )
                for device in used
            ),
            Budget(
                name="host", total_bytes=host.total_bytes, free_bytes=host.free_bytes, margin_bytes=HOST_MARGIN_BYTES
            ),
        ),
        artifact=artifact,
        speed=_estimate_speed(artifact, choice, used),
        given_up=choice.given_up,
        notes=notes,
    )


def _estimate_speed(artifact: Artifact, choice: VllmChoice, used: list[Device]) -> Speed | None:
    """Predict from bandwidth: the ranks of a stage read their shares at once, the stages follow each other.

    ``None`` for mixtures of experts, of which a token reads a part that the tensor list does not tell.
    """
    if artifact.spec is None or any("experts" in tensor.name for tensor in artifact.spec.tensors):
        return None
    ranks = zip(choice.estimate.ranks, used, strict=True)
    seconds = sum(
        rank.weights_bytes / (_EFFICIENCY * (device.bandwidth_bytes_per_s or DEFAULT_GPU_BYTES_PER_S))
        for rank, device in list(ranks)[:: choice.config.tensor_parallel_size]
    )
    return Speed(generation_tps=1.0 / seconds, basis=Provenance.ASSUMED) if seconds else None


def _n_layer(artifact: Artifact) -> int:
    """Count the blocks by the tensors' names (``model.layers.17.``)."""
    found = {
        int(word)
        for tensor in (artifact.spec.tensors if artifact.spec else ())
        for before, word in zip(tensor.name.split("."), tensor.name.split(".")[1:], strict=False)
        if before == "layers" and word.isdecimal()
    }
    return max(found, default=-1) + 1
