"""Ways out of a refusal, each planned again and found to fit before it is shown.

One thing is relaxed at a time, cheapest loss first, at most three. It proposes nothing that it has not checked, and
it knows other models and machines only as values that the caller hands in.
"""

from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import Advice, Inventory, Outcome, Plan, Profile, Refusal, RefusalCode, Request, Settings
from launcher.planner.fit import decide, merge_settings, resolve_ask
from launcher.planner.quality import kl_divergence
from launcher.units import format_bytes

MAX_ADVICE: Final = 3
_MIN_USEFUL_CTX: Final = 1024


class Alternatives(Struct, frozen=True, kw_only=True):
    """What advice may draw on: other profiles, and machines to name, smallest first."""

    profiles: tuple[Profile, ...] = ()
    machines: tuple[Inventory, ...] = ()


def plan(
    request: Request,
    inventory: Inventory,
    *,
    argv: tuple[str, ...] = (),
    alternatives: Callable[[], Alternatives] = Alternatives,
) -> Outcome:
    """Plan or refuse; a refusal carries at most three pieces of checked advice.

    ``argv`` is the command of the request without its name and its settings (``launch plan --inventory rtx4090``
    gives ``("plan", "--inventory", "rtx4090")``): advice repeats it. ``alternatives`` is called only on a refusal.
    """
    outcome = decide(request, inventory)
    if isinstance(outcome, Plan):
        return outcome
    advice = []
    for item in _ways_out(outcome, request, inventory, argv or ("plan",), alternatives()):
        advice.append(item)
        if len(advice) == MAX_ADVICE:
            break
    return replace(outcome, advice=tuple(advice))


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


def _command(argv: tuple[str, ...], request: Request) -> tuple[str, ...]:
    force = ("--force",) if request.force else ()
    return ("launch", argv[0], request.profile.name, *settings_argv(request.settings), *argv[1:], *force)


def _ways_out(
    refusal: Refusal, request: Request, inventory: Inventory, argv: tuple[str, ...], others: Alternatives
) -> Iterator[Advice]:
    if refusal.code is RefusalCode.NO_ENGINE:
        return
    if refusal.code is RefusalCode.NO_SUCH_QUANTIZATION:
        yield from _unfixed(request, inventory, argv, "quantization")
        return
    for field in ("n_gpu_layers", "n_cpu_moe", "flash_attn", "n_batch", "n_ubatch"):
        yield from _unfixed(request, inventory, argv, field)
    yield from _less_context(request, inventory, argv)
    yield from _smaller_quantization(request, inventory, argv)
    yield from _smaller_model(request, inventory, argv, others)
    yield from _other_machine(request, others)
    yield from _forced(refusal, request, inventory, argv)


def _unfixed(request: Request, inventory: Inventory, argv: tuple[str, ...], field: str) -> Iterator[Advice]:
    """Give one setting back to the planner."""
    if getattr(request.settings, field) is None:
        return
    relaxed = replace(request, settings=replace(request.settings, **{field: None}))
    outcome = decide(relaxed, inventory)
    if isinstance(outcome, Plan):
        word = dict(_FLAGS).get(field, "--" + field.replace("_", "-"))
        text = f"without {word} it fits: {outcome.quantization}{_placement(outcome)}"
        yield Advice(text=text, argv=_command(argv, relaxed))


def _placement(plan: Plan) -> str:
    if not plan.footprint.devices or plan.n_gpu_layers > plan.n_layer:
        return ""
    tps = f", about {plan.speed.generation_tps:.1f} tokens/s" if plan.speed else ""
    return f" with {plan.n_gpu_layers} of {plan.n_layer + 1} layers on the GPU{tps}"


