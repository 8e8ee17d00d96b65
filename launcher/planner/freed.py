"""A machine as it would be if somebody gave memory back.

It must not know who holds what, nor whether they will.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from launcher.domain import HOST_MEMORY, Inventory


def give_back(machine: Inventory, n_bytes: Mapping[str, int], *, within_group: bool) -> Inventory:
    """Return the machine with so many bytes more free, by memory (``gpu0``, ``host``), at most all there is.

    What a control group counts as used falls too where the holders are in it (``within_group``). What is not known to be
    free stays unknown.
    """
    devices = tuple(
        device
        if device.free_bytes is None
        else replace(device, free_bytes=min(device.total_bytes, device.free_bytes + n_bytes.get(device.name, 0)))
        for device in machine.devices
    )
    host, n_host = machine.host, n_bytes.get(HOST_MEMORY, 0)
    used = host.cgroup_used_bytes
    if within_group and used is not None:
        used = max(0, used - n_host)
    available = min(host.total_bytes, host.available_bytes + n_host)
    return replace(machine, devices=devices, host=replace(host, available_bytes=available, cgroup_used_bytes=used))
