"""Ways out of a refusal, each planned again and found to fit before it is shown.

One thing is relaxed at a time, cheapest loss first, at most three. It proposes nothing that it has not checked, and
it knows other models and machines only as values that the caller hands in.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Advice,
    CacheType,
    Calibration,
    Condition,
    Inventory,
    Outcome,
    Plan,
    Profile,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    Verdict,
)
from launcher.planner.ask import merge_settings, resolve_ask
from launcher.planner.fit import decide
from launcher.planner.quality import (
    DEFAULT_MAX_KL,
    cache_kl,
    cache_types_worth_trying,
    kl_divergence,
    meets_floor,
)
from launcher.planner.sizing import Candidate, prepare
from launcher.units import format_bytes

MAX_ADVICE: Final = 3
_WHOLE: Final = ", all on the GPU"
_MENDED_BY_MEMORY: Final = frozenset(
    {
        RefusalCode.EXCEEDS_MEMORY,
        RefusalCode.EXCEEDS_DEVICE_MEMORY,
        RefusalCode.EXCEEDS_HOST_MEMORY,
        RefusalCode.BELOW_SPEED_FLOOR,
    }
)
_MIN_USEFUL_CTX: Final = 1024


class Alternatives(Struct, frozen=True, kw_only=True):
    """What advice may draw on, each asked for only when it is needed: other profiles; machines, smallest first."""

    profiles: Callable[[], tuple[Profile, ...]] = tuple
    machines: Callable[[], tuple[Inventory, ...]] = tuple


def plan(
    request: Request,
    inventory: Inventory,
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
    prepared = prepare(request.profile)
    outcome = decide(request, inventory, prepared, calibration)
    search = _Search(
        request=request,
        inventory=inventory,
        argv=argv or ("plan",),
        prepared=prepared,
        calibration=calibration,
        seen={},
    )
    if isinstance(outcome, Refusal):
        outcome = replace(outcome, advice=_ways_out(outcome, search, alternatives))
    others = [*_verdicts_after_others_leave(outcome, search)]
    if isinstance(outcome, Refusal) or not _is_whole(outcome):
        others += _verdict_with_another_device(outcome, search, alternatives.machines())
    return replace(outcome, verdicts=(_verdict_now(outcome), *others) if others else ())


def advise(
    refusal: Refusal,
    request: Request,
    inventory: Inventory,
    *,
    argv: tuple[str, ...],
    alternatives: Alternatives,
    calibration: Calibration | None,
) -> Refusal:
    """Return a refusal that was come by otherwise (at the foot of the ladder) with its checked ways out."""
    search = _Search(
        request=request,
        inventory=inventory,
        argv=argv,
        prepared=prepare(request.profile),
        calibration=calibration,
        seen={},
    )
    return replace(refusal, advice=_ways_out(refusal, search, alternatives))


_FLAGS: Final = (
    ("quantization", "--quant"),
    ("engine", "--engine"),
    ("n_ctx", "--ctx-size"),
    ("n_ctx_per_request", "--context"),
    ("n_parallel", "--parallel"),
    ("n_batch", "--batch-size"),
    ("n_ubatch", "--ubatch-size"),
    ("n_gpu_layers", "--n-gpu-layers"),
    ("n_cpu_moe", "--n-cpu-moe"),
    ("cache_type_k", "--cache-type-k"),
    ("cache_type_v", "--cache-type-v"),
    ("n_threads", "--threads"),
)


def settings_argv(settings: Settings) -> tuple[str, ...]:
    """Return the command-line options that say ``settings``."""
    words: list[str] = []
    for name, flag in _FLAGS:
        value = getattr(settings, name)
        if value is not None:
            words += [flag, str(value)]
    if settings.flash_attn is not None:
        words += ["--flash-attn", "on" if settings.flash_attn else "off"]
    return tuple(words)


class _Search(Struct, frozen=True, kw_only=True):
    """A refused request, with what asking again needs."""

    request: Request
    inventory: Inventory
    argv: tuple[str, ...]
    prepared: tuple[Candidate, ...]
    calibration: Calibration | None
    seen: dict[str, Outcome]

    def relax(self, *, force: bool | None = None, **changes: object) -> tuple[Request, Plan | None]:
        """Plan the request with some settings changed."""
        relaxed = replace(self.request, settings=replace(self.request.settings, **changes))
        if force is not None:
            relaxed = replace(relaxed, force=force)
        outcome = decide(relaxed, self.inventory, self.prepared, self.calibration)
        return relaxed, outcome if isinstance(outcome, Plan) else None

    def on(self, machine: Inventory) -> Outcome:
        """Plan the same request for another machine; each is asked once."""
        if machine.name not in self.seen:
            self.seen[machine.name] = decide(self.request, machine, self.prepared)
        return self.seen[machine.name]

    def argv_on(self, machine: str) -> tuple[str, ...]:
        """Return the words that ask for another machine: a plan, under the same floors."""
        words = self.argv[1:]
        if "--inventory" in words:
            at = words.index("--inventory")
            words = words[:at] + words[at + 2 :]
        return ("plan", *words, "--inventory", machine)

    def command(self, request: Request, argv: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Return the command line that asks ``request``."""
        verb, *rest = argv or self.argv
        force = ("--force",) if request.force else ()
        return (
            "launch",
            verb,
            request.profile.asked or request.profile.name,
            *settings_argv(request.settings),
            *rest,
            *force,
        )