def _less_context(request: Request, inventory: Inventory, argv: tuple[str, ...]) -> Iterator[Advice]:
    ask = resolve_ask(request)
    n_ctx = 1 << (ask.n_ctx_per_request - 1).bit_length() - 1
    while n_ctx >= _MIN_USEFUL_CTX:
        relaxed = replace(request, settings=replace(request.settings, n_ctx=None, n_ctx_per_request=n_ctx))
        outcome = decide(relaxed, inventory)
        if isinstance(outcome, Plan):
            text = f"{n_ctx} tokens per request instead of {ask.n_ctx_per_request} fit{_at(outcome)}"
            yield Advice(text=text, argv=_command(argv, relaxed))
            return
        n_ctx //= 2


def _at(plan: Plan) -> str:
    return f" at {plan.quantization}{_placement(plan)}"


def _smaller_quantization(request: Request, inventory: Inventory, argv: tuple[str, ...]) -> Iterator[Advice]:
    """Offer the best quantization that fits below the one that was asked for, or below the floor."""
    settings = merge_settings(request.profile.pins, request.settings)
    limit = 0.0 if settings.quantization is None else kl_divergence(settings.quantization)
    names = {a.quantization for a in request.profile.artifacts if kl_divergence(a.quantization) > limit}
    for name in sorted(names, key=lambda name: (kl_divergence(name), name)):
        relaxed = replace(request, settings=replace(request.settings, quantization=name))
        outcome = decide(relaxed, inventory)
        if isinstance(outcome, Plan):
            price = kl_divergence(name)
            text = (
                f"`{request.profile.name}` at {name} fits{_placement(outcome)} "
                f"(quality: KL divergence {price:g} on an 8B model; q8_0 has {kl_divergence('q8_0'):g})"
            )
            yield Advice(text=text, argv=_command(argv, relaxed))
            return


def _n_parameters(profile: Profile) -> int:
    """Return the parameters of a profile's model; 0 when no artifact's metadata is known."""
    spec = next((a.spec for a in profile.artifacts if a.spec is not None), None)
    return spec.n_parameters if spec is not None else 0


def _smaller_model(
    request: Request, inventory: Inventory, argv: tuple[str, ...], others: Alternatives
) -> Iterator[Advice]:
    """Offer the largest smaller model that fits as its own profile asks."""
    own = _n_parameters(request.profile)
    smaller = [(n, profile) for profile in others.profiles if 0 < (n := _n_parameters(profile)) < own]
    for _, profile in sorted(smaller, key=lambda pair: (-pair[0], pair[1].name)):
        relaxed = Request(profile=profile)
        outcome = decide(relaxed, inventory)
        if isinstance(outcome, Plan):
            tps = f", about {outcome.speed.generation_tps:.0f} tokens/s" if outcome.speed else ""
            placed = _placement(outcome) or tps
            settings = Settings(quantization=outcome.quantization)
            command = _command(argv, replace(relaxed, settings=settings))
            yield Advice(text=f"`{profile.name}` at {outcome.quantization} fits{placed}", argv=command)
            return


def _other_machine(request: Request, others: Alternatives) -> Iterator[Advice]:
    """Name the smallest reference machine that holds the request."""
    for machine in others.machines:
        outcome = decide(request, machine)
        if isinstance(outcome, Plan) and (not machine.devices or outcome.n_gpu_layers > outcome.n_layer):
            total = sum(device.total_bytes for device in machine.devices) or machine.host.total_bytes
            text = f"a machine like `{machine.name}` ({format_bytes(total)}) holds it at {outcome.quantization}"
            command = _command(("plan", "--inventory", machine.name), request)
            yield Advice(text=text, argv=command)
            return


def _forced(refusal: Refusal, request: Request, inventory: Inventory, argv: tuple[str, ...]) -> Iterator[Advice]:
    """Offer ``--force`` where the refusal is an estimate or a floor, with its price."""
    if refusal.certain or request.force:
        return
    forced = replace(request, force=True)
    outcome = decide(forced, inventory)
    if isinstance(outcome, Plan):
        tps = f" at about {outcome.speed.generation_tps:.2g} tokens/s" if outcome.speed else ""
        yield Advice(text=f"--force runs it all the same{tps}", argv=_command(argv, forced))
