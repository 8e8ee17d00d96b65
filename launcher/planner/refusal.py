"""Why a request is refused, in facts: what was needed, what there is, and why nothing smaller helps.

It must not propose anything: ways out are ``advice.py``'s.
"""

from launcher.domain import Refusal, RefusalCode, Request, WeightsFormat
from launcher.planner.ask import Ask
from launcher.planner.bounds import list_bounds
from launcher.planner.offload import list_offloaded
from launcher.planner.sizing import Candidate, Trial, first_shape, try_shape
from launcher.planner.target import Target
from launcher.units import GIB, format_bytes


def refuse_no_artifact(request: Request, ask: Ask) -> Refusal:
    """Say that no artifact answers to the quantization that was asked for."""
    known = [a.quantization for a in request.profile.artifacts if a.format is WeightsFormat.GGUF and a.spec]
    return Refusal(
        code=RefusalCode.NO_SUCH_QUANTIZATION,
        model=ask.model,
        fact=f"`{ask.model}` has no artifact at {ask.settings.quantization or 'any quantization'} that can be planned",
        derivation=(f"known quantizations: {', '.join(known) or 'none'}",),
    )


def refuse_context(ask: Ask, n_ctx_train: int) -> Refusal:
    """Say that the model was not trained for the context that was ordered."""
    return Refusal(
        code=RefusalCode.EXCEEDS_CONTEXT,
        model=ask.model,
        fact=f"`{ask.model}` was trained for {n_ctx_train} tokens; {ask.n_ctx_per_request} per request were asked for",
        derivation=("beyond its training a model's answers degrade; --force serves it all the same",),
        certain=False,
    )


def refuse_contradiction(ask: Ask, fact: str) -> Refusal:
    """Say that the engine would not start with what was asked for on this model."""
    return Refusal(
        code=RefusalCode.UNSUPPORTED,
        model=ask.model,
        fact=f"`{ask.model}` cannot be served as it was asked for",
        derivation=(fact,),
    )


def refuse_disk(ask: Ask, smallest: Candidate, free_bytes: int) -> Refusal:
    """Say that the weights would not fit on the disk."""
    needed = smallest.weights.total_bytes
    return Refusal(
        code=RefusalCode.EXCEEDS_DISK,
        model=ask.model,
        fact=f"`{ask.model}` takes {format_bytes(needed)} of disk at {smallest.artifact.quantization}, the smallest "
        f"that was considered; {format_bytes(free_bytes)} are free",
        needed_bytes=needed,
        available_bytes=free_bytes,
    )


def refuse_no_fit(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], ask: Ask, target: Target, *, certain: bool = True
) -> Refusal:
    """Say why nothing fits, from the artifact that came closest: the smallest above the quality floor.

    It is not ``certain`` where something would fit if nothing were left free on purpose.
    """
    target = target.without_margins() if ask.force else target
    headline = min(allowed or candidates, key=lambda c: c.weights.total_bytes)
    whole = try_shape(headline, ask, target, first_shape(headline, ask, target))
    slow = _slow_trial(headline, ask, target, whole)
    if slow is not None:
        return _refuse_slow(slow, ask)
    needed, available = whole.needed_bytes, target.budget_bytes
    derivation = [format_need(whole)]
    code = RefusalCode.EXCEEDS_MEMORY
    if needed <= available:
        code = RefusalCode.EXCEEDS_DEVICE_MEMORY if ask.settings.n_gpu_layers else RefusalCode.EXCEEDS_HOST_MEMORY
        derivation.append("the sum would fit, but not divided as the engine divides it: " + _shortfalls(whole))
    else:
        derivation += _no_smaller(candidates, headline, ask, target)
    derivation += list_bounds(whole)
    if not certain:
        derivation.append(f"it would fit if nothing were left free on purpose ({_format_margins(target)})")
    elif ask.force:
        derivation.append("--force does not change this: it would not fit even if nothing were left free on purpose")
    return Refusal(
        code=code,
        model=ask.model,
        fact=f"`{ask.model}` at {headline.artifact.quantization} needs {format_bytes(needed)}; "
        f"this machine can give {format_bytes(available)} ({_format_budgets(target)})",
        derivation=tuple(derivation),
        needed_bytes=needed,
        available_bytes=available,
        footprint=whole.footprint,
        budgets=target.known_budgets,
        certain=certain,
    )


