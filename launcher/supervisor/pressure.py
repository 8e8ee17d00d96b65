"""Measure, again and again, the memories that a served plan lives in.

It must not judge what it measures. A look costs a few milliseconds of processor time. What can hang, a GPU's driver, is
asked in a thread that nobody waits for: a sample may be late, and says when it was taken.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from launcher.domain import HOST_MEMORY, Device, DeviceKind, DeviceLoad, EngineInstall, Plan
from launcher.inventory.cgroup import find_binding, find_folders, read_members
from launcher.inventory.host import probe_host_memory
from launcher.inventory.llama_text import parse_devices
from launcher.inventory.nvidia_driver import has_driver
from launcher.inventory.proc import run_bounded
from launcher.inventory.psi import find_psi, read_psi
from launcher.inventory.sysfs import probe_amd
from launcher.supervisor.processes import Survey, resident_bytes, survey
from launcher.supervisor.strain import Gauge, Sample
from launcher.units import MIB

if TYPE_CHECKING:
    from launcher.inventory.nvidia_live import NvidiaMonitor

PERIOD_S: Final = 1.0
_SURVEY_S: Final = 10.0
"""Between two readings of all processes, which is most of what a look may cost."""
_MUCH_BYTES: Final = 256 * MIB
"""By so much less free memory than at the last reading of all processes they are read again."""
_LISTING_S: Final = 60.0
"""Between two listings by an engine of devices that no driver tells of: each is a process of its own."""
_LISTING_TIMEOUT_S: Final = 15.0
_LEAVE_S: Final = 1.0


class _Room(NamedTuple):
    """What bounds the engine in host memory, and what is left of that; ``group`` is the folder of a control group."""

    total_bytes: int
    free_bytes: int
    limit: str
    group: Path | None = None


class Probe:
    """Where one plan's memories can be looked at; for one thread at a time.

    A device is looked at through NVML where it is NVIDIA's, in sysfs where it is AMD's, and is else listed by the engine
    now and then; in between it is in no sample.
    """

    def __init__(
        self,
        plan: Plan | None,
        devices: tuple[Device, ...] = (),
        nvidia: "NvidiaMonitor | None" = None,
        root: Path = Path("/"),
    ) -> None:
        """Find once what stays: the control groups of this process, which its engine is in too, and the devices.

        ``devices`` are the inventory's that the plan was made for; without a plan only the host is looked at.
        """
        uses = plan.footprint.devices if plan else ()
        names = {use.name: theirs for use, theirs in zip(uses, plan.engine_devices if plan else (), strict=False)}
        remote = {device.name for device in devices if device.kind is DeviceKind.RPC}  # it answers its engine alone
        self._names = {name: theirs for name, theirs in names.items() if name not in remote}
        self._install = plan.install if plan else None
        self._amd = {device.bus_id: device.name for device in devices if device.bus_id and device.name in self._names}
        self._nvidia = nvidia
        self._root = root
        self._folders = tuple(find_folders(root, "memory"))
        self._psi = find_psi(root)
        self._survey, self._surveyed_s, self._surveyed = Survey(), -_SURVEY_S, _Room(0, 0, "")
        self._sharers: frozenset[int] = frozenset()
        self._top: int | None = None
        self._listed_s = -_LISTING_S

    def look(self, top: int | None = None, *, is_urgent: bool = False) -> Sample:
        """Return a sample; ``top`` is the process below which the engine's are: the guard's number.

        An urgent one is of what is free, as far as this process can see it itself: no engine is started to list its
        devices, and no other process is looked at; none is the engine's.
        """
        at_s = time.monotonic()
        room = self._room()
        if is_urgent:
            self._survey, self._top = replace(self._survey, below=frozenset()), None
        else:
            self._look_at_processes(top, at_s, room)
        loads = tuple(load for load in (self._nvidia.look() if self._nvidia else ()) if load.name in self._names)
        gauges = [self._device_gauge(load) for load in loads]
        gauges += self._amd_gauges({gauge.name for gauge in gauges})
        if not is_urgent:
            gauges += self._listed_gauges(self._names.keys() - {gauge.name for gauge in gauges}, at_s)
        stall = read_psi(self._psi) if self._psi else None
        return Sample(
            at_s=at_s,
            gauges=(*gauges, self._host_gauge(room)),
            loads=loads,
            stalled=stall.full if stall else None,
            own_pids=self._survey.below,
        )

    def _look_at_processes(self, top: int | None, at_s: float, room: _Room) -> None:
        """Read all processes now and then, and at once where somebody has taken much: that one is to be named."""
        is_due = top != self._top or at_s - self._surveyed_s >= _SURVEY_S or room.group != self._surveyed.group
        if is_due or self._surveyed.free_bytes - room.free_bytes >= _MUCH_BYTES:
            self._sharers = frozenset() if room.group is None else read_members(room.group)
            self._survey = survey(top, among=self._sharers)
            self._top, self._surveyed_s, self._surveyed = top, at_s, room

    def _room(self) -> _Room:
        """Return host memory, or the control group's where that leaves less."""
        host, binding = probe_host_memory(self._root), find_binding(self._folders, with_cache=False)
        if binding is not None:
            folder, group = binding
            total = group.limit_bytes or 0
            left = total - (group.used_bytes or 0)
            if left < host.available_bytes:
                return _Room(total, max(0, left), "the control group's memory", folder)
        return _Room(host.total_bytes, host.available_bytes, "host memory")

    def _host_gauge(self, room: _Room) -> Gauge:
        return Gauge(
            name=HOST_MEMORY,
            total_bytes=room.total_bytes,
            free_bytes=room.free_bytes,
            own_bytes=resident_bytes(self._survey.below) if self._survey.below else None,
            processes=self._survey.largest,
            limit=room.limit,
            sharers=None if room.group is None else self._sharers,
        )

    def _device_gauge(self, load: DeviceLoad) -> Gauge:
        held = {process.pid: process.used_bytes for process in load.processes}
        own = [n_bytes for pid in self._survey.below if (n_bytes := held.get(pid)) is not None]
        return Gauge(
            name=load.name,
            total_bytes=load.total_bytes,
            free_bytes=load.free_bytes,
            own_bytes=sum(own) if own else None,
            processes=load.processes,
        )

    def _amd_gauges(self, told: set[str]) -> list[Gauge]:
        """Return AMD's GPUs: a file each, and no names of processes."""
        return [
            Gauge(name=name, total_bytes=gpu.total_bytes, free_bytes=max(0, gpu.total_bytes - gpu.used_bytes))
            for gpu in (probe_amd(self._root) if self._amd else ())
            if gpu.used_bytes is not None and (name := self._amd.get(gpu.bus_id or "")) is not None and name not in told
        ]

    def _listed_gauges(self, names: set[str], at_s: float) -> list[Gauge]:
        if not names or self._install is None or at_s - self._listed_s < _LISTING_S:
            return []
        self._listed_s = at_s
        found = list_memory(self._install)
        return [
            Gauge(name=name, total_bytes=found[theirs][0], free_bytes=found[theirs][1])
            for name in sorted(names)
            if (theirs := self._names[name]) in found
        ]


