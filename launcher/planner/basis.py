"""What each figure of a plan rests on, so that a reader can tell a measurement from an assumption.

It must not know how figures are written.
"""

from typing import Final

from launcher.domain import HOST_MEMORY, Basis, Calibration, Device, DeviceKind, Host, Inventory, Machines, Provenance
from launcher.planner.footprint.llama_cpp import Backend
from launcher.planner.sizing import Trial
from launcher.planner.speed import (
    DEFAULT_LINK_BYTES_PER_S,
    NETWORK_BYTES_PER_S,
    NETWORK_ROUND_TRIP_S,
    device_rates,
    host_rates,
)
from launcher.planner.target import DEVICE_MARGIN_BYTES, DEVICE_RESIDUAL_BYTES, HOST_MARGIN_BYTES, HOST_RESIDUAL_BYTES
from launcher.units import format_bytes, format_rate

_N_BUILD: Final = 8  # characters of a build's digest that are shown
_MAX_LISTED: Final = 3


def bases_of(trial: Trial, inventory: Inventory) -> tuple[Basis, ...]:
    """Return the figures of a plan's text, in its order, each with its provenance."""
    return (
        _weights(trial),
        _cache_and_compute(trial),
        basis_of_free(inventory),
        *_other(trial),
        *_speed(trial),
        *_prompts(trial),
    )


def _weights(trial: Trial) -> Basis:
    spec = trial.candidate.artifact.spec
    if spec is not None and spec.provenance is Provenance.READ:
        return Basis(figure="weights", provenance=Provenance.READ, text="from the header of the file")
    text = "tensor types by llama.cpp's quantization rules, not read from the file"
    return Basis(figure="weights", provenance=Provenance.DERIVED, text=text)


def _cache_and_compute(trial: Trial) -> Basis:
    if trial.candidate.architecture.known:
        text = "llama.cpp's own arithmetic, from the model's metadata"
        return Basis(figure="kv cache, compute", provenance=Provenance.DERIVED, text=text)
    text = "the architecture is not fully understood: figures err high"
    return Basis(figure="kv cache, compute", provenance=Provenance.ASSUMED, text=text)


def basis_of_free(inventory: Machines) -> Basis:
    """Return what the free bytes of a machine's memories rest on."""
    if inventory.provenance is Provenance.MEASURED:
        return Basis(figure="free", provenance=Provenance.MEASURED, text=f"on `{inventory.name}`")
    text = f"by the inventory of `{inventory.name}`"
    return Basis(figure="free", provenance=inventory.provenance, text=text)


def _other(trial: Trial) -> tuple[Basis, ...]:
    margins = (
        f"{format_bytes(HOST_MARGIN_BYTES)} of the host, {format_bytes(HOST_RESIDUAL_BYTES)} for the engine's code"
    )
    if not trial.target.devices:
        return (Basis(figure="margin", provenance=Provenance.ASSUMED, text=margins),)
    margins = f"{format_bytes(DEVICE_MARGIN_BYTES)} a device, {margins}"
    found = [Basis(figure="margin", provenance=Provenance.ASSUMED, text=margins)]
    if trial.target.backend is not Backend.RPC:
        text = f"{format_bytes(DEVICE_RESIDUAL_BYTES)} a device for its driver, counted with the margin"
        found.append(Basis(figure="driver", provenance=Provenance.PUBLISHED, text=text))
    return tuple(found)


def _speed(trial: Trial) -> tuple[Basis, ...]:
    """Return one basis for each kind of memory that has a part in a token: equal devices are named together."""
    calibration = trial.target.calibration
    if trial.tuning is not None and trial.speed.basis is Provenance.MEASURED:
        text = f"by `launch calibrate` with {trial.tuning.engine} {trial.tuning.build[:_N_BUILD]}"
        return (Basis(figure="speed", provenance=Provenance.MEASURED, text=text),)
    named: dict[tuple[Provenance, str], list[str]] = {}
    used = [(device, use) for device, use in zip(trial.target.devices, trial.footprint.devices, strict=True)]
    for device, use in used:
        if use.total_bytes:
            named.setdefault(_device_speed(device, calibration), []).append(device.name)
    if not used or not trial.is_whole:
        named.setdefault(_host_speed(trial.target.host, calibration), []).append(HOST_MEMORY)
    return tuple(
        Basis(figure="speed", provenance=provenance, text=f"{_list(names)}: {text}")
        for (provenance, text), names in named.items()
    )


def _prompts(trial: Trial) -> tuple[Basis, ...]:
    """Say what the speed of prompts rests on, where it is predicted and was not measured with the rest."""
    target = trial.target
    if trial.speed.prompt_tps is None or (trial.tuning is not None and trial.speed.basis is Provenance.MEASURED):
        return ()
    names = [device.name for device in target.devices] or [HOST_MEMORY]
    rates = [target.calibration.rates_of(name) if target.calibration else None for name in names]
    if all(found is not None and found.prompt_flops is not None for found in rates):
        return (Basis(figure="prompts", provenance=Provenance.MEASURED, text="by `launch calibrate`"),)
    if not trial.is_whole and target.devices[0].pcie_bytes_per_s is None:
        text = f"weights on the host are copied at {format_rate(DEFAULT_LINK_BYTES_PER_S)}"
        return (Basis(figure="prompts", provenance=Provenance.ASSUMED, text=text),)
    text = "the GPU's arithmetic, at the share that its generation was measured to reach"
    return (Basis(figure="prompts", provenance=Provenance.PUBLISHED, text=text),)


def _device_speed(device: Device, calibration: Calibration | None) -> tuple[Provenance, str]:
    bandwidth, rates, provenance = device_rates(device, calibration)
    share = f"{rates.efficiency:.0%} of {format_rate(bandwidth)}"
    if device.kind is DeviceKind.RPC:
        network = (
            f"{NETWORK_BYTES_PER_S / 1e6:.0f} MB/s and {NETWORK_ROUND_TRIP_S * 1e3:g} ms a token of network before it"
        )
        return Provenance.ASSUMED, f"{share}, as of some GPU, and {network}: a worker tells only its memory"
    if provenance is Provenance.MEASURED:
        return provenance, f"{share}, by `launch calibrate`"
    if provenance is Provenance.PUBLISHED:
        return provenance, f"{share}, fitted to published measurements of its generation"
    return provenance, f"{share}: nothing published was found of its kind"


def _host_speed(host: Host, calibration: Calibration | None) -> tuple[Provenance, str]:
    bandwidth, rates, provenance = host_rates(host, calibration)
    share = f"{rates.efficiency:.0%} of {format_rate(bandwidth)}"
    if provenance is Provenance.MEASURED:
        return provenance, f"{share}, by `launch calibrate`"
    return provenance, f"{share}, not measured"


def _list(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= _MAX_LISTED else f"{names[0]} to {names[-1]}"
