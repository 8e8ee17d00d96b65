"""The choice: which artifact, engine and placement serve a request on a machine, or why none does.

Every artifact of the profile is sized against the memory that is really free, and the objective picks among those
that fit, whatever engine they are for. What the user fixed is honoured or refused, never changed. Advice on a refusal
is ``advice.py``'s.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Calibration,
    Cluster,
    Engine,
    Inventory,
    Machines,
    Outcome,
    Plan,
    Refusal,
    RefusalCode,
    Request,
)
from launcher.planner.ask import Ask, hold_context, note_lowered, resolve_ask, with_less_context, with_more_context
from launcher.planner.assemble import build_plan
from launcher.planner.choice import explain, pareto_front, pick
from launcher.planner.footprint.limits import find_contradiction
from launcher.planner.forms import Form, prepare_forms
from launcher.planner.offload import choose_offloaded, list_offloaded
from launcher.planner.partial import partial_trials
from launcher.planner.refusal import (
    refuse_context,
    refuse_contradiction,
    refuse_disk,
    refuse_no_artifact,
    refuse_no_fit,
)
from launcher.planner.rivals import disk_room_bytes, is_rival, may_have_vllm, worth_sizing
from launcher.planner.sizing import Candidate, Trial, build_config, first_shape, prepare, whole_trials
from launcher.planner.target import Target, choose_target
from launcher.planner.tuning import apply_tuning
from launcher.units import format_bytes

if TYPE_CHECKING:
    from launcher.planner.vllm_plan import VllmTrial


def decide(
    request: Request,
    inventory: Machines,
    prepared: tuple[Candidate, ...] | None = None,
    calibration: Calibration | None = None,
    forms: tuple[Form, ...] | None = None,
) -> Outcome:
    """Plan or refuse, without advice. Deterministic: equal arguments give equal results.

    ``prepared`` is what ``sizing.prepare`` returned for the request's profile and ``forms`` what ``forms.prepare_forms``
    did, where the caller asks more than once; ``calibration`` is what was measured on this very machine.
    Over several machines it is the best plan of one of them, or vLLM's over many.
    """
    outcome = _decide(request, inventory, prepared, calibration, forms, whole_only=False)
    assert outcome is not None  # noqa: S101 - all placements were looked at
    return outcome


def decide_whole(
    request: Request,
    inventory: Machines,
    prepared: tuple[Candidate, ...] | None = None,
    calibration: Calibration | None = None,
    forms: tuple[Form, ...] | None = None,
) -> Plan | None:
    """Return what ``decide`` would, if that is a plan without offload; sooner, as nothing else is looked for."""
    # forced plans may use the margins, but only where nothing else fits, offloaded or not
    outcome = _decide(request, inventory, prepared, calibration, forms, whole_only=not request.force)
    return outcome if isinstance(outcome, Plan) and outcome.is_whole else None


def _decide(
    request: Request,
    inventory: Machines,
    prepared: tuple[Candidate, ...] | None,
    calibration: Calibration | None,
    forms: tuple[Form, ...] | None,
    *,
    whole_only: bool,
) -> Outcome | None:
    if _only_vllm(request):
        from launcher.planner.vllm_fit import decide_vllm  # noqa: PLC0415 - a tenth of the start-up, seldom needed

        return decide_vllm(request, inventory, forms, calibration)
    if isinstance(inventory, Cluster):
        from launcher.planner.cluster_fit import decide_on_cluster  # noqa: PLC0415 - only several machines need it

        candidates = prepare(request.profile) if prepared is None else prepared
        forms = prepare_forms(request.profile) if forms is None else forms
        return decide_on_cluster(
            request,
            inventory,
            lambda node: _decide_alone(request, node, candidates, None, forms, whole_only=whole_only),
            forms,
        )
    return _decide_alone(request, inventory, prepared, calibration, forms, whole_only=whole_only)


def _decide_alone(
    request: Request,
    inventory: Inventory,
    prepared: tuple[Candidate, ...] | None,
    calibration: Calibration | None,
    forms: tuple[Form, ...] | None,
    *,
    whole_only: bool,
) -> Outcome | None:
    """Plan or refuse for one machine, whichever engine it is for."""
    rivals: tuple[Form, ...] = ()
    if is_rival(request, inventory):
        rivals = prepare_forms(request.profile) if forms is None else forms
    question = _pose(
        request, inventory, prepare(request.profile) if prepared is None else prepared, calibration, rivals
    )
    if isinstance(question, Refusal) and question.code is RefusalCode.EXCEEDS_DISK:
        roomy = replace(inventory, host=replace(inventory.host, free_disk_bytes=None))
        without = decide(request, roomy, prepared, calibration, forms)
        return without if isinstance(without, Refusal) else question  # too little memory is the better reason
    if isinstance(question, Refusal):
        return _instead_of(question, request, inventory, rivals, calibration)
    ask, target, candidates, allowed, lowered = question
    weigh = _Weigher(inventory, rivals, calibration)
    best = _choose(allowed, ask, target, weigh, whole_only=whole_only)
    shorter = _with_less_context(allowed, ask, target, best, weigh, whole_only=whole_only)
    if shorter is not None:
        why = "nothing fits with more" if best is None else "more needs offload"
        wished, (ask, best) = ask, shorter
        lowered = (*lowered, *note_lowered(wished, ask, why))
    if best is None and whole_only:
        return None
    if best is None and ask.force:
        best = _choose(allowed, ask, target.without_margins())
    if best is None:
        is_estimate = not ask.force and _fits_without_margins(allowed, ask, target)
        return refuse_no_fit(candidates, allowed, ask, target, certain=not is_estimate)
    return _build(best, ask, inventory, lowered, candidates)


def list_alternatives(
    request: Request,
    inventory: Machines,
    calibration: Calibration | None = None,
    *,
    prepared: tuple[Candidate, ...] | None = None,
    forms: tuple[Form, ...] | None = None,
) -> tuple[Plan, ...]:
    """Return the plans that no other beats in both quality and speed, best quality first; empty where none fits.

    Floors do not apply: what lies below them is shown, for the user to judge. vLLM's plans are among them wherever it is in
    a version that may be started, or may be. ``prepared`` and ``forms`` are as in ``decide``.
    """
    if isinstance(inventory, Cluster):
        from launcher.planner.cluster_fit import list_on_cluster  # noqa: PLC0415 - only several machines need it
        from launcher.planner.vllm_fit import build_vllm_plan  # noqa: PLC0415 - as above

        candidates = prepare(request.profile) if prepared is None else prepared
        forms = prepare_forms(request.profile) if forms is None else forms
        return list_on_cluster(
            request,
            inventory,
            lambda node: list_alternatives(request, node, prepared=candidates, forms=forms),
            [
                build_vllm_plan(trial, ask, inventory, lowered)
                for trial, ask, lowered in _list_vllm(request, inventory, forms)
            ],
        )
    found: list[tuple[Trial | VllmTrial, Ask, tuple[str, ...]]] = []
    if not _only_vllm(request):
        candidates = prepare(request.profile) if prepared is None else prepared
        question = _pose(request, inventory, candidates, calibration)
        if not isinstance(question, Refusal):
            ask, target, candidates, _, lowered = question
            found += [(trial, ask, lowered) for trial in _every_trial(candidates, ask, target)]
    found += _list_vllm(request, inventory, forms, calibration)
    asked = {id(trial): (ask, lowered) for trial, ask, lowered in found}
    return tuple(
        _build(trial, asked[id(trial)][0], inventory, asked[id(trial)][1])
        for trial in pareto_front([trial for trial, _, _ in found])
    )


def _list_vllm(
    request: Request, machines: Machines, forms: tuple[Form, ...] | None, calibration: Calibration | None = None
) -> "list[tuple[VllmTrial, Ask, tuple[str, ...]]]":
    """Return what vLLM could serve where it is or may be, each with what was asked for and the wishes lowered."""
    fixed = _fixed_engine(request)
    engines = request.profile.engines if fixed is None else (fixed,)
    if Engine.VLLM not in engines or not may_have_vllm(machines):
        return []
    from launcher.planner.vllm_fit import list_vllm  # noqa: PLC0415 - as above

    known = prepare_forms(request.profile) if forms is None else forms
    held, shown, lowered = list_vllm(request, machines, known, calibration)
    return [(trial, held, lowered) for trial in shown]


# --- Either engine ----------------------------------------------------------------------------------------------


def _fixed_engine(request: Request) -> Engine | None:
    return request.settings.engine or request.profile.pins.engine


def _only_vllm(request: Request) -> bool:
    """Whether llama.cpp is out of the question: by name, or because the profile has no other engine."""
    fixed = _fixed_engine(request)
    return fixed is Engine.VLLM or (fixed is None and set(request.profile.engines) == {Engine.VLLM})


def _instead_of(
    refusal: Refusal,
    request: Request,
    inventory: Inventory,
    rivals: tuple[Form, ...],
    calibration: Calibration | None,
) -> Outcome:
    """Return vLLM's plan where llama.cpp has nothing to plan with, else llama.cpp's refusal."""
    if not rivals:
        return refusal
    from launcher.planner.vllm_fit import decide_vllm  # noqa: PLC0415 - as above

    outcome = decide_vllm(request, inventory, rivals, calibration)
    named = request.settings.quantization or request.profile.pins.quantization
    is_theirs = named in {form.artifact.quantization for form in rivals}
    return outcome if isinstance(outcome, Plan) or is_theirs else refusal


class _Weigher(Struct, frozen=True):
    """vLLM's forms of a model on a machine, as far as they may be chosen unasked."""

    inventory: Inventory
    rivals: tuple[Form, ...] = ()
    calibration: Calibration | None = None

    def add_to(self, options: Sequence[Trial], ask: Ask) -> "list[Trial | VllmTrial]":
        """Add those plans of vLLM's that could change which option is best."""
        forms = worth_sizing(self.rivals, options, ask, self.inventory) if self.rivals else []
        if not forms:
            return list(options)
        from launcher.planner.vllm_fit import find_trials  # noqa: PLC0415 - as above

        return [*options, *find_trials(forms, ask, self.inventory, self.calibration)[0]]