def list_memory(install: EngineInstall) -> Mapping[str, tuple[int, int]]:
    """Ask an engine for total and free bytes of its devices, by its own names; none where it cannot tell."""
    if "--list-devices" not in install.flags:
        return {}
    answer = run_bounded([*install.argv, "--list-devices"], timeout_s=_LISTING_TIMEOUT_S, env=install.env)
    return {
        device.name: (device.total_bytes, device.free_bytes)
        for device in parse_devices(f"{answer.stdout}\n{answer.stderr}")
        if device.total_bytes is not None and device.free_bytes is not None
    }


def _open_nvidia() -> "AbstractContextManager[NvidiaMonitor | None]":
    if not has_driver():
        return nullcontext()
    from launcher.inventory.nvidia_live import open_nvidia  # noqa: PLC0415 - 8 ms and 2 MiB, for a driver alone

    return open_nvidia()


@contextmanager
def sampling(
    plan: Plan | None,
    devices: tuple[Device, ...] = (),
    *,
    top: Callable[[], int | None],
    on_sample: Callable[[Sample], None],
    on_lost: Callable[[Exception], None],
    period_s: float = PERIOD_S,
) -> Iterator[Callable[[], None]]:
    """Look once a period for as long as the block lasts, the first time at once.

    All three callables are called in the sampler's own thread: ``top`` for the number of the guard at that moment,
    ``on_sample`` with each sample, ``on_lost`` once if looking has failed for good. After the block ``on_sample`` may
    be called once more, by a look that was under way. What the block is given has an urgent look begun now, or as soon
    as the one under way is over; it may be called in any thread, and waits for nothing.
    """
    over, bell = threading.Event(), threading.Event()

    def run() -> None:
        try:
            with _open_nvidia() as nvidia:
                probe = Probe(plan, devices, nvidia)
                is_rung = False
                while not over.is_set():
                    on_sample(probe.look(top(), is_urgent=is_rung))
                    is_rung = bell.wait(period_s)
                    bell.clear()  # before the look: who rings from now on is answered by the next one
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody has to hear of it
            on_lost(error)

    thread = threading.Thread(target=run, name="pressure", daemon=True)
    thread.start()
    try:
        yield bell.set
    finally:
        over.set()
        bell.set()
        thread.join(_LEAVE_S)
