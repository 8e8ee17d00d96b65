"""Down the ladder with vLLM: the mildest plan that takes less of the memory, or needs less of the cache, that did not suffice.

``ladder.py``'s for llama.cpp; the rungs have the same names, in the profile's order. What vLLM can do about memory by
itself (a smaller share of it, smaller batches, no graphs) is found by sizing anew against less; a rung gives up what
was asked for. It must not know what happened to the engine, or when to step.
"""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    HOST_MEMORY,
    Calibration,
    Engine,
    Inventory,
    Outcome,
    Plan,
    Request,
    Rung,
    WeightsFormat,
)
from launcher.planner.abilities import is_cpu_build
from launcher.planner.ask import Ask, resolve_ask, with_context, with_fewer_requests, with_halved_context
from launcher.planner.corrections import planned_bytes
from launcher.planner.fit import decide
from launcher.planner.footprint.vllm import MARGIN_BYTES, context_bytes, weakest_capability
from launcher.planner.footprint.vllm_model import read_model
from launcher.planner.footprint.vllm_support import proves_fp8_cache
from launcher.planner.forms import Form, prepare_forms
from launcher.planner.ladder import least_relief, lowered, min_ctx, refuse_step
from launcher.planner.rivals import find_vllm
from launcher.planner.vllm_fit import build_vllm_plan, try_form
from launcher.planner.vllm_lessons import heed_vllm
from launcher.planner.vllm_plan import VllmTrial

_LEAST_SHARE: Final = 32
"""A step frees at least this fraction of what was planned: the share of a GPU could else shrink by a thousandth each time,
and each time costs a start. Assumed."""


class Shortness(Struct, frozen=True, kw_only=True):
    """What did not suffice: a memory by its name, or the room that was left for the cache.

    ``failed_bytes`` could not be had of the memory. A cache that was too small for one request is no want of memory to
    be relieved, for it is what is left of it: ``is_cache`` then calls for fewer tokens, of which the engine may have
    said how many one request can have (``n_ctx``).
    """

    memory: str
    failed_bytes: int | None = None
    is_cache: bool = False
    n_ctx: int | None = None


class _Place(Struct, frozen=True, kw_only=True):
    """Where on the ladder a plan stands: its weights, what it serves, on at least how many GPUs, with which type of cache."""

    form: Form
    ask: Ask
    n_devices: int
    kv_cache_dtype: str = "auto"


def step_down_vllm(
    plan: Plan,
    short: Shortness,
    *,
    request: Request,
    inventory: Inventory,
    forms: tuple[Form, ...] | None = None,
    calibration: Calibration | None = None,
) -> Outcome:
    """Return the mildest plan that needs less of what did not suffice, or why there is none; no advice.

    ``inventory`` is the machine as it is now, without the engine. After the profile's rungs, and only where it lists the
    rung of quantizations, another engine of the profile is asked, as ``decide`` would.
    """
    forms = prepare_forms(request.profile) if forms is None else forms
    floors = resolve_ask(request)
    what = "left too little for its cache" if short.is_cache else None
    form = next((form for form in forms if form.artifact.quantization == plan.quantization), None)
    if form is None:
        return refuse_step(plan, short.memory, floors, "its weights are no longer described by the profile", what)
    ask = replace(floors, n_ctx=plan.n_ctx, n_ctx_per_request=plan.n_ctx_per_request, n_parallel=plan.n_parallel)
    place = _Place(
        form=form, ask=ask, n_devices=max(1, len(plan.footprint.devices)), kv_cache_dtype=plan.kv_cache_dtype
    )
    machine = inventory if short.is_cache else _tightened(inventory, plan, short)
    learnt = heed_vllm(form, inventory, calibration)
    if not short.is_cache:  # what was learnt to stay free is no more than what the tightened machine lacks
        learnt = learnt.without_beside()
    why = "the cache did not hold a request" if short.is_cache else f"{short.memory} ran out of memory"
    rungs = request.profile.fallback.ladder
    tries = [((place,) if not short.is_cache else ()), *(_PLACES[rung] for rung in rungs if rung in _PLACES)]
    for rung in tries:
        places = rung if isinstance(rung, tuple) else tuple(rung(place, floors, short, forms, inventory))
        for candidate in places:
            trial = try_form(
                candidate.form,
                candidate.ask,
                machine,
                n_least=candidate.n_devices,
                kv_cache_dtype=candidate.kv_cache_dtype,
                learnt=learnt,
            )
            if isinstance(trial, VllmTrial):
                smaller = build_vllm_plan(trial, candidate.ask, inventory, lowered(candidate.ask, floors, why))
                if _relieves(smaller, plan, short):
                    return smaller
        # What a rung gave is kept although it was not enough: the next one goes on from there.
        place = places[-1] if places else place
    if Rung.QUANTIZATION in rungs and (other := _other_engine(request, inventory, calibration)) is not None:
        return other
    tried = ", ".join(rungs) or "nothing, the ladder is empty"
    return refuse_step(plan, short.memory, floors, f"tried in turn: {tried}", what)


def _limit_bytes(plan: Plan, short: Shortness) -> int:
    """Return the most that a smaller plan may take of the memory that ran out, or of any GPU where that is one."""
    planned = planned_bytes(plan, short.memory)
    least = 0 if short.memory == HOST_MEMORY else planned // _LEAST_SHARE
    return planned - max(least, least_relief(planned, short.failed_bytes))