def _build(
    best: "Trial | VllmTrial",
    ask: Ask,
    inventory: Inventory,
    lowered: tuple[str, ...],
    candidates: tuple[Candidate, ...] = (),
) -> Plan:
    if isinstance(best, Trial):
        return build_plan(apply_tuning(best, ask), ask, inventory, lowered, candidates)
    from launcher.planner.vllm_fit import build_vllm_plan  # noqa: PLC0415 - as above

    return build_vllm_plan(best, ask, inventory, lowered)


# --- llama.cpp --------------------------------------------------------------------------------------------------


def _pose(
    request: Request,
    inventory: Inventory,
    prepared: tuple[Candidate, ...],
    calibration: Calibration | None,
    rivals: tuple[Form, ...] = (),
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
    for candidate in {id(c.architecture): c for c in candidates}.values():
        config = build_config(trained, target, first_shape(candidate, trained, target))
        if (found := find_contradiction(candidate.architecture, config)) is not None:
            return refuse_contradiction(trained, found[0])
    allowed = tuple(c for c in candidates if trained.admits(c.artifact.quantization, c.n_active))
    grown = _grown_context(trained, allowed, target, _Weigher(inventory, rivals, calibration))
    if len(candidates) < len(named):
        kept = {candidate.artifact.quantization for candidate in candidates}
        too_large = [c.artifact.quantization for c in named if c.artifact.quantization not in kept]
        room = format_bytes(disk_room_bytes(inventory) or 0)
        lowered = (*lowered, f"{', '.join(too_large)}: only {room} of disk can be given to a download")
    return grown, target, candidates, allowed, lowered


def _those_for_which_there_is_disk(candidates: tuple[Candidate, ...], inventory: Inventory) -> tuple[Candidate, ...]:
    """Leave out what would have to be downloaded and finds no room."""
    room = disk_room_bytes(inventory)
    if room is None:
        return candidates
    return tuple(c for c in candidates if c.artifact.local_path or c.artifact.package or c.weights.total_bytes <= room)


def _trained_context(ask: Ask, candidates: tuple[Candidate, ...]) -> tuple[Ask | Refusal, tuple[str, ...]]:
    """Hold the context to what the model was trained for: a wish is lowered, an order is refused."""
    n_train = max(candidate.architecture.n_ctx_train for candidate in candidates)
    held = hold_context(ask, n_train)
    if held is None:
        return (ask if ask.force else refuse_context(ask, n_train)), ()
    return held, note_lowered(ask, held, "the model was trained for no more")


def _with_less_context(
    candidates: tuple[Candidate, ...],
    ask: Ask,
    target: Target,
    found: "Trial | VllmTrial | None",
    weigh: _Weigher,
    *,
    whole_only: bool,
) -> "tuple[Ask, Trial | VllmTrial] | None":
    """Give less context than was wished for, in powers of two down to the profile's limit, where that helps.

    It helps where nothing need be offloaded then, or where nothing was ``found`` to fit before.
    """
    if found is not None and found.is_whole:
        return None
    first = None
    for shorter in with_less_context(ask):
        trial = _choose(candidates, shorter, target, weigh, whole_only=whole_only)
        if trial is not None and trial.is_whole:
            return shorter, trial
        if trial is not None and found is None:
            first = first or (shorter, trial)
    return first


def _fits_without_margins(candidates: tuple[Candidate, ...], ask: Ask, target: Target) -> bool:
    """Whether anything would fit, however slow, if nothing were left free on purpose: then a refusal rests on an estimate."""
    forced, roomy = replace(ask, force=True), target.without_margins()
    smallest_first = candidates[::-1]
    if any(True for candidate in smallest_first for _ in whole_trials(candidate, forced, roomy)):
        return True
    if ask.settings.n_gpu_layers is not None or not target.devices:
        return False
    return any(True for candidate in smallest_first for _ in partial_trials(candidate, forced, roomy))


def _grown_context(ask: Ask, candidates: tuple[Candidate, ...], target: Target, weigh: _Weigher) -> Ask:
    """For the objective ``context``: the longest context, in powers of two, at which something still fits."""
    n_train = max((c.architecture.n_ctx_train for c in candidates), default=0)
    best = ask
    for longer in with_more_context(ask, n_train):
        if _choose(candidates, longer, target, weigh) is None:
            break
        best = longer
    return best


def _choose(
    candidates: tuple[Candidate, ...],
    ask: Ask,
    target: Target,
    weigh: _Weigher | None = None,
    *,
    whole_only: bool = False,
) -> "Trial | VllmTrial | None":
    """Return the best trial above the floors: without offload if any fits so, else with the least offload."""
    quick = _quick_enough((t for c in candidates for t in whole_trials(c, ask, target)), ask)
    options = quick if weigh is None else weigh.add_to(quick, ask)
    if options:
        best = pick(options, ask.objective, ask.n_parallel)
        if len(options) == len(quick):
            return best  # one engine's alone
        return replace(best, why=explain(best, options, ask.objective, ask.n_parallel))
    if whole_only or ask.settings.n_gpu_layers is not None or not target.devices:
        return None
    return choose_offloaded(candidates, ask, target)


def _quick_enough(trials: Iterable[Trial], ask: Ask) -> list[Trial]:
    return [trial for trial in trials if trial.speed.generation_tps >= ask.min_tps]


def _every_trial(candidates: tuple[Candidate, ...], ask: Ask, target: Target) -> list[Trial]:
    """Return the trials to list: those without offload, and the best of the candidates that have none."""
    whole = [list(whole_trials(candidate, ask, target)) for candidate in candidates]
    trials = [trial for found in whole for trial in found]
    if ask.settings.n_gpu_layers is None and target.devices:
        others = [candidate for candidate, found in zip(candidates, whole, strict=True) if not found]
        trials += list_offloaded(others, ask, target)
    return trials