def _no_smaller(candidates: tuple[Candidate, ...], headline: Candidate, ask: Ask, target: Target) -> list[str]:
    """Say whether even the smallest quantization exceeds everything."""
    smallest = min(candidates, key=lambda c: c.weights.total_bytes)
    least = try_shape(smallest, ask, target, first_shape(smallest, ask, target)).needed_bytes
    if smallest is headline or least <= target.budget_bytes:
        return []
    name = smallest.artifact.quantization
    size = format_bytes(least)
    return [f"because even the smallest known quantization ({name}, {size}) exceeds the sum, no offload would help"]


def _refuse_slow(trial: Trial, ask: Ask) -> Refusal:
    quantization = trial.candidate.artifact.quantization
    n_all = trial.candidate.architecture.n_layer + 1
    on_gpu = f"{trial.config.n_gpu_layers} of {n_all} layers on the GPU, the rest on the CPU"
    if trial.is_whole:
        on_gpu = f"all {n_all} layers on the GPU"
    elif trial.config.n_cpu_moe:
        on_gpu = f"all layers on the GPU but for the experts of {trial.config.n_cpu_moe}, which are on the CPU"
    return Refusal(
        code=RefusalCode.BELOW_SPEED_FLOOR,
        model=ask.model,
        fact=f"`{ask.model}` at {quantization} would generate about {trial.speed.generation_tps:.1f} tokens/s here; "
        f"the floor is {ask.min_tps:g}",
        derivation=(format_need(trial), on_gpu if trial.target.devices else "all layers on the CPU"),
        needed_bytes=trial.needed_bytes,
        available_bytes=trial.target.budget_bytes,
        footprint=trial.footprint,
        budgets=trial.target.known_budgets,
        certain=False,
    )


def _slow_trial(candidate: Candidate, ask: Ask, target: Target, whole: Trial) -> Trial | None:
    """Return a placement that fits in memory but is too slow, if that is what refuses the request."""
    if whole.fits:
        return whole
    if ask.settings.n_gpu_layers is not None or not target.devices:
        return None
    return next(iter(list_offloaded((candidate,), ask, target)), None)


def format_need(trial: Trial) -> str:
    """Return the derivation of a need: its parts, and their sum."""
    devices, host = trial.footprint.devices, trial.footprint.host
    weights = trial.footprint.weights_bytes
    cache = trial.footprint.kv_cache_bytes
    compute = host.compute_bytes + sum(use.compute_bytes for use in devices)
    config = trial.config
    return (
        f"weights {weights / GIB:.1f} + kv cache {cache / GIB:.1f} ({config.n_ctx} tokens, {config.cache_type_k}) "
        f"+ compute {compute / GIB:.1f} = {(weights + cache + compute) / GIB:.1f} GiB"
    )


def _format_budgets(target: Target) -> str:
    return " + ".join(f"{budget.name} {budget.budget_bytes / GIB:.1f}" for budget in target.known_budgets)


def _format_margins(target: Target) -> str:
    return " + ".join(f"{budget.name} {format_bytes(budget.margin_bytes)}" for budget in target.known_budgets)


def _shortfalls(trial: Trial) -> str:
    short = [
        f"{budget.name} needs {format_bytes(n_bytes)} of {format_bytes(budget.budget_bytes)}"
        for n_bytes, budget in trial.exceeded
    ]
    return ", ".join(short) or "no placement of whole layers fits"
