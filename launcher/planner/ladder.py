"""The next smaller plan, when the memory did not suffice for the last one.

Each step moves only what the user did not set, in the profile's order, and strictly lowers what is planned on the
memory that ran out: so the ladder ends. It must not know what happened to the engine, or when to step.
"""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    HOST_MEMORY,
    Budget,
    CacheType,
    Calibration,
    Inventory,
    Outcome,
    Plan,
    Refusal,
    RefusalCode,
    Request,
    Rung,
)
from launcher.planner.ask import Ask, resolve_ask, with_fewer_requests, with_halved_context
from launcher.planner.assemble import build_plan
from launcher.planner.corrections import planned_bytes
from launcher.planner.sizing import (
    Candidate,
    Shape,
    Trial,
    all_layers,
    correct_target,
    first_shape,
    harmless_caches,
    prepare,
    try_shape,
)
from launcher.planner.target import Target, build_target
from launcher.units import format_bytes

SMALLEST_UBATCH: Final = 128
"""Below this a prompt is processed much slower, and the compute buffer hardly shrinks: assumed."""
DEFAULT_MIN_CTX: Final = 2048
"""The floor of one request's context where the profile names none: assumed to be the least that chat can use."""
_MOST_RELIEF_SHARE: Final = 8
"""A step need not free more than this fraction of what was planned: of an allocation that failed, a part was there."""
_BOUNDARY: Final = 3
"""Places tried from where bisection found relief: the use of a memory does not fall quite strictly with the layers."""


class Place(Struct, frozen=True, kw_only=True):
    """Where on the ladder a plan stands: what it serves, for what request, in which shape."""

    candidate: Candidate
    ask: Ask
    shape: Shape


def step_down(
    plan: Plan,
    *,
    memory: str,
    failed_bytes: int | None,
    request: Request,
    inventory: Inventory,
    while_serving: bool = False,
    prepared: tuple[Candidate, ...] | None = None,
    calibration: Calibration | None = None,
) -> Outcome:
    """Return the mildest plan that relieves ``memory`` by what it lacked, or why there is none.

    ``memory`` is a device's name or ``host``; ``failed_bytes`` what could not be allocated, ``None`` where nobody
    said; ``while_serving`` tells that the engine had loaded: then its prompt cache and checkpoints are given up before
    anything else, for they are what grows in host memory. ``inventory`` is the machine as it is now, without the
    engine; ``calibration`` holds what was learnt, this time included. A refusal carries no advice: ``advice.advise``
    adds it.
    """
    prepared = prepare(request.profile) if prepared is None else prepared
    floors = resolve_ask(request)
    relief = least_relief(planned_bytes(plan, memory), failed_bytes)
    target = build_target(plan.engine, plan.install, inventory, calibration).first(len(plan.footprint.devices))
    if request.force:
        target = target.without_margins()
    start = _place_of(plan, floors, prepared)
    if start is None:
        return refuse_step(plan, memory, floors, "its weights are no longer described by the profile")
    # What was learnt comes first: a margin set without it would take the same bytes from the budget once more.
    target = correct_target(start.candidate, start.ask, target, start.shape)
    target = _tightened(target, memory, planned_bytes(plan, memory) - relief)
    need = _Need(memory=memory, limit_bytes=loaded_bytes(plan, memory) - relief, min_tps=floors.min_tps, target=target)
    if while_serving and memory == HOST_MEMORY and (trial := need.size(start)).fits:
        return build_plan(trial, start.ask, inventory, lowered(start.ask, floors, f"{memory} ran out of memory"))
    place = start
    for rung in request.profile.fallback.ladder:
        places = tuple(_PLACES[rung](place, floors, target, prepared))
        chosen = _mildest(places, need, is_ordered=rung is Rung.OFFLOAD)
        if chosen is not None:
            facts = lowered(chosen.ask, floors, f"{memory} ran out of memory")
            return build_plan(need.size(chosen), chosen.ask, inventory, facts)
        # What a rung gave is kept although it was not enough: the next one goes on from there.
        if places and need.use(need.size(places[-1])) < need.use(need.size(place)):
            place = places[-1]
    tried = ", ".join(request.profile.fallback.ladder) or "nothing, the ladder is empty"
    return refuse_step(plan, memory, floors, f"tried in turn: {tried}")