def _ways_out(refusal: Refusal, search: _Search, alternatives: Alternatives) -> tuple[Advice, ...]:
    """Return at most three ways out, by what the user loses; the last place is ``--force``'s where that is a way."""
    forced = tuple(_forced(refusal, search))
    kept = islice(_by_loss(refusal, search, alternatives), MAX_ADVICE - len(forced))
    return (*kept, *forced)


def _by_loss(refusal: Refusal, search: _Search, alternatives: Alternatives) -> Iterator[Advice]:
    """Yield advice, cheapest loss first: speed, then what only the profile wished for, then what the user named.

    A smaller model comes before the same one at a quantization that ruins it.
    """
    if refusal.code is RefusalCode.NO_SUCH_QUANTIZATION:
        yield from _unfixed(search, "quantization")
        yield from _unfixed(search, "engine")
        return
    for field in ("n_gpu_layers", "n_cpu_moe", "flash_attn", "n_batch", "n_ubatch", "n_threads", "engine"):
        yield from _unfixed(search, field)
    if refusal.code in {RefusalCode.NO_ENGINE, RefusalCode.ENGINE_TOO_OLD}:
        return
    yield from _harmless_cache(search)
    settings = search.request.settings
    context_was_named = settings.n_ctx is not None or settings.n_ctx_per_request is not None
    if not context_was_named:
        yield from _less_context(search)
    yield from _smaller_quantization(search)
    if context_was_named:
        yield from _less_context(search)
    yield from _fewer_parallel(search)
    yield from _smaller_model(search, alternatives.profiles())
    yield from _other_machine(search, alternatives.machines())
    yield from _extreme_quantization(search)


def _unfixed(search: _Search, field: str) -> Iterator[Advice]:
    """Give one setting back to the planner."""
    if getattr(search.request.settings, field) is None:
        return
    relaxed, plan = search.relax(**{field: None})
    if plan is not None:
        word = dict(_FLAGS).get(field, "--" + field.replace("_", "-"))
        text = f"without {word} it fits: {plan.quantization}{_placement(plan)}"
        yield Advice(text=text, argv=search.command(relaxed))


def _harmless_cache(search: _Search) -> Iterator[Advice]:
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
            text = (
                f"with a {cache_type} cache it fits at {plan.quantization}{_placement(plan)} (KL divergence {price:g})"
            )
            yield Advice(text=text, argv=search.command(relaxed))
            return


def _fewer_parallel(search: _Search) -> Iterator[Advice]:
    """Offer the most parallel requests, in halves, that fit with the same context for each."""
    asked = resolve_ask(search.request)
    n_parallel = asked.n_parallel // 2
    while n_parallel:
        relaxed, plan = search.relax(
            n_parallel=n_parallel, n_ctx=None, n_ctx_per_request=max(1, asked.n_ctx_per_request)
        )
        if plan is not None:
            text = f"{n_parallel} parallel instead of {asked.n_parallel} fit at {plan.quantization}{_placement(plan)}"
            yield Advice(text=text, argv=search.command(relaxed))
            return
        n_parallel //= 2


def _placement(plan: Plan) -> str:
    if _is_whole(plan):
        return ""
    tps = f", about {_written(plan.speed.generation_tps)} tokens/s" if plan.speed else ""
    if plan.n_gpu_layers > plan.n_layer:
        return f" with the experts of {plan.n_cpu_moe} of {plan.n_layer} layers on the CPU{tps}"
    return f" with {plan.n_gpu_layers} of {plan.n_layer + 1} layers on the GPU{tps}"


