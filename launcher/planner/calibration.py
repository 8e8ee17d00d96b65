"""What a calibration is valid for, and which engine it prefers.

It must not know how anything was measured; a calibration of another machine must not get here (``machine_id``).
"""

from collections.abc import Sequence

from launcher.domain import Calibration, DeviceKind, EngineInstall, Inventory, Tuning
from launcher.units import GIB


def machine_id(inventory: Inventory) -> str:
    """Return what a calibration is valid for: the processor and how much of it, the memory, its own devices.

    Workers come and go, and are of other machines. Free memory, driver and engines may change without invalidating what
    was measured.
    """
    import hashlib  # noqa: PLC0415 - OpenSSL's, which a plan for another machine does not need

    host = inventory.host
    parts = [host.cpu_name or "", str(host.n_cpu), str(round(host.total_bytes / GIB))]
    own = (device for device in inventory.devices if device.kind is not DeviceKind.RPC)
    parts += [f"{device.kind}:{device.description}:{device.total_bytes}" for device in own]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def build_of(install: EngineInstall) -> str:
    """Return what identifies an engine's build; its command line where the build is unknown."""
    return install.build or " ".join(install.argv)


def prefer_fastest(installs: Sequence[EngineInstall], calibration: Calibration | None) -> list[EngineInstall]:
    """Order engines by what was measured of them on one model, the most recently measured; the others stay behind.

    Where the fastest of then is not among them (it was replaced by another build, say), nothing is known of the rank.
    """
    if calibration is None or not calibration.tunings:
        return list(installs)
    newest = max(calibration.tunings, key=lambda tuning: tuning.measured_at)
    times = {t.build: t.request_s for t in calibration.tunings if _same_work(t, newest)}
    if min(times, key=lambda build: times[build]) not in {build_of(install) for install in installs}:
        return list(installs)
    return sorted(installs, key=lambda install: times.get(build_of(install), float("inf")))


def _same_work(one: Tuning, other: Tuning) -> bool:
    """Whether two tunings measured the same request to the same weights in the same place."""

    def key(tuning: Tuning) -> tuple[object, ...]:
        return (tuning.architecture, tuning.weights_bytes, tuning.n_gpu_layers, tuning.n_prompt, tuning.n_generated)

    return key(one) == key(other)
