"""How the answer stands under other conditions: now, once other programs leave, with another device or engine.

It must not propose anything: ways out are ``advice.py``'s.
"""

from collections.abc import Iterator
from typing import Final

from launcher.domain import (
    HOST_MEMORY,
    Cluster,
    Condition,
    DeviceProcess,
    Engine,
    Inventory,
    Outcome,
    Plan,
    Refusal,
    RefusalCode,
    Verdict,
)
from launcher.planner.ask import merge_settings
from launcher.planner.freed import give_back
from launcher.planner.hosts import devices_of
from launcher.planner.quality import kl_divergence
from launcher.planner.search import (
    Alternatives,
    Search,
    describe_form,
    describe_machine,
    describe_placement,
    describe_speed,
    smallest_that_holds,
)
from launcher.units import format_bytes

_WHOLE: Final = ", all on the GPU"
_MENDED_BY_MEMORY: Final = frozenset(
    {
        RefusalCode.EXCEEDS_MEMORY,
        RefusalCode.EXCEEDS_DEVICE_MEMORY,
        RefusalCode.EXCEEDS_HOST_MEMORY,
        RefusalCode.BELOW_SPEED_FLOOR,
    }
)


def find_verdicts(outcome: Outcome, search: Search, alternatives: Alternatives) -> tuple[Verdict, ...]:
    """Return the verdicts where they differ; none where what holds now is as good as it gets."""
    others = [
        *_after_others_leave(outcome, search, alternatives),
        *_with_another_device(outcome, search, alternatives),
        *_with_another_engine(outcome, search),
    ]
    return (_now(outcome), *others) if others else ()


def _now(outcome: Outcome) -> Verdict:
    if isinstance(outcome, Refusal):
        return Verdict(condition=Condition.NOW, fits=False, text="does not fit")
    return Verdict(condition=Condition.NOW, fits=True, text=_fits(outcome))


def _fits(plan: Plan) -> str:
    whole = _WHOLE if plan.footprint.devices else ", all on the CPU"
    return f"fits at {describe_form(plan)}{describe_placement(plan) or whole}"


# --- Other programs ---------------------------------------------------------------------------------------------


def _after_others_leave(outcome: Outcome, search: Search, alternatives: Alternatives) -> Iterator[Verdict]:
    """Say what would fit if the programs that hold device memory were gone, else those that hold the host's, too."""
    if isinstance(search.inventory, Cluster):
        return  # nobody tells who holds the memory of other machines
    machine, names = _freed_devices(search.inventory)
    found = _better(outcome, search, machine) if names else None
    if found is None and _wants_host_memory(outcome):
        programs = alternatives.programs()
        names += [describe_program(program, "memory") for program in programs]
        # A group's limit stays as it is used: these programs may be outside of it.
        held = sum(program.used_bytes or 0 for program in programs)
        machine = give_back(machine, {HOST_MEMORY: held}, within_group=False)
        found = _better(outcome, search, machine) if programs else None
    if found is not None:
        leave = "leaves" if len(names) == 1 else "leave"
        text = f"{_fits(found)} once {', '.join(names)} {leave}"
        yield Verdict(condition=Condition.AFTER_OTHERS_LEAVE, fits=True, text=text)


def _freed_devices(inventory: Inventory) -> tuple[Inventory, list[str]]:
    held = {device.name: sum(process.used_bytes or 0 for process in device.processes) for device in inventory.devices}
    names = [
        describe_program(process, device.name)
        for device in inventory.devices
        for process in device.processes
        if process.used_bytes
    ]
    return give_back(inventory, held, within_group=False), names


def describe_program(process: DeviceProcess, memory: str) -> str:
    """Return who holds how much of a memory."""
    name = process.name or "an unnamed process"
    return f"{name} (pid {process.pid}, {format_bytes(process.used_bytes or 0)} of {memory})"


def _wants_host_memory(outcome: Outcome) -> bool:
    """Whether more of the host's memory could change the answer."""
    if isinstance(outcome, Refusal):
        return outcome.code in _MENDED_BY_MEMORY
    return bool(outcome.given_up) and (not outcome.footprint.devices or not outcome.is_whole)


def _better(outcome: Outcome, search: Search, machine: Inventory) -> Plan | None:
    """Return the plan on a machine with more free memory, if it is better than what there is."""
    again = search.decide(search.request, machine, search.calibration)
    return again if isinstance(again, Plan) and _is_better(again, outcome) else None


def _is_better(plan: Plan, outcome: Outcome) -> bool:
    if isinstance(outcome, Refusal) or plan.is_whole != outcome.is_whole:
        return isinstance(outcome, Refusal) or plan.is_whole
    if plan.is_whole:
        return kl_divergence(plan.quantization) < kl_divergence(outcome.quantization)
    return (plan.n_gpu_layers, -plan.n_cpu_moe) > (outcome.n_gpu_layers, -outcome.n_cpu_moe)


# --- Another device ---------------------------------------------------------------------------------------------


def _with_another_device(outcome: Outcome, search: Search, alternatives: Alternatives) -> Iterator[Verdict]:
    """Say on which reference machine with a device it would fit as a whole."""
    if outcome.code not in _MENDED_BY_MEMORY if isinstance(outcome, Refusal) else outcome.is_whole:
        return
    found = smallest_that_holds(
        search, tuple(machine for machine in alternatives.machines() if any(devices_of(machine)))
    )
    if found is not None:
        machine, plan = found
        text = f"{_fits(plan)} with another device, such as `{machine.name}` ({describe_machine(machine)})"
        yield Verdict(condition=Condition.WITH_ANOTHER_DEVICE, fits=True, text=text, machine=machine.name)


# --- Another engine ---------------------------------------------------------------------------------------------


def _with_another_engine(outcome: Outcome, search: Search) -> Iterator[Verdict]:
    """Say what the profile's first other engine would give where vLLM was chosen unasked: it may not be there."""
    profile, settings = search.request.profile, search.request.settings
    if (
        isinstance(outcome, Refusal)
        or outcome.engine is not Engine.VLLM
        or merge_settings(profile.pins, settings).engine
    ):
        return
    for engine in profile.engines:
        _, plan = search.relax(engine=engine) if engine is not Engine.VLLM else (None, None)
        if plan is not None:
            tps = describe_speed(plan) if plan.is_whole else ""
            text = f"{_fits(plan)}{tps} with {engine}"
            yield Verdict(condition=Condition.WITH_ANOTHER_ENGINE, fits=True, text=text)
            return