class _Need(Struct, frozen=True, kw_only=True):
    """What a smaller plan must satisfy: at most so much of the memory that ran out, and the floors."""

    memory: str
    limit_bytes: int
    min_tps: float
    target: Target

    def size(self, place: Place) -> Trial:
        """Size a place."""
        return try_shape(place.candidate, place.ask, self.target, place.shape)

    def use(self, trial: Trial) -> int:
        """Return what a trial takes of the memory that ran out."""
        uses = {use.name: use.total_bytes for use in trial.footprint.devices}
        return uses.get(self.memory, trial.footprint.host.engine_bytes)

    def is_relieved(self, trial: Trial) -> bool:
        """Whether the memory that ran out is asked for little enough."""
        return self.use(trial) <= self.limit_bytes

    def is_met(self, trial: Trial) -> bool:
        """Whether the trial will do."""
        return self.is_relieved(trial) and trial.fits and trial.speed.generation_tps >= self.min_tps


def loaded_bytes(plan: Plan, memory: str) -> int:
    """Return what the engine takes of a memory by loading alone: the host's caches grow only later."""
    return plan.footprint.host.engine_bytes if memory == HOST_MEMORY else planned_bytes(plan, memory)


def _tightened(target: Target, memory: str, limit_bytes: int) -> Target:
    """Return the target with a budget of at most ``limit_bytes`` in the memory that ran out: the rest stays margin."""

    def tighten(budget: Budget) -> Budget:
        excess = budget.budget_bytes - limit_bytes
        if budget.name != memory or excess <= 0:
            return budget
        return replace(budget, margin_bytes=budget.margin_bytes + excess)

    budgets = tuple(tighten(budget) for budget in target.budgets)
    return replace(target, budgets=budgets, host_budget=tighten(target.host_budget))


def _mildest(places: tuple[Place, ...], need: _Need, *, is_ordered: bool) -> Place | None:
    """Return the first place that will do; where each relieves more than the one before, by bisection."""
    low, high = 0, len(places)
    while is_ordered and low < high:
        middle = (low + high) // 2
        if need.is_relieved(need.size(places[middle])):
            high = middle
        else:
            low = middle + 1
    upto = low + _BOUNDARY if is_ordered else len(places)
    for place in places[low:upto]:
        if need.is_met(need.size(place)):
            return place
    return None


