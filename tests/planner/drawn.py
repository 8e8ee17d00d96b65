"""A machine of given memory for tests that draw one.

It knows no model: what to draw around is its caller's.
"""

from launcher.domain import Device, DeviceKind, Host, Inventory
from launcher.units import MIB


def make_machine(free_bytes: int, host_bytes: int, n_devices: int = 1) -> Inventory:
    """Return a machine with so many equal GPUs, of which 512 MiB each are taken, and a host with nothing taken."""
    devices = tuple(
        Device(
            name=f"gpu{idx}",
            kind=DeviceKind.CUDA,
            description="drawn",
            total_bytes=free_bytes + 512 * MIB,
            free_bytes=free_bytes,
            bandwidth_bytes_per_s=600e9,
        )
        for idx in range(n_devices)
    )
    host = Host(total_bytes=host_bytes, available_bytes=host_bytes, n_cpu=8, bandwidth_bytes_per_s=60e9)
    return Inventory(name="drawn", host=host, devices=devices)