def _written(tps: float) -> str:
    return f"{tps:.0f}" if tps >= 10 else f"{tps:.2g}"  # noqa: PLR2004


def _less_context(search: _Search) -> Iterator[Advice]:
    """Offer the longest context, in powers of two, that fits."""
    asked = resolve_ask(search.request).n_ctx_per_request
    n_ctx = 1 << max(1, (asked - 1).bit_length()) - 1
    while n_ctx >= _MIN_USEFUL_CTX:
        relaxed, plan = search.relax(n_ctx=None, n_ctx_per_request=n_ctx)
        if plan is not None:
            text = f"{n_ctx} tokens per request instead of {asked} fit at {plan.quantization}{_placement(plan)}"
            yield Advice(text=text, argv=search.command(relaxed))
            return
        n_ctx //= 2


def _smaller_quantization(search: _Search) -> Iterator[Advice]:
    """Offer the best quantization that fits below the one that was asked for, as long as it is a good one."""
    yield from _best_that_fits(search, [name for name in _smaller(search) if kl_divergence(name) <= DEFAULT_MAX_KL])


def _extreme_quantization(search: _Search) -> Iterator[Advice]:
    """Offer the best quantization that fits among those that a smaller model is better than."""
    yield from _best_that_fits(search, [name for name in _smaller(search) if kl_divergence(name) > DEFAULT_MAX_KL])


def _smaller(search: _Search) -> Iterator[str]:
    """Yield the quantizations that the planner has not tried itself and that lose more than what was asked for."""
    profile = search.request.profile
    asked = merge_settings(profile.pins, search.request.settings).quantization
    names = {candidate.artifact.quantization for candidate in search.prepared}
    for name in sorted(names, key=lambda name: (kl_divergence(name), name)):
        tried = meets_floor(name, profile.limits.min_quantization)
        if not tried if asked is None else kl_divergence(name) > kl_divergence(asked):
            yield name


def _best_that_fits(search: _Search, names: Sequence[str]) -> Iterator[Advice]:
    for name in names:
        relaxed, plan = search.relax(quantization=name)
        if plan is not None:
            price = (
                f"(quality: KL divergence {kl_divergence(name):g} on an 8B model; q8_0 has {kl_divergence('q8_0'):g})"
            )
            text = f"`{plan.model}` at {name} fits{_placement(plan)} {price}"
            yield Advice(text=text, argv=search.command(relaxed))
            return


def _n_parameters(profile: Profile) -> int:
    """Return the parameters of a profile's model; 0 when no artifact's metadata is known."""
    spec = next((a.spec for a in profile.artifacts if a.spec is not None), None)
    return spec.n_parameters if spec is not None else 0


def _smaller_model(search: _Search, profiles: tuple[Profile, ...]) -> Iterator[Advice]:
    """Offer the largest smaller model that fits, at the context and parallelism that the user fixed."""
    own = _n_parameters(search.request.profile)
    fixed = search.request.settings
    kept = Settings(
        n_ctx=fixed.n_ctx, n_ctx_per_request=fixed.n_ctx_per_request, n_parallel=fixed.n_parallel, engine=fixed.engine
    )
    smaller = [(n, profile) for profile in profiles if 0 < (n := _n_parameters(profile)) < own]
    for _, profile in sorted(smaller, key=lambda pair: (-pair[0], pair[1].name)):
        outcome = decide(Request(profile=profile, settings=kept), search.inventory, calibration=search.calibration)
        if isinstance(outcome, Plan):
            tps = f", about {_written(outcome.speed.generation_tps)} tokens/s" if outcome.speed else ""
            text = f"`{profile.name}` at {outcome.quantization} fits{_placement(outcome) or tps}"
            exact = Request(profile=profile, settings=replace(kept, quantization=outcome.quantization))
            yield Advice(text=text, argv=search.command(exact))
            return


def _other_machine(search: _Search, machines: tuple[Inventory, ...]) -> Iterator[Advice]:
    """Name the smallest reference machine that holds the request without offload, and the smallest that can be rented."""
    found = _smallest_that_holds(search, machines)
    if found is None:
        return
    yield _on_machine(search, *found)
    if not found[0].is_cloud:
        rented = _smallest_that_holds(search, tuple(machine for machine in machines if machine.is_cloud))
        if rented is not None:
            yield _on_machine(search, *rented)


