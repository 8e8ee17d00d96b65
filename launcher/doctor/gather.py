"""Ask all that can be asked about this machine, at the same time and within bounds.

It must not judge. What hangs, in a driver, an engine or a network file system, is left behind and named; what breaks is
named with its words.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from msgspec.structs import replace

from launcher.doctor.commands import PROGRAMS
from launcher.doctor.facts import Disk, Drivers, EngineBuild, Facts, Kernel, Model, Port, Silent, State, Told
from launcher.doctor.probes import builds, drivers, host, systemd
from launcher.doctor.probes.state import probe_state
from launcher.domain import Host, Inventory
from launcher.inventory.bounded import Bounded
from launcher.inventory.probe import Probed, probe_apart
from launcher.inventory.programs import probe_programs

T = TypeVar("T")

MACHINE_S: Final = 45.0
"""Engines are asked at the same time, each within 20 seconds, NVIDIA's driver within 15: then all is read that will be."""
_DRIVER_S: Final = 10.0
_FILES_S: Final = 10.0
"""Files of the kernel and the state directory answer within milliseconds, unless a disk or a network behind them hangs."""
_SYSTEMD_S: Final = 20.0
_BUILDS_S: Final = 30.0
_MODEL_S: Final = 60.0
"""Reading a header, from a slow disk or a hub, and planning."""


class Asked(NamedTuple):
    """What is to be looked into, and how rooms beside this one look into their own matters.

    ``disks`` are folders by what they are for; ``model`` describes the model that was asked about on an inventory,
    ``None`` for no model; ``port`` tells of the address; ``find_marked`` names the processes that carry a guard's token.
    """

    disks: tuple[tuple[str, Path], ...]
    find_marked: Callable[[str], list[int]]
    model: Callable[[Inventory], Model] | None = None
    port: Callable[[], Port] | None = None
    broken_profiles: Callable[[], tuple[Told, ...]] = tuple
    unit: str | None = None
    engine_requirement: str | None = None
    own_file: Path = Path(__file__)


class _Calls:
    """Calls under way, and those that did not answer."""

    def __init__(self) -> None:
        self.silent: list[Silent] = []

    def wait(self, what: str, call: Bounded[T], timeout_s: float, until: float | None = None) -> T | None:
        """Return the answer, or note that there was none; ``until`` ends waiting sooner, on the monotonic clock."""
        left_s = timeout_s if until is None else max(0.0, until - time.monotonic())
        if not call.wait(left_s):
            self.silent.append(Silent(what=what, timeout_s=timeout_s))
            return None
        try:
            return call.value()
        except Exception as error:  # noqa: BLE001 - one thing that breaks must not hide the findings on all others
            self.silent.append(Silent(what=what, timeout_s=timeout_s, error=f"{type(error).__name__}: {error}"))
            return None


def gather(asked: Asked, *, root: Path = Path("/")) -> Facts:
    """Return all that could be read; it takes at most the sum of the bounds of machine and model."""
    begun = time.monotonic()
    calls = _Calls()
    machine: Bounded[Probed] = Bounded(lambda: probe_apart(with_engines=True, disk_path=None, root=root))
    versions = Bounded(lambda: drivers.probe_nvidia_versions(root, timeout_s=_DRIVER_S))
    found_drivers = Bounded(lambda: drivers.probe_drivers(root))
    user = host.probe_user()
    units = Bounded(lambda: systemd.probe_systemd(asked.unit, user.name, root))
    state: Bounded[State] = Bounded(lambda: probe_state(asked.find_marked))
    holders = Bounded(lambda: probe_programs(root))
    disks = [(place, Bounded(_disk_of(purpose, place, root))) for purpose, place in asked.disks]
    port = Bounded(asked.port) if asked.port is not None else None
    broken = Bounded(asked.broken_profiles)
    clock = Bounded(lambda: host.probe_clock(asked.own_file))
    kernel = Bounded(lambda: host.probe_kernel(root))

    probed = calls.wait("this machine", machine, MACHINE_S, begun + MACHINE_S) or _nothing()
    build_facts: tuple[EngineBuild, ...] = ()
    if probed.inventory.engines:
        engines = probed.inventory.engines
        asked_builds = Bounded(lambda: builds.probe_builds(engines))
        build_facts = calls.wait("the engines' libraries", asked_builds, _BUILDS_S) or ()
    until = max(begun + _SYSTEMD_S, time.monotonic() + 1.0)
    found_disks = tuple(_disks(disks, calls, until))
    model = None
    if asked.model is not None:
        describe, machine_with_disk = asked.model, _with_disk(probed.inventory, found_disks)
        asked_model = Bounded(lambda: describe(machine_with_disk))
        model = calls.wait("the model", asked_model, _MODEL_S)
        until = max(until, time.monotonic() + 1.0)
    nvidia = calls.wait("NVIDIA's driver", versions, _DRIVER_S, until)
    told_drivers = calls.wait("the device files", found_drivers, _FILES_S, until) or Drivers(is_read=False)
    if isinstance(nvidia, str):
        calls.silent.append(Silent(what="NVIDIA's driver", timeout_s=_DRIVER_S, error=f"its library {nvidia}"))
    elif nvidia is not None:
        told_drivers = replace(told_drivers, nvidia=nvidia)
    return Facts(
        user=user,
        inventory=probed.inventory,
        drivers=told_drivers,
        nvidia_notes=probed.nvidia_notes,
        device_notes=probed.device_notes,
        engine_notes=probed.engine_notes,
        builds=build_facts,
        holders=calls.wait("the programs in memory", holders, _FILES_S, until) or (),
        limits=host.probe_limits(root),
        kernel=calls.wait("the kernel's settings", kernel, _FILES_S, until) or Kernel(),
        disks=found_disks,
        state=calls.wait("the state directory", state, _FILES_S, until),
        port=None if port is None else calls.wait("the port", port, _FILES_S, until),
        systemd=calls.wait("systemd", units, _SYSTEMD_S, until),
        clock=calls.wait("the clock", clock, _FILES_S, until),
        network=host.probe_network(os.environ),
        broken_profiles=calls.wait("the profiles", broken, _FILES_S, until),
        model=model,
        silent=tuple(calls.silent),
        programs=host.find_programs(PROGRAMS),
        installer=host.find_installer(),
        engine_requirement=asked.engine_requirement,
    )


def _nothing() -> Probed:
    return Probed(Inventory(name="", host=Host(total_bytes=0, available_bytes=0)), (), (), ())


def _with_disk(machine: Inventory, disks: tuple[Disk, ...]) -> Inventory:
    """Return the machine with what is free for weights, which a plan counts: a disk that hangs must not hang all else."""
    free_bytes = next((disk.free_bytes for disk in disks if disk.purpose == "weights"), None)
    return replace(machine, host=replace(machine.host, free_disk_bytes=free_bytes))


def _disk_of(purpose: str, place: Path, root: Path) -> Callable[[], Disk | None]:
    return lambda: host.probe_disk(purpose, place, root=root)


def _disks(asked: list[tuple[Path, Bounded[Disk | None]]], calls: _Calls, until: float) -> list[Disk]:
    found = [calls.wait(f"the disk of {place}", call, _FILES_S, until) for place, call in asked]
    return [disk for disk in found if disk is not None]
