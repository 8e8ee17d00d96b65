"""Ways out of a refusal, each planned again and found to fit before it is shown.

One thing is relaxed at a time, cheapest loss first, at most three. It proposes nothing that it has not checked, and
it knows other models and machines only as values that the caller hands in.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Advice,
    Calibration,
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
from launcher.planner.quality import kl_divergence
from launcher.planner.sizing import Candidate, prepare
from launcher.units import format_bytes

MAX_ADVICE: Final = 3
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
        request=request, inventory=inventory, argv=argv or ("plan",), prepared=prepared, calibration=calibration
    )
    if isinstance(outcome, Refusal):
        advice = tuple(islice(_ways_out(outcome, search, alternatives), MAX_ADVICE))
        return replace(outcome, advice=advice, verdicts=tuple(_verdicts_after_others_leave(outcome, search)))
    verdicts = [*_verdicts_after_others_leave(outcome, search)]
    if not _is_whole(outcome):
        verdicts += _verdict_with_another_device(search, alternatives.machines())
    return replace(outcome, verdicts=tuple(verdicts))


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

    def relax(self, *, force: bool | None = None, **changes: object) -> tuple[Request, Plan | None]:
        """Plan the request with some settings changed."""
        relaxed = replace(self.request, settings=replace(self.request.settings, **changes))
        if force is not None:
            relaxed = replace(relaxed, force=force)
        outcome = decide(relaxed, self.inventory, self.prepared, self.calibration)
        return relaxed, outcome if isinstance(outcome, Plan) else None

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


def _ways_out(refusal: Refusal, search: _Search, alternatives: Alternatives) -> Iterator[Advice]:
    """Yield advice, cheapest loss first."""
    if refusal.code is RefusalCode.NO_ENGINE:
        return
    if refusal.code is RefusalCode.NO_SUCH_QUANTIZATION:
        yield from _unfixed(search, "quantization")
        return
    for field in ("n_gpu_layers", "n_cpu_moe", "flash_attn", "n_batch", "n_ubatch"):
        yield from _unfixed(search, field)
    yield from _less_context(search)
    yield from _smaller_quantization(search)
    yield from _smaller_model(search, alternatives.profiles())
    yield from _other_machine(search, alternatives.machines())
    yield from _forced(refusal, search)


def _unfixed(search: _Search, field: str) -> Iterator[Advice]:
    """Give one setting back to the planner."""
    if getattr(search.request.settings, field) is None:
        return
    relaxed, plan = search.relax(**{field: None})
    if plan is not None:
        word = dict(_FLAGS).get(field, "--" + field.replace("_", "-"))
        text = f"without {word} it fits: {plan.quantization}{_placement(plan)}"
        yield Advice(text=text, argv=search.command(relaxed))


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
    n_ctx = 1 << (asked - 1).bit_length() - 1
    while n_ctx >= _MIN_USEFUL_CTX:
        relaxed, plan = search.relax(n_ctx=None, n_ctx_per_request=n_ctx)
        if plan is not None:
            text = f"{n_ctx} tokens per request instead of {asked} fit at {plan.quantization}{_placement(plan)}"
            yield Advice(text=text, argv=search.command(relaxed))
            return
        n_ctx //= 2


def _smaller_quantization(search: _Search) -> Iterator[Advice]:
    """Offer the best quantization that fits below the one that was asked for, or below the floor."""
    profile = search.request.profile
    asked = merge_settings(profile.pins, search.request.settings).quantization
    limit = 0.0 if asked is None else kl_divergence(asked)
    names = {c.artifact.quantization for c in search.prepared if kl_divergence(c.artifact.quantization) > limit}
    for name in sorted(names, key=lambda name: (kl_divergence(name), name)):
        relaxed, plan = search.relax(quantization=name)
        if plan is not None:
            price = (
                f"(quality: KL divergence {kl_divergence(name):g} on an 8B model; q8_0 has {kl_divergence('q8_0'):g})"
            )
            text = f"`{profile.name}` at {name} fits{_placement(plan)} {price}"
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
    """Name the smallest reference machine that holds the request without offload."""
    found = _smallest_that_holds(search, machines)
    if found is not None:
        machine, plan = found
        total = sum(device.total_bytes for device in machine.devices) or machine.host.total_bytes
        text = f"a machine like `{machine.name}` ({format_bytes(total)}) holds it at {plan.quantization}"
        yield Advice(text=text, argv=search.command(search.request, ("plan", "--inventory", machine.name)))


def _smallest_that_holds(search: _Search, machines: tuple[Inventory, ...]) -> tuple[Inventory, Plan] | None:
    for machine in machines:
        outcome = decide(search.request, machine, search.prepared)
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
            f"{process.name or 'process'} ({process.pid}, {format_bytes(process.used_bytes)} of {device.name})"
            for process in device.processes
            if process.used_bytes
        ]
    if not names:
        return
    freed = replace(search.inventory, devices=tuple(devices))
    again = decide(search.request, freed, search.prepared, search.calibration)
    if isinstance(again, Plan) and _is_better(again, outcome):
        text = f"once {', '.join(names)} leave: {again.quantization}{_placement(again) or ', all on the GPU'}"
        yield Verdict(condition="after-others-leave", text=text)


def _is_better(plan: Plan, outcome: Outcome) -> bool:
    if isinstance(outcome, Refusal) or _is_whole(plan) != _is_whole(outcome):
        return isinstance(outcome, Refusal) or _is_whole(plan)
    if _is_whole(plan):
        return kl_divergence(plan.quantization) < kl_divergence(outcome.quantization)
    return (plan.n_gpu_layers, -plan.n_cpu_moe) > (outcome.n_gpu_layers, -outcome.n_cpu_moe)


def _verdict_with_another_device(search: _Search, machines: tuple[Inventory, ...]) -> Iterator[Verdict]:
    found = _smallest_that_holds(search, tuple(machine for machine in machines if machine.devices))
    if found is not None:
        machine, plan = found
        text = f"on a machine like `{machine.name}`: {plan.quantization}, nothing on the CPU"
        yield Verdict(condition="with-another-device", text=text)


def _forced(refusal: Refusal, search: _Search) -> Iterator[Advice]:
    """Offer ``--force`` where the refusal is an estimate or a floor, with its price."""
    if refusal.certain or search.request.force:
        return
    relaxed, plan = search.relax(force=True)
    if plan is not None:
        tps = f" at about {_written(plan.speed.generation_tps)} tokens/s" if plan.speed else ""
        yield Advice(text=f"--force runs it all the same{tps}", argv=search.command(relaxed))