def _tightened(inventory: Inventory, plan: Plan, short: Shortness) -> Inventory:
    """Return the machine with no more free on any GPU than leads to a smaller plan: another GPU is no way out for long."""
    if short.memory == HOST_MEMORY:
        return inventory
    most = _limit_bytes(plan, short) + context_bytes(len(plan.footprint.devices)) + MARGIN_BYTES
    devices = tuple(replace(device, free_bytes=min(device.known_free_bytes, most)) for device in inventory.devices)
    return replace(inventory, devices=devices)


def _relieves(smaller: Plan, plan: Plan, short: Shortness) -> bool:
    """Whether less is taken of the memory that ran out; of a cache that was too small, whether less is asked of each GPU.

    Either is strictly less at each step, so the ladder ends.
    """
    if not short.is_cache:
        memories = (HOST_MEMORY,) if short.memory == HOST_MEMORY else (use.name for use in smaller.footprint.devices)
        return all(planned_bytes(smaller, memory) <= _limit_bytes(plan, short) for memory in memories)
    if short.n_ctx is not None and len(smaller.footprint.devices) == len(plan.footprint.devices):
        same = smaller.quantization == plan.quantization
        n_ctx = short.n_ctx * _element_bytes(plan) // _element_bytes(smaller)
        return (not same or smaller.n_ctx_per_request <= n_ctx) and _asks_less(smaller, plan)
    return _asks_less(smaller, plan)


def _asks_less(smaller: Plan, plan: Plan) -> bool:
    """Whether less is to be cached, smaller weights loaded, or more GPUs share both."""

    def asked(of: Plan) -> tuple[int, int, int]:
        cached = of.n_ctx_per_request * of.n_parallel * _element_bytes(of)
        return cached, of.footprint.weights_bytes, -len(of.footprint.devices)

    return any(new < old for new, old in zip(asked(smaller), asked(plan), strict=True))


def _element_bytes(plan: Plan) -> int:
    """Return the bytes of an element of the cache, as far as they tell two plans of one model apart."""
    return 1 if plan.kv_cache_dtype.startswith("fp8") else 2


def _other_engine(request: Request, inventory: Inventory, calibration: Calibration | None) -> Plan | None:
    """Return what another engine of the profile would serve here; ``None`` where vLLM or its weights were ordered."""
    fixed = request.settings.engine or request.profile.pins.engine
    named = request.settings.quantization or request.profile.pins.quantization
    engines = tuple(engine for engine in request.profile.engines if engine is not Engine.VLLM)
    has_weights = any(artifact.format is WeightsFormat.GGUF for artifact in request.profile.artifacts)
    if fixed is not None or named is not None or not engines or not has_weights:
        return None
    others = replace(request, profile=replace(request.profile, engines=engines))
    outcome = decide(others, inventory, calibration=calibration)
    return outcome if isinstance(outcome, Plan) else None


# --- The rungs: each yields places ever further down, the mildest first ------------------------------------------


def _smaller_cache(
    place: _Place, _wished: Ask, _short: Shortness, _forms: tuple[Form, ...], machine: Inventory
) -> Iterator[_Place]:
    """Half the bytes for each cached token, where that is published to cost next to nothing."""
    if place.kv_cache_dtype != "auto" or is_cpu_build(find_vllm(machine)):
        return
    install = find_vllm(machine)
    model = place.form.models.setdefault(2, read_model(place.form.spec, dtype_bytes=2))
    if proves_fp8_cache(model, weakest_capability(machine.devices), install.version if install is not None else None):
        yield replace(place, kv_cache_dtype="fp8")


def _fewer_requests(
    place: _Place, _wished: Ask, _short: Shortness, _forms: tuple[Form, ...], _machine: Inventory
) -> Iterator[_Place]:
    for ask in with_fewer_requests(place.ask):
        yield replace(place, ask=ask)


def _less_context(
    place: _Place, wished: Ask, short: Shortness, _forms: tuple[Form, ...], _machine: Inventory
) -> Iterator[_Place]:
    """The length that the engine named first, then halves."""
    if wished.settings.fix_context:
        return
    floor = min_ctx(wished)
    if short.n_ctx is not None and floor <= short.n_ctx < place.ask.n_ctx_per_request:
        yield replace(place, ask=with_context(place.ask, short.n_ctx))
    for ask in with_halved_context(place.ask, floor):
        yield replace(place, ask=ask)


def _more_devices(
    place: _Place, _wished: Ask, _short: Shortness, _forms: tuple[Form, ...], machine: Inventory
) -> Iterator[_Place]:
    """Each layer over more GPUs, so that less of it is on each."""
    for n_devices in range(place.n_devices + 1, len(machine.devices) + 1):
        yield replace(place, n_devices=n_devices)


def _smaller_form(
    place: _Place, wished: Ask, _short: Shortness, forms: tuple[Form, ...], _machine: Inventory
) -> Iterator[_Place]:
    """The next smaller weights: first with what was wished for, then as far down as the other rungs went."""
    if wished.settings.quantization is not None:
        return
    smaller = [form for form in forms if form.weights_bytes < place.form.weights_bytes]
    for form in sorted(smaller, key=lambda form: (form.kl, -form.weights_bytes)):
        if wished.admits(form.artifact.quantization, form.n_active):
            yield _Place(form=form, ask=wished, n_devices=1)
            yield replace(place, form=form)


_PLACES: Final = {
    Rung.CACHE_TYPE: _smaller_cache,
    Rung.PARALLEL: _fewer_requests,
    Rung.CONTEXT: _less_context,
    Rung.OFFLOAD: _more_devices,
    Rung.QUANTIZATION: _smaller_form,
}
"""The step of a batch is vLLM's own to size: that rung has no place."""
