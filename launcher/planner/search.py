"""A request that is asked again under other settings or on another machine, as advice and verdicts do.

It must not know which way out is worth what.
"""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Calibration,
    Cluster,
    DeviceProcess,
    Engine,
    Machines,
    Outcome,
    Plan,
    Profile,
    Request,
    Settings,
)
from launcher.planner.fit import decide, decide_whole
from launcher.planner.forms import Form
from launcher.planner.sizing import Candidate
from launcher.units import format_bytes


class Alternatives(Struct, frozen=True, kw_only=True):
    """What advice may draw on, each asked for only when it is needed.

    Profiles of models with fewer parameters than a number, the largest first; machines, smallest first; the programs that
    hold the memory of the request's own host.
    """

    smaller: Callable[[int], Iterable[Profile]] = lambda _: ()
    machines: Callable[[], tuple[Machines, ...]] = tuple
    programs: Callable[[], tuple[DeviceProcess, ...]] = tuple


def smaller_among(profiles: Iterable[Profile]) -> Callable[[int], tuple[Profile, ...]]:
    """Return ``Alternatives.smaller`` for profiles that are at hand."""
    counted = sorted(((count_parameters(profile), profile) for profile in profiles), key=lambda p: (-p[0], p[1].name))
    return lambda n_parameters: tuple(profile for n, profile in counted if 0 < n < n_parameters)


def count_parameters(profile: Profile) -> int:
    """Return the parameters of a profile's model; 0 when no artifact's metadata is known."""
    spec = next((a.spec for a in profile.artifacts if a.spec is not None), None)
    return spec.n_parameters if spec is not None else 0


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


def option_of(field: str) -> str:
    """Return the option of the command line that fixes a setting."""
    return dict(_FLAGS).get(field, "--" + field.replace("_", "-"))


class Search(Struct, frozen=True, kw_only=True):
    """A refused request, with what asking again needs."""

    request: Request
    inventory: Machines
    argv: tuple[str, ...]
    prepared: tuple[Candidate, ...]
    forms: tuple[Form, ...]
    calibration: Calibration | None
    seen: dict[str, Plan | None]

    def relax(self, *, force: bool | None = None, **changes: object) -> tuple[Request, Plan | None]:
        """Plan the request with some settings changed."""
        relaxed = replace(self.request, settings=replace(self.request.settings, **changes))
        if force is not None:
            relaxed = replace(relaxed, force=force)
        outcome = self.decide(relaxed, self.inventory, self.calibration)
        return relaxed, outcome if isinstance(outcome, Plan) else None

    def decide(self, request: Request, inventory: Machines, calibration: Calibration | None = None) -> Outcome:
        """Plan a request for the same profile, with what was prepared of it."""
        return decide(request, inventory, self.prepared, calibration, self.forms)

    def on(self, machine: Machines) -> Plan | None:
        """Plan the same request for another machine, without offload; each is asked once."""
        if machine.name not in self.seen:
            self.seen[machine.name] = decide_whole(self.request, machine, self.prepared, None, self.forms)
        return self.seen[machine.name]

    def argv_on(self, machine: str) -> tuple[str, ...]:
        """Return the words that ask for another machine: a plan, under the same floors."""
        words = self.argv[1:]
        for option in ("--inventory", "--cluster", "--rpc"):
            if option in words:
                at = words.index(option)
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


def describe_placement(plan: Plan) -> str:
    """Say what of a plan runs on the CPU, and how fast it is so; nothing where all is in one place."""
    if plan.is_whole:
        return ""
    if plan.n_gpu_layers > plan.n_layer:
        return f" with the experts of {plan.n_cpu_moe} of {plan.n_layer} layers on the CPU{describe_speed(plan)}"
    return f" with {plan.n_gpu_layers} of {plan.n_layer + 1} layers on the GPU{describe_speed(plan)}"


def describe_form(plan: Plan) -> str:
    """Return the quantization of a plan, with its engine where that is not llama.cpp."""
    return f"{plan.quantization} by vllm" if plan.engine is Engine.VLLM else plan.quantization


def describe_speed(plan: Plan) -> str:
    """Say how fast a plan is, with as many digits as a prediction has; nothing where that is unknown."""
    if plan.speed is None:
        return ""
    tps = plan.speed.generation_tps
    written = f"{tps:.0f}" if tps >= 10 else f"{tps:.2g}"  # noqa: PLR2004
    return f", about {written} tokens/s"


def describe_machine(machine: Machines) -> str:
    """Return what a machine has: its devices, or its memory where it has none."""
    if isinstance(machine, Cluster):
        return f"{len(machine.nodes)} machines, each {describe_machine(machine.nodes[0])}"
    if not machine.devices:
        return format_bytes(machine.host.total_bytes)
    total = format_bytes(sum(device.total_bytes for device in machine.devices))
    n = len(machine.devices)
    return f"{n} x {machine.devices[0].description}, {total} in all" if n > 1 else total


def smallest_that_holds(search: Search, machines: tuple[Machines, ...]) -> tuple[Machines, Plan] | None:
    """Return the first of the machines that holds the request without offload, with its plan."""
    for machine in machines:
        plan = search.on(machine)
        if plan is not None:
            return machine, plan
    return None
