"""What a chosen trial gives up of what was wished for, each with its reason.

It must not choose, nor propose anything.
"""

from msgspec.structs import replace

from launcher.domain import CacheType, Inventory, Speed
from launcher.planner.ask import Ask
from launcher.planner.quality import cache_kl, kl_divergence
from launcher.planner.sizing import Candidate, Shape, Trial, first_shape, try_shape
from launcher.units import format_bytes


def list_losses(trial: Trial, ask: Ask, inventory: Inventory, candidates: tuple[Candidate, ...]) -> tuple[str, ...]:
    """Return one fact per loss, dearest first; ``candidates`` are what the trial was chosen from."""
    return (
        *_without_gpu(trial, inventory),
        *_left_on_host(trial),
        *_better_quantization(trial, ask, candidates),
        *_smaller_cache(trial, ask),
        *_smaller_step(trial, ask),
        *_forced(trial, ask),
    )


def _without_gpu(trial: Trial, inventory: Inventory) -> tuple[str, ...]:
    if trial.target.devices or not inventory.devices:
        return ()
    names = ", ".join(device.name for device in inventory.devices)
    return (
        f"{names}: the engine found ({trial.target.engine}) reaches no GPU of this machine, so everything runs on the CPU",
    )


def _left_on_host(trial: Trial) -> tuple[str, ...]:
    n_layer, config = trial.candidate.architecture.n_layer, trial.config
    left = format_bytes(trial.offloaded_bytes)
    if trial.target.devices and config.n_gpu_layers <= n_layer:
        n_left = n_layer + 1 - config.n_gpu_layers
        return (f"{n_left} of {n_layer + 1} layers run on the CPU: {left} of weights do not fit on the GPU",)
    if trial.target.devices and config.n_cpu_moe:
        return (f"the experts of {config.n_cpu_moe} of {n_layer} layers run on the CPU: {left} of weights",)
    return ()


def _better_quantization(trial: Trial, ask: Ask, candidates: tuple[Candidate, ...]) -> tuple[str, ...]:
    """Say of the next better quantization why it was not taken; nothing where the user named one."""
    n_active = trial.candidate.n_active
    chosen = kl_divergence(trial.candidate.artifact.quantization, n_active)
    better = [c for c in candidates if kl_divergence(c.artifact.quantization, n_active) < chosen]
    if ask.settings.quantization is not None or not better:
        return ()
    next_better = max(better, key=lambda c: (kl_divergence(c.artifact.quantization), -c.weights.total_bytes))
    name = next_better.artifact.quantization
    price = f"KL divergence {chosen:.2g} instead of {kl_divergence(name, n_active):.2g}"
    return (f"{name} ({price}): {_why_not(next_better, trial, ask)}",)


def _why_not(candidate: Candidate, chosen: Trial, ask: Ask) -> str:
    """Say why a better candidate lost: it does not fit, leaves more on the CPU, or is too slow."""
    target = chosen.target
    whole = try_shape(candidate, ask, target, first_shape(candidate, ask, target))
    tps = f"{whole.speed.generation_tps:.1f} tokens/s"
    if whole.fits:
        slow = whole.speed.generation_tps < ask.min_tps
        return (
            f"about {tps}, below the floor of {ask.min_tps:g}" if slow else f"about {tps}, less than half the fastest"
        )
    if not chosen.is_whole:
        return "more of it would run on the CPU"
    return f"needs {_excess(whole)}"


def _excess(trial: Trial) -> str:
    if not trial.exceeded:
        return "more than the machine can give"
    n_bytes, budget = trial.exceeded[0]
    return f"{format_bytes(n_bytes - budget.budget_bytes)} more than {budget.name} can give"


def _smaller_cache(trial: Trial, ask: Ask) -> tuple[str, ...]:
    """Say what the cache's types cost and, where they were not asked for, what the usual ones would have needed."""
    config = trial.config
    if config.cache_type_k is CacheType.F16 and config.cache_type_v is CacheType.F16:
        return ()
    price = cache_kl(trial.candidate.architecture.name, config.cache_type_k, config.cache_type_v)
    fact = f"the cache is {config.cache_type_k}/{config.cache_type_v} (KL divergence {price:g})"
    usual = first_shape(trial.candidate, ask, trial.target)
    if (usual.cache_type_k, usual.cache_type_v) == (config.cache_type_k, config.cache_type_v):
        return (fact,)
    shape = replace(trial.shape, cache_type_k=usual.cache_type_k, cache_type_v=usual.cache_type_v)
    wide = try_shape(trial.candidate, ask, trial.target, shape)
    return (f"{fact}: with {usual.cache_type_k} this placement needs {_excess(wide)}" if wide.exceeded else fact,)


def _smaller_step(trial: Trial, ask: Ask) -> tuple[str, ...]:
    usual: Shape = first_shape(trial.candidate, ask, trial.target)
    if trial.tuning is not None or trial.shape.n_ubatch >= usual.n_ubatch:
        return ()
    larger = try_shape(trial.candidate, ask, trial.target, replace(trial.shape, n_ubatch=usual.n_ubatch))
    return (f"prompts in steps of {trial.shape.n_ubatch}, not {usual.n_ubatch}: that needs {_excess(larger)}",)


def _forced(trial: Trial, ask: Ask) -> tuple[str, ...]:
    """Say what ``--force`` overrode."""
    if not ask.force:
        return ()
    margin = ("the margins: nothing is left free on purpose (--force)",)
    return (*forced_speed(trial.speed, ask), *(margin if not trial.target.host_budget.margin_bytes else ()))


def forced_speed(speed: Speed, ask: Ask) -> tuple[str, ...]:
    """Say that a speed is below the floor, which only ``--force`` lets it be; nothing where it is not."""
    tps = speed.generation_tps
    if tps >= ask.floor_tps:
        return ()
    return (f"speed: about {tps:.2g} tokens/s, below the floor of {ask.floor_tps:g} (--force)",)
