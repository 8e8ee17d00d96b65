"""Ways out of a refusal, each planned again and found to fit before it is shown.

One thing is relaxed at a time, cheapest loss first, at most three. It proposes nothing that it has not checked, and
it knows other models and machines only as values that the caller hands in.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Final

from msgspec.structs import replace

from launcher.domain import (
    Advice,
    CacheType,
    Calibration,
    Cluster,
    Engine,
    Machines,
    Outcome,
    Plan,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    WeightsFormat,
)
from launcher.planner.ask import merge_settings, resolve_ask
from launcher.planner.fit import decide
from launcher.planner.forms import prepare_forms
from launcher.planner.parameters import count_active
from launcher.planner.quality import cache_kl, cache_types_worth_trying, kl_divergence, meets_floor
from launcher.planner.search import (
    Alternatives,
    Search,
    count_parameters,
    describe_form,
    describe_machine,
    describe_placement,
    describe_speed,
    option_of,
    smallest_that_holds,
)
from launcher.planner.sizing import prepare
from launcher.planner.verdicts import find_verdicts

MAX_ADVICE: Final = 3
_MIN_USEFUL_CTX: Final = 1024


def plan(
    request: Request,
    inventory: Machines,
    *,
    argv: tuple[str, ...] = (),
    alternatives: Alternatives = Alternatives(),  # noqa: B008 - an immutable value
    calibration: Calibration | None = None,
) -> Outcome:
    """Plan or refuse; a refusal carries at most three pieces of checked advice.

    ``argv`` is the command of the request without its name and its settings (``launch plan --inventory rtx4090``
    gives ``("plan", "--inventory", "rtx4090")``): advice repeats it. ``alternatives`` are asked for only where
    something does not fit as it is. ``calibration`` is what was measured on this very machine.
    """
    search = _prepare_search(request, inventory, argv or ("plan",), calibration)
    outcome = search.decide(request, inventory, calibration)
    if isinstance(outcome, Refusal):
        outcome = _with_ways_out(outcome, search, alternatives)
    return replace(outcome, verdicts=find_verdicts(outcome, search, alternatives))


def advise(
    refusal: Refusal,
    request: Request,
    inventory: Machines,
    *,
    argv: tuple[str, ...],
    alternatives: Alternatives,
    calibration: Calibration | None,
) -> Refusal:
    """Return a refusal that was come by otherwise (at the foot of the ladder) with its checked ways out."""
    return _with_ways_out(refusal, _prepare_search(request, inventory, argv, calibration), alternatives)


def _prepare_search(
    request: Request, inventory: Machines, argv: tuple[str, ...], calibration: Calibration | None
) -> Search:
    return Search(
        request=request,
        inventory=inventory,
        argv=argv,
        prepared=prepare(request.profile),
        forms=prepare_forms(request.profile),
        calibration=calibration,
        seen={},
    )


def _with_ways_out(refusal: Refusal, search: Search, alternatives: Alternatives) -> Refusal:
    """Return the refusal with at most three ways out; where ``--force`` is one that has no room, it is stated as a fact."""
    forced = tuple(_forced(refusal, search))
    advice = tuple(islice(chain(_by_loss(refusal, search, alternatives), forced), MAX_ADVICE))
    facts = tuple(each.text for each in forced if each not in advice)
    return replace(refusal, advice=advice, derivation=(*refusal.derivation, *facts))


def _by_loss(refusal: Refusal, search: Search, alternatives: Alternatives) -> Iterator[Advice]:
    """Yield advice, cheapest loss first: speed, then what only the profile wished for, then what the user named.

    A smaller model comes before the same one at a quantization that ruins it.
    """
    if refusal.code is RefusalCode.NO_SUCH_QUANTIZATION:
        yield from _engine_of_the_quantization(search)
        yield from _unfixed(search, "quantization")
        yield from _unfixed(search, "engine")
        return
    for field in (
        "n_gpu_layers",
        "n_cpu_moe",
        "flash_attn",
        "n_batch",
        "n_ubatch",
        "n_threads",
        "cache_type_v",
        "engine",
    ):
        yield from _unfixed(search, field)
    if refusal.code in {RefusalCode.NO_ENGINE, RefusalCode.ENGINE_TOO_OLD}:
        return
    yield from _harmless_cache(search)
    context_was_named = search.request.settings.fix_context
    if not context_was_named:
        yield from _less_context(search)
    yield from _smaller_quantization(search)
    if context_was_named:
        yield from _less_context(search)
    yield from _fewer_parallel(search)
    yield from _smaller_model(search, alternatives)
    yield from _other_machine(search, alternatives.machines())
    yield from _extreme_quantization(search)
    yield from _cloud_node(search, alternatives.machines())


def _unfixed(search: Search, field: str) -> Iterator[Advice]:
    """Give one setting back to the planner."""
    if getattr(search.request.settings, field) is None:
        return
    relaxed, plan = search.relax(**{field: None})
    if plan is not None:
        word = option_of(field)
        text = f"without {word} it fits: {plan.quantization}{describe_placement(plan)}"
        yield Advice(text=text, argv=search.command(relaxed))


def _engine_of_the_quantization(search: Search) -> Iterator[Advice]:
    """Name the engine whose format the asked quantization is, where none was named and it was left aside."""
    if merge_settings(search.request.profile.pins, search.request.settings).engine is not None:
        return
    relaxed, plan = search.relax(engine=Engine.VLLM)
    if plan is not None:
        yield Advice(text=f"{plan.quantization} is a form for vllm, which holds it here", argv=search.command(relaxed))


def _harmless_cache(search: Search) -> Iterator[Advice]:
    """Offer the cache types that are known to cost next to nothing for this architecture, where wider ones were fixed."""
    fixed = search.request.settings
    if fixed.cache_type_k is None and fixed.cache_type_v is None:
        return  # the planner has tried them
    names = {candidate.architecture.name for candidate in search.prepared}
    for cache_type in dict.fromkeys(
        kind for name in sorted(names) for kind in (CacheType.F16, *cache_types_worth_trying(name))
    ):
        if cache_type in {fixed.cache_type_k, fixed.cache_type_v} and fixed.cache_type_k == fixed.cache_type_v:
            continue
        relaxed, plan = search.relax(cache_type_k=cache_type, cache_type_v=cache_type)
        if plan is not None:
            price = max(cache_kl(name, cache_type, cache_type) for name in names)
            text = f"with a {cache_type} cache it fits at {plan.quantization}{describe_placement(plan)} (KL divergence {price:g})"
            yield Advice(text=text, argv=search.command(relaxed))
            return


def _fewer_parallel(search: Search) -> Iterator[Advice]:
    """Offer the most parallel requests, in halves, that fit with the same context for each."""
    asked = resolve_ask(search.request)
    n_parallel = asked.n_parallel // 2
    while n_parallel:
        relaxed, plan = search.relax(
            n_parallel=n_parallel, n_ctx=None, n_ctx_per_request=max(1, asked.n_ctx_per_request)
        )
        if plan is not None:
            requests = "request" if n_parallel == 1 else "requests"
            text = f"{n_parallel} parallel {requests} instead of {asked.n_parallel} fit at {plan.quantization}{describe_placement(plan)}"
            yield Advice(text=text, argv=search.command(relaxed))
            return
        n_parallel //= 2


def _less_context(search: Search) -> Iterator[Advice]:
    """Offer the longest context, in powers of two, that fits."""
    asked = resolve_ask(search.request).n_ctx_per_request
    n_ctx = 1 << max(1, (asked - 1).bit_length()) - 1
    while n_ctx >= _MIN_USEFUL_CTX:
        relaxed, plan = search.relax(n_ctx=None, n_ctx_per_request=n_ctx)
        if plan is not None:
            text = f"{n_ctx} tokens per request instead of {asked} fit at {plan.quantization}{describe_placement(plan)}"
            yield Advice(text=text, argv=search.command(relaxed))
            return
        n_ctx //= 2


def _smaller_quantization(search: Search) -> Iterator[Advice]:
    """Offer the best quantization that fits below the one that was asked for, as long as it is a good one."""
    yield from _best_that_fits(search, [(name, n) for name, n in _smaller(search) if meets_floor(name, None, n)])


def _extreme_quantization(search: Search) -> Iterator[Advice]:
    """Offer the best quantization that fits among those that a smaller model is better than."""
    yield from _best_that_fits(search, [(name, n) for name, n in _smaller(search) if not meets_floor(name, None, n)])


def _smaller(search: Search) -> Iterator[tuple[str, float]]:
    """Yield the quantizations that the planner has not tried itself and that lose more than what was asked for.

    With each come the parameters that a token passes through. They are of the format of the engine that was named.
    """
    profile = search.request.profile
    settings = merge_settings(profile.pins, search.request.settings)
    asked = settings.quantization
    wanted = WeightsFormat.SAFETENSORS if settings.engine is Engine.VLLM else WeightsFormat.GGUF
    specs = {a.quantization: a.spec for a in profile.artifacts if a.format is wanted and a.spec is not None}
    for name, spec in sorted(specs.items(), key=lambda item: (kl_divergence(item[0]), item[0])):
        if asked is not None and kl_divergence(name) <= kl_divergence(asked):
            continue
        n_active = count_active(spec)
        if asked is not None or not meets_floor(name, profile.limits.min_quantization, n_active):
            yield name, n_active


def _best_that_fits(search: Search, names: Sequence[tuple[str, float]]) -> Iterator[Advice]:
    for name, n_active in names:
        relaxed, plan = search.relax(quantization=name)
        if plan is not None:
            loss, least = kl_divergence(name, n_active), kl_divergence("q8_0", n_active)
            price = f"(quality: KL divergence {loss:.2g}; q8_0 would have {least:.2g})"
            text = f"`{plan.model}` at {name} fits{describe_placement(plan)} {price}"
            yield Advice(text=text, argv=search.command(relaxed))
            return


def _smaller_model(search: Search, alternatives: Alternatives) -> Iterator[Advice]:
    """Offer the largest smaller model that fits, at the context and parallelism that the user fixed."""
    fixed = search.request.settings
    kept = Settings(
        n_ctx=fixed.n_ctx, n_ctx_per_request=fixed.n_ctx_per_request, n_parallel=fixed.n_parallel, engine=fixed.engine
    )
    for profile in alternatives.smaller(count_parameters(search.request.profile)):
        outcome = decide(Request(profile=profile, settings=kept), search.inventory, calibration=search.calibration)
        if isinstance(outcome, Plan):
            how = describe_placement(outcome) or describe_speed(outcome)
            text = f"`{profile.name}` at {outcome.quantization} fits{how}"
            exact = Request(profile=profile, settings=replace(kept, quantization=outcome.quantization))
            yield Advice(text=text, argv=search.command(exact))
            return


def _other_machine(search: Search, machines: tuple[Machines, ...]) -> Iterator[Advice]:
    """Name the smallest reference machine that holds the request without offload."""
    found = smallest_that_holds(search, machines)
    if found is None:
        return
    yield _on_machine(search, *found)


def _cloud_node(search: Search, machines: tuple[Machines, ...]) -> Iterator[Advice]:
    """Name the smallest reference machine that can be rented, where the smallest of all cannot."""
    found = smallest_that_holds(search, machines)
    rented = smallest_that_holds(search, tuple(machine for machine in machines if machine.is_cloud))
    if rented is not None and rented != found:
        yield _on_machine(search, *rented)


def _on_machine(search: Search, machine: Machines, plan: Plan) -> Advice:
    if isinstance(machine, Cluster):
        nodes = ", cloud nodes" if machine.is_cloud else ""
        text = f"`{machine.name}` ({describe_machine(machine)}{nodes}) hold it together at {describe_form(plan)}"
    else:
        node = ", a cloud node" if machine.is_cloud else ""
        text = f"a machine like `{machine.name}` ({describe_machine(machine)}{node}) holds it at {describe_form(plan)}"
    argv = search.command(search.request, search.argv_on(machine.name))
    return Advice(text=text, argv=argv, export_argv=_export(argv) if _is_rentable(machine, plan) else ())


def _export(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command that writes a plan's task for SkyPilot, of the one that shows the plan."""
    program, _, *words = argv
    return (program, "export", *words, "--to", "skypilot")


def _is_rentable(machine: Machines, plan: Plan) -> bool:
    """Whether a machine is offered by the hour, and its plan takes as many GPUs of each and weights that can be had there."""
    n_devices = Counter(use.host for use in plan.footprint.devices)
    has_weights = plan.artifact.repository is not None or plan.artifact.local_path is not None
    return machine.is_cloud and has_weights and len(set(n_devices.values())) == 1


def _forced(refusal: Refusal, search: Search) -> Iterator[Advice]:
    """Offer ``--force`` where the refusal is an estimate or a floor, with its price."""
    if refusal.certain or search.request.force:
        return
    relaxed, plan = search.relax(force=True)
    if plan is not None:
        text = f"--force runs it all the same: {plan.quantization}{describe_speed(plan)}"
        yield Advice(text=text, argv=search.command(relaxed))