def least_relief(planned: int, failed_bytes: int | None) -> int:
    """Return by how many bytes a step must lower the plan: by what failed, as far as that is sensible, else by any."""
    return max(1, min(failed_bytes or 1, planned // _MOST_RELIEF_SHARE))


def tightest(plan: Plan) -> str:
    """Return the memory that the plan fills most: the likeliest to have run out where nobody said which."""
    return min(plan.budgets, key=lambda budget: budget.budget_bytes - planned_bytes(plan, budget.name)).name


def lowered(ask: Ask, wished: Ask, why: str) -> tuple[str, ...]:
    """Say what the step took of what was wished for, one fact per line."""
    facts = []
    if ask.n_ctx_per_request < wished.n_ctx_per_request:
        facts.append(f"context lowered from {wished.n_ctx_per_request} to {ask.n_ctx_per_request} tokens per request")
    if ask.n_parallel < wished.n_parallel:
        facts.append(f"parallel requests lowered from {wished.n_parallel} to {ask.n_parallel}")
    return tuple(f"{fact}: {why}" for fact in facts)


def _place_of(plan: Plan, wished: Ask, prepared: tuple[Candidate, ...]) -> Place | None:
    """Return where a plan stands; ``None`` where its weights are not among the candidates."""
    candidate = next((c for c in prepared if c.artifact.quantization == plan.quantization), None)
    if candidate is None:
        return None
    ask = replace(wished, n_ctx=plan.n_ctx, n_ctx_per_request=plan.n_ctx_per_request, n_parallel=plan.n_parallel)
    shape = Shape(
        n_gpu_layers=plan.n_gpu_layers,
        n_ubatch=plan.n_ubatch,
        n_cpu_moe=plan.n_cpu_moe,
        cache_type_k=plan.cache_type_k,
        cache_type_v=plan.cache_type_v,
        flash_attn=plan.flash_attn,
    )
    return Place(candidate=candidate, ask=ask, shape=shape)


def refuse_step(plan: Plan, memory: str, ask: Ask, why: str, what: str | None = None) -> Refusal:
    """Say ``why`` there is no next step, and ``what`` made one necessary where it was not that memory ran out."""
    planned = planned_bytes(plan, memory)
    code = RefusalCode.EXCEEDS_HOST_MEMORY if memory == HOST_MEMORY else RefusalCode.EXCEEDS_DEVICE_MEMORY
    what = what or f"ran out of memory on {memory}, where {format_bytes(planned)} were planned"
    return Refusal(
        code=code,
        model=plan.model,
        fact=f"`{plan.model}` at {plan.quantization} {what}, and no smaller plan keeps its floors",
        derivation=(why, f"floors: {ask.min_tps:g} tokens/s, {min_ctx(ask)} tokens per request"),
        needed_bytes=planned,
        footprint=plan.footprint,
        budgets=plan.budgets,
    )


# --- The rungs: each yields places ever further down, the mildest first ------------------------------------------


def min_ctx(ask: Ask) -> int:
    """Return the least context of a request that a step may leave."""
    return min(ask.min_n_ctx_per_request or DEFAULT_MIN_CTX, ask.n_ctx_per_request)


def _smaller_steps(place: Place, wished: Ask, _target: Target, _prepared: tuple[Candidate, ...]) -> Iterator[Place]:
    if wished.settings.n_ubatch is not None:
        return
    n_ubatch = place.shape.n_ubatch // 2
    while n_ubatch >= SMALLEST_UBATCH:
        yield replace(place, shape=replace(place.shape, n_ubatch=n_ubatch))
        n_ubatch //= 2


def _smaller_cache(place: Place, wished: Ask, _target: Target, _prepared: tuple[Candidate, ...]) -> Iterator[Place]:
    shape = place.shape
    if (shape.cache_type_k, shape.cache_type_v) != (CacheType.F16, CacheType.F16):
        return
    for kind in harmless_caches(place.candidate, wished, shape):
        yield replace(place, shape=replace(shape, cache_type_k=kind, cache_type_v=kind))


def _fewer_requests(place: Place, _wished: Ask, _target: Target, _prepared: tuple[Candidate, ...]) -> Iterator[Place]:
    for ask in with_fewer_requests(place.ask):
        yield replace(place, ask=ask)


def _less_context(place: Place, wished: Ask, _target: Target, _prepared: tuple[Candidate, ...]) -> Iterator[Place]:
    for ask in with_halved_context(place.ask, min_ctx(wished)):
        yield replace(place, ask=ask)


def _more_offload(place: Place, wished: Ask, target: Target, _prepared: tuple[Candidate, ...]) -> Iterator[Place]:
    """Experts of one more layer after the other, then whole layers."""
    if not target.devices or wished.settings.n_gpu_layers is not None:
        return
    architecture, shape = place.candidate.architecture, place.shape
    if architecture.is_moe and wished.settings.n_cpu_moe is None:
        for n_cpu_moe in range(shape.n_cpu_moe + 1, architecture.n_layer + 1):
            yield replace(place, shape=replace(shape, n_cpu_moe=n_cpu_moe))
        shape = replace(shape, n_cpu_moe=architecture.n_layer)
    for n_gpu_layers in range(min(shape.n_gpu_layers, all_layers(place.candidate, target)) - 1, -1, -1):
        yield replace(place, shape=replace(shape, n_gpu_layers=n_gpu_layers))


def _smaller_quantization(
    place: Place, wished: Ask, target: Target, prepared: tuple[Candidate, ...]
) -> Iterator[Place]:
    """The next smaller weights: first in the shape that was wished for, then as far down as the other rungs went."""
    if wished.settings.quantization is not None:
        return
    own = place.candidate.weights.total_bytes
    for candidate in prepared:
        if candidate.weights.total_bytes < own and wished.admits(candidate.artifact.quantization, candidate.n_active):
            yield Place(candidate=candidate, ask=wished, shape=first_shape(candidate, wished, target))
            yield replace(place, candidate=candidate)


_PLACES: Final = {
    Rung.UBATCH: _smaller_steps,
    Rung.CACHE_TYPE: _smaller_cache,
    Rung.PARALLEL: _fewer_requests,
    Rung.CONTEXT: _less_context,
    Rung.OFFLOAD: _more_offload,
    Rung.QUANTIZATION: _smaller_quantization,
}