def _on_machine(search: _Search, machine: Inventory, plan: Plan) -> Advice:
    node = ", a cloud node" if machine.is_cloud else ""
    text = f"a machine like `{machine.name}` ({_describe_machine(machine)}{node}) holds it at {plan.quantization}"
    return Advice(text=text, argv=search.command(search.request, search.argv_on(machine.name)))


def _describe_machine(machine: Inventory) -> str:
    """Return what a machine has: its devices, or its memory where it has none."""
    if not machine.devices:
        return format_bytes(machine.host.total_bytes)
    total = format_bytes(sum(device.total_bytes for device in machine.devices))
    n = len(machine.devices)
    return f"{n} x {machine.devices[0].description}, {total} in all" if n > 1 else total


def _smallest_that_holds(search: _Search, machines: tuple[Inventory, ...]) -> tuple[Inventory, Plan] | None:
    for machine in machines:
        outcome = search.on(machine)
        if isinstance(outcome, Plan) and _is_whole(outcome):
            return machine, outcome
    return None


def _is_whole(plan: Plan) -> bool:
    return not plan.footprint.devices or (plan.n_gpu_layers > plan.n_layer and not plan.n_cpu_moe)


# --- Other conditions -------------------------------------------------------------------------------------------


def _verdicts_after_others_leave(outcome: Outcome, search: _Search) -> Iterator[Verdict]:
    """Say what would fit if the programs that hold device memory now were gone."""
    names, devices = [], []
    for device in search.inventory.devices:
        held = sum(process.used_bytes or 0 for process in device.processes)
        free = device.total_bytes if device.free_bytes is None else device.free_bytes
        devices.append(replace(device, free_bytes=min(device.total_bytes, free + held)))
        names += [
            f"{process.name or 'an unnamed process'} (pid {process.pid}, {format_bytes(process.used_bytes)} of {device.name})"
            for process in device.processes
            if process.used_bytes
        ]
    if not names:
        return
    freed = replace(search.inventory, devices=tuple(devices))
    again = decide(search.request, freed, search.prepared, search.calibration)
    if isinstance(again, Plan) and _is_better(again, outcome):
        leave = "leaves" if len(names) == 1 else "leave"
        text = f"fits at {again.quantization}{_placement(again) or _WHOLE} once {', '.join(names)} {leave}"
        yield Verdict(condition=Condition.AFTER_OTHERS_LEAVE, fits=True, text=text)


def _verdict_now(outcome: Outcome) -> Verdict:
    """Say how it stands as things are."""
    if isinstance(outcome, Refusal):
        return Verdict(condition=Condition.NOW, fits=False, text="does not fit")
    on_cpu = ", all on the CPU" if not outcome.footprint.devices else _WHOLE
    text = f"fits at {outcome.quantization}{_placement(outcome) or on_cpu}"
    return Verdict(condition=Condition.NOW, fits=True, text=text)


def _is_better(plan: Plan, outcome: Outcome) -> bool:
    if isinstance(outcome, Refusal) or _is_whole(plan) != _is_whole(outcome):
        return isinstance(outcome, Refusal) or _is_whole(plan)
    if _is_whole(plan):
        return kl_divergence(plan.quantization) < kl_divergence(outcome.quantization)
    return (plan.n_gpu_layers, -plan.n_cpu_moe) > (outcome.n_gpu_layers, -outcome.n_cpu_moe)


def _verdict_with_another_device(
    outcome: Outcome, search: _Search, machines: tuple[Inventory, ...]
) -> Iterator[Verdict]:
    """Say on which reference machine with a device it would fit as a whole."""
    if isinstance(outcome, Refusal) and outcome.code not in _MENDED_BY_MEMORY:
        return
    found = _smallest_that_holds(search, tuple(machine for machine in machines if machine.devices))
    if found is not None:
        machine, plan = found
        text = f"fits at {plan.quantization}{_WHOLE} with another device, such as `{machine.name}`"
        text = f"{text} ({_describe_machine(machine)})"
        yield Verdict(condition=Condition.WITH_ANOTHER_DEVICE, fits=True, text=text, machine=machine.name)


def _forced(refusal: Refusal, search: _Search) -> Iterator[Advice]:
    """Offer ``--force`` where the refusal is an estimate or a floor, with its price."""
    if refusal.certain or search.request.force:
        return
    relaxed, plan = search.relax(force=True)
    if plan is not None:
        tps = f" at about {_written(plan.speed.generation_tps)} tokens/s" if plan.speed else ""
        yield Advice(text=f"--force runs it all the same{tps}", argv=search.command(relaxed))
