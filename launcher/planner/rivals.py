"""Whether vLLM could change a choice, told without sizing anything for it.

Most requests are settled by a file's size or a bandwidth; only where they are not is vLLM's arithmetic worth importing. It
must not know how vLLM uses memory.
"""

from collections.abc import Callable, Sequence
from typing import Final

from launcher.domain import Cluster, Engine, EngineInstall, Inventory, Machines, Objective, Request, Settings
from launcher.planner.abilities import is_cpu_build, is_usable
from launcher.planner.ask import Ask, merge_settings
from launcher.planner.choice import MANY_REQUESTS, NEAR_LOSSLESS, Option, pick
from launcher.planner.forms import Form
from launcher.planner.hosts import devices_of
from launcher.planner.speed import device_rates
from launcher.units import GIB

DISK_MARGIN_BYTES: Final = 1 * GIB

_LLAMA_CPP_ONLY: Final = (
    "n_batch",
    "n_ubatch",
    "n_gpu_layers",
    "n_cpu_moe",
    "cache_type_k",
    "cache_type_v",
    "flash_attn",
    "n_threads",
)
"""Settings that a plan for vLLM would not honour."""


def foreign_settings(settings: Settings) -> list[str]:
    """Return the names of the settings that were fixed and that only llama.cpp has."""
    return [name for name in _LLAMA_CPP_ONLY if getattr(settings, name) is not None]


def find_vllm(machines: Machines) -> EngineInstall | None:
    """Return vLLM as it is installed; ``None`` where it is not, the engines are unknown, or the machines are several.

    Of several the first that may be started; where none may, the first.
    """
    if isinstance(machines, Cluster):
        return None
    found = [install for install in machines.engines or () if install.engine is Engine.VLLM]
    return next((install for install in found if is_usable(install)), found[0] if found else None)


def may_have_vllm(machines: Machines) -> bool:
    """Tell whether vLLM is there and may be started, or that may be for all that is known; of a cluster, on any machine."""
    if isinstance(machines, Cluster):
        return any(may_have_vllm(node) for node in machines.nodes)
    install = find_vllm(machines)
    return machines.engines is None or (install is not None and is_usable(install))


def disk_room_bytes(inventory: Inventory) -> int | None:
    """Return what a download may take of the disk; ``None`` where nothing is known of it."""
    free = inventory.host.free_disk_bytes
    return None if free is None else free - DISK_MARGIN_BYTES


def free_bytes(machines: Machines) -> int:
    """Return what all devices together have free: no form with more weights can be served."""
    return sum(device.known_free_bytes for device in devices_of(machines))


def is_rival(request: Request, machines: Machines) -> bool:
    """Tell whether vLLM may be chosen unasked: the profile lists it, and it may be there.

    On a machine whose engines are unknown (a reference machine) it is assumed to be there, as the profile's list says. On
    any other it must be installed, in a version that may be started. The gates are CUDA's compute capabilities, so every
    GPU must have one that is known. A build for CPUs comes in where no other engine of the profile is there: nothing was
    measured that would let it be compared.
    """
    if Engine.VLLM not in request.profile.engines:
        return False
    settings = merge_settings(request.profile.pins, request.settings)
    if settings.engine not in {None, Engine.VLLM} or foreign_settings(settings):
        return False
    if not may_have_vllm(machines):
        return False
    if isinstance(machines, Inventory) and is_cpu_build(find_vllm(machines)):
        found = {other.engine for other in machines.engines or ()} - {Engine.VLLM}
        return not found.intersection(request.profile.engines)
    devices = tuple(devices_of(machines))
    return bool(devices) and all(device.compute_capability is not None for device in devices)


def worth_sizing(forms: Sequence[Form], options: Sequence[Option], ask: Ask, inventory: Inventory) -> list[Form]:
    """Return the forms that could be chosen, or could change which of ``options`` is, if they turned out to fit.

    Each test is a bound: weights that no memory here holds, a speed that all bandwidth together does not give.
    """
    free = free_bytes(inventory)
    admitted = (form for form in forms if ask.admits(form.artifact.quantization, form.n_active))
    could_fit = [form for form in admitted if form.weights_bytes < free]
    if not options:
        return could_fit
    matters = _beats(options, ask, inventory)
    return [form for form in could_fit if matters(form)]


def _beats(options: Sequence[Option], ask: Ask, inventory: Inventory) -> Callable[[Form], bool]:
    """Return a test whether a form may outdo the best option, or be so fast that the best one no longer counts."""
    best = pick(options, ask.objective, ask.n_parallel)
    fastest = max(option.speed.generation_tps for option in options)
    rates = (device_rates(device, None) for device in inventory.devices)
    bytes_per_s = sum(bandwidth * rate.efficiency for bandwidth, rate, _ in rates)

    for_many = ask.n_parallel >= MANY_REQUESTS

    def matters(form: Form) -> bool:
        if for_many and form.kl <= NEAR_LOSSLESS:
            return True
        most_tps = bytes_per_s / max(1.0, form.read_bytes)
        if ask.objective is Objective.SPEED:
            return most_tps > fastest
        better = form.kl < best.kl and most_tps >= fastest / 2
        as_good = form.kl == best.kl and most_tps > best.speed.generation_tps
        return better or as_good or most_tps / 2 > best.speed.generation_tps

    return matters
