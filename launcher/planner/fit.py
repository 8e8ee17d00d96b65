"""The choice: which artifact, engine and placement serve a request on a machine, or why none does.

Every artifact of the profile is sized against the memory that is really free, and the objective picks among those
that fit. What the user fixed is honoured or refused, never changed. Advice on a refusal is ``advice.py``'s.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from launcher.domain import Calibration, Engine, Inventory, Objective, Outcome, Plan, Refusal, Request
from launcher.planner.ask import Ask, resolve_ask, with_context
from launcher.planner.assemble import build_plan
from launcher.planner.quality import meets_floor
from launcher.planner.refusal import refuse_context, refuse_disk, refuse_no_artifact, refuse_no_fit
from launcher.planner.sizing import Candidate, Trial, partial_trials, prepare, whole_trials
from launcher.planner.target import Target, choose_target
from launcher.planner.tuning import apply_tuning
from launcher.units import GIB

_DISK_MARGIN_BYTES = 1 * GIB


def decide(
    request: Request,
    inventory: Inventory,
    prepared: tuple[Candidate, ...] | None = None,
    calibration: Calibration | None = None,
) -> Outcome:
    """Plan or refuse, without advice. Deterministic: equal arguments give equal results.

    ``prepared`` is what ``sizing.prepare`` returned for the request's profile, where the caller asks more than once;
    ``calibration`` is what was measured on this very machine.
    """
    if (request.settings.engine or request.profile.pins.engine) is Engine.VLLM:
        from launcher.planner.vllm_fit import decide_vllm  # noqa: PLC0415 - a tenth of the start-up, seldom needed

        return decide_vllm(request, inventory)
    question = _pose(request, inventory, prepare(request.profile) if prepared is None else prepared, calibration)
    if isinstance(question, Refusal):
        return question
    ask, target, candidates, allowed, lowered = question
    trial = _choose(allowed, ask, target)
    if (shorter := _with_less_context(allowed, ask, target, trial)) is not None:
        why = "nothing fits with more" if trial is None else "more needs offload"
        wished, (ask, trial) = ask.n_ctx_per_request, shorter
        lowered = (*lowered, f"context lowered from {wished} to {ask.n_ctx_per_request}: {why}")
    if trial is None and (roomier := _without_margins(allowed, ask, target)) is not None:
        if not ask.force:
            return refuse_no_fit(candidates, allowed, ask, target, certain=False)
        trial = roomier
    if trial is None:
        return refuse_no_fit(candidates, allowed, ask, target)
    return build_plan(apply_tuning(trial, ask), ask, inventory, lowered, candidates)


def list_alternatives(
    request: Request, inventory: Inventory, calibration: Calibration | None = None
) -> tuple[Plan, ...]:
    """Return the plans that no other beats in both quality and speed, best quality first; empty where none fits.

    Floors do not apply: what lies below them is shown, for the user to judge.
    """
    question = _pose(request, inventory, prepare(request.profile), calibration)
    if isinstance(question, Refusal):
        return ()
    ask, target, candidates, _, lowered = question
    front: list[Trial] = []
    for trial in sorted(_every_trial(candidates, ask, target), key=lambda t: (t.kl, -t.speed.generation_tps)):
        if not front or trial.speed.generation_tps > front[-1].speed.generation_tps:
            front.append(trial)
    return tuple(build_plan(apply_tuning(trial, ask), ask, inventory, lowered) for trial in front)


def _pose(
    request: Request, inventory: Inventory, prepared: tuple[Candidate, ...], calibration: Calibration | None
) -> tuple[Ask, Target, tuple[Candidate, ...], tuple[Candidate, ...], tuple[str, ...]] | Refusal:
    """Resolve a request on a machine: the ask, the target, the candidates, those above the floor, wishes lowered."""
    ask = resolve_ask(request)
    quantization = ask.settings.quantization
    named = tuple(c for c in prepared if quantization in {None, c.artifact.quantization})
    if not named:
        return refuse_no_artifact(request, ask)
    candidates = _those_for_which_there_is_disk(named, inventory)
    if not candidates:
        smallest = min(named, key=lambda c: c.weights.total_bytes)
        return refuse_disk(ask, smallest, inventory.host.free_disk_bytes or 0)
    trained, lowered = _trained_context(ask, candidates)
    if isinstance(trained, Refusal):
        return trained
    target = choose_target(request, trained, inventory, calibration)
    if isinstance(target, Refusal):
        return target
    allowed = tuple(candidate for candidate in candidates if _allowed(candidate, trained))
    return _grown_context(trained, allowed, target), target, candidates, allowed, lowered


def _those_for_which_there_is_disk(candidates: tuple[Candidate, ...], inventory: Inventory) -> tuple[Candidate, ...]:
    """Leave out what would have to be downloaded and finds no room."""
    free = inventory.host.free_disk_bytes
    if free is None:
        return candidates
    room = free - _DISK_MARGIN_BYTES
    return tuple(c for c in candidates if c.artifact.local_path or c.artifact.package or c.weights.total_bytes <= room)


def _trained_context(ask: Ask, candidates: tuple[Candidate, ...]) -> tuple[Ask | Refusal, tuple[str, ...]]:
    """Hold the context to what the model was trained for: a wish is lowered, an order is refused."""
    n_train = max(candidate.architecture.n_ctx_train for candidate in candidates)
    if not n_train or ask.n_ctx_per_request <= n_train:
        return ask, ()
    is_wish = ask.settings.n_ctx is None and ask.settings.n_ctx_per_request is None
    if is_wish and n_train >= (ask.min_n_ctx_per_request or 0):
        fact = f"context lowered from {ask.n_ctx_per_request} to {n_train}: the model was trained for no more"
        return with_context(ask, n_train), (fact,)
    return (ask if ask.force else refuse_context(ask, n_train)), ()


def _with_less_context(
    candidates: tuple[Candidate, ...], ask: Ask, target: Target, found: Trial | None
) -> tuple[Ask, Trial] | None:
    """Give less context than was wished for, in powers of two down to the profile's limit, where that helps.

    It helps where nothing need be offloaded then, or where nothing was ``found`` to fit before.
    """
    least, fixed = ask.min_n_ctx_per_request, ask.settings
    if (found is not None and found.is_whole) or least is None or fixed.n_ctx or fixed.n_ctx_per_request:
        return None
    first = None
    n_ctx = ask.n_ctx_per_request
    while n_ctx > least:
        n_ctx = max(least, 1 << (n_ctx - 1).bit_length() - 1)
        shorter = with_context(ask, n_ctx)
        trial = _choose(candidates, shorter, target)
        if trial is not None and trial.is_whole:
            return shorter, trial
        if trial is not None and found is None:
            first = first or (shorter, trial)
    return first


def _without_margins(candidates: tuple[Candidate, ...], ask: Ask, target: Target) -> Trial | None:
    """Return what would fit if nothing were left free on purpose: then a refusal rests on an estimate."""
    return _choose(candidates, replace(ask, force=True), target.without_margins())


def _grown_context(ask: Ask, candidates: tuple[Candidate, ...], target: Target) -> Ask:
    """For the objective ``context``: the longest context, in powers of two, at which something still fits."""
    settings = ask.settings
    if ask.objective is not Objective.CONTEXT or settings.n_ctx or settings.n_ctx_per_request:
        return ask
    n_train = max((c.architecture.n_ctx_train for c in candidates), default=0)
    best = ask
    n_ctx = ask.n_ctx_per_request * 2
    while n_ctx <= n_train:
        longer = with_context(ask, n_ctx)
        if _choose(candidates, longer, target) is None:
            break
        best, n_ctx = longer, n_ctx * 2
    return best


def _allowed(candidate: Candidate, ask: Ask) -> bool:
    """Apply the quality floor, which does not bind a quantization that the user asked for by name."""
    if ask.settings.quantization is not None:
        return True
    return meets_floor(candidate.artifact.quantization, ask.min_quantization)


def _choose(candidates: tuple[Candidate, ...], ask: Ask, target: Target) -> Trial | None:
    """Return the best trial above the floors: without offload if any fits so, else with the least offload."""
    quick = _quick_enough((t for c in candidates for t in whole_trials(c, ask, target)), ask)
    if quick:
        return _pick(quick, ask.objective)
    if ask.settings.n_gpu_layers is not None or not target.devices:
        return None
    fastest = (_fastest(partial_trials(candidate, ask, target)) for candidate in candidates)
    partial = _quick_enough((trial for trial in fastest if trial is not None), ask)
    if ask.objective is Objective.SPEED:
        return _fastest(partial)
    return min(partial, key=lambda t: (t.offloaded_bytes, t.kl), default=None)


def _fastest(trials: Iterable[Trial]) -> Trial | None:
    return max(trials, key=lambda t: (t.speed.generation_tps, -t.kl), default=None)


def _quick_enough(trials: Iterable[Trial], ask: Ask) -> list[Trial]:
    return [trial for trial in trials if trial.speed.generation_tps >= ask.min_tps]


def _pick(trials: list[Trial], objective: Objective) -> Trial:
    """Pick by objective: the best quality that is at least half as fast as the fastest, or the fastest."""
    fastest = max(trial.speed.generation_tps for trial in trials)
    if objective is Objective.SPEED:
        return max(trials, key=lambda trial: (trial.speed.generation_tps, -trial.kl))
    quick = [trial for trial in trials if trial.speed.generation_tps >= fastest / 2]
    return min(quick, key=lambda trial: (trial.kl, -trial.candidate.weights.total_bytes))


def _every_trial(candidates: tuple[Candidate, ...], ask: Ask, target: Target) -> list[Trial]:
    """Return one or two trials per candidate: without offload where that fits, else with the least."""
    trials = []
    for candidate in candidates:
        whole = list(whole_trials(candidate, ask, target))
        if not whole and ask.settings.n_gpu_layers is None and target.devices:
            fastest = _fastest(partial_trials(candidate, ask, target))
            whole = [fastest] if fastest is not None else []
        trials += whole
    return trials
