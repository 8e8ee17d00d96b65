"""Which GPUs the ranks of vLLM would be: the tensor ranks of a stage on equal GPUs of one host, stages where there is room.

It must not know models, nor what a rank needs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from msgspec import Struct

from launcher.domain import Device
from launcher.units import GIB

Hosts: TypeAlias = Sequence[Sequence[Device]]
"""The devices of each host. Their names are unique over all hosts."""

_ALIKE_BYTES: Final = GIB
"""Free memory that differs by less does not decide which GPUs are taken: that they are on one host is worth more."""


class Slot(Struct, frozen=True):
    """Equal GPUs of one host that can be the tensor ranks of one stage, those with most free memory first."""

    host_idx: int
    devices: tuple[Device, ...]

    @property
    def free_bytes(self) -> int:
        """What the fullest of its GPUs has free: no rank can use more."""
        return self.devices[-1].known_free_bytes

    @property
    def signature(self) -> tuple[object, ...]:
        """What slots are equal in that differ in nothing that matters."""
        return tuple(
            (device.description, device.total_bytes, device.free_bytes, device.compute_capability)
            for device in self.devices
        )


class Ranks(Struct, frozen=True):
    """The slots of a pipeline's stages, in their order; those of one host follow each other."""

    slots: tuple[Slot, ...]

    @property
    def devices(self) -> tuple[Device, ...]:
        """One device per rank: all of the first stage, then the next."""
        return tuple(device for slot in self.slots for device in slot.devices)

    @property
    def hosts(self) -> tuple[int, ...]:
        """The host of each stage."""
        return tuple(slot.host_idx for slot in self.slots)


def largest_group(hosts: Hosts) -> int:
    """Return the most GPUs that can share a layer."""
    return max((len(group) for devices in hosts for group in _equal_groups(devices)), default=0)


def list_parallelisms(hosts: Hosts) -> Iterator[tuple[int, int, bool]]:
    """Yield tensor and pipeline sizes, and whether stages may lie on several hosts, in the order of preference.

    On one host tensors alone over ever more GPUs, then pipelines too; over several the fewest stages, then the fewest GPUs,
    for each further stage makes a token wait longer.
    """
    most = max((len(devices) for devices in hosts), default=0)
    for tp in range(1, most + 1):
        yield tp, 1, False
    for n_rank in range(2, most + 1):
        for pp in range(2, n_rank + 1):
            if n_rank % pp == 0:
                yield n_rank // pp, pp, False
    if len(hosts) > 1:
        n_device, most_equal = sum(len(devices) for devices in hosts), largest_group(hosts)
        for pp in range(2, n_device + 1):
            for tp in range(1, min(most_equal, n_device // pp) + 1):
                yield tp, pp, True


def place_ranks(hosts: Hosts, tp: int, pp: int, *, across: bool) -> Iterator[Ranks]:
    """Yield the placements worth trying, best first: on one host each, or ``across`` hosts one.

    Hosts on which the same would come out are tried once. Nothing is yielded where there is no room for so many ranks.
    """
    by_host = [list(_slots(idx, devices, tp)) for idx, devices in enumerate(hosts)]
    if across:
        every = [slot for slots in by_host for slot in slots]
        if len(every) >= pp:
            every.sort(key=lambda slot: (*_rank_of(slot), -len(by_host[slot.host_idx]), slot.host_idx))
            yield _in_order(every[:pp])
        return
    tried: set[tuple[object, ...]] = set()
    alone = [sorted(slots, key=_rank_of)[:pp] for slots in by_host if len(slots) >= pp]
    for slots in sorted(alone, key=lambda slots: _rank_of(slots[-1])):
        signature = tuple(slot.signature for slot in slots)
        if signature not in tried:
            tried.add(signature)
            yield _in_order(slots)


def _rank_of(slot: Slot) -> tuple[float, float]:
    """Order slots by free memory, alike ones by bandwidth."""
    return -(slot.free_bytes // _ALIKE_BYTES), -(slot.devices[0].bandwidth_bytes_per_s or 0.0)


def _in_order(slots: Iterable[Slot]) -> Ranks:
    return Ranks(tuple(sorted(slots, key=lambda slot: slot.host_idx)))


def _slots(host_idx: int, devices: Sequence[Device], tp: int) -> Iterator[Slot]:
    for group in _equal_groups(devices):
        for begin in range(0, len(group) - tp + 1, tp):
            yield Slot(host_idx, tuple(group[begin : begin + tp]))


def _equal_groups(devices: Sequence[Device]) -> list[list[Device]]:
    """Group the devices of a host by what they are; in each, those with most free memory first."""
    groups: dict[tuple[object, ...], list[Device]] = {}
    for device in sorted(devices, key=lambda device: -device.known_free_bytes):
        kind = (device.kind, device.description, device.total_bytes, device.compute_capability)
        groups.setdefault(kind, []).append(device)
    return list(groups.values())
