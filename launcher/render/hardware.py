"""An inventory as the lines that a person reads. Pure; it must not know how the inventory was had."""

from collections.abc import Iterator

from msgspec.structs import replace

from launcher.domain import Cluster, Device, Engine, EngineInstall, Host, Inventory, Machines
from launcher.units import format_bytes, format_rate


def render_hardware(machines: Machines) -> str:
    """Return host, devices, engines and notes of each machine; a figure that is unknown is left out."""
    lines = _inventory(machines) if isinstance(machines, Inventory) else _cluster(machines)
    # Paths and arguments of engines may hold anything that a file name can.
    return "".join("".join(c if c.isprintable() else "\ufffd" for c in line) + "\n" for line in lines)


def _cluster(cluster: Cluster) -> list[str]:
    network = cluster.network
    gbit_per_s, wait_us = network.bandwidth_bytes_per_s * 8 / 1e9, network.latency_s * 1e6
    n = len(cluster.nodes)
    lines = [f"{cluster.name} ({cluster.provenance.value}): {n} machine{'s' if n > 1 else ''}", ""]
    lines.append(f"network   {gbit_per_s:.3g} Gbit/s, {wait_us:.3g} us between two ({network.provenance.value})")
    for node in cluster.nodes:
        lines += ["", *_inventory(node)]
    if cluster.notes:
        lines += ["", "notes", *(f"  - {note}" for note in cluster.notes)]
    return lines


def _inventory(inventory: Inventory) -> list[str]:
    lines = [f"{inventory.name} ({inventory.provenance.value})", "", "host", *_host(inventory.host), "", "devices"]
    lines += [line for device in inventory.devices for line in _device(device)] or ["  none"]
    lines += ["", "engines"]
    if inventory.engines is None:
        lines.append("  unknown")
    else:
        has_devices = bool(inventory.devices)
        lines += [line for install in inventory.engines for line in _engine(install, has_devices=has_devices)] or [
            "  none found"
        ]
    if inventory.notes:
        lines += ["", "notes", *(f"  - {note}" for note in inventory.notes)]
    return lines


def _host(host: Host) -> Iterator[str]:
    speed = f", {format_rate(host.bandwidth_bytes_per_s)}" if host.bandwidth_bytes_per_s else ""
    yield f"  memory  {format_bytes(host.available_bytes)} available of {format_bytes(host.total_bytes)}{speed}"
    if host.swap_total_bytes:
        yield f"  swap    {format_bytes(host.swap_free_bytes)} free of {format_bytes(host.swap_total_bytes)}"
    if host.cgroup_limit_bytes is not None:
        used = format_bytes(host.cgroup_used_bytes or 0)
        free = replace(host, address_space_bytes=None).free_bytes
        yield f"  cgroup  {used} used of {format_bytes(host.cgroup_limit_bytes)}, so {format_bytes(free)} free"
    if host.address_space_bytes is not None:
        yield f"  limit   {format_bytes(host.address_space_bytes)} of address space for a process (ulimit -v, LimitAS=)"
    cores = f" on {host.n_cpu_physical} cores" if host.n_cpu_physical else ""
    quota = f", cgroup quota {host.cpu_quota:g}" if host.cpu_quota is not None else ""
    threads = "1 thread" if host.n_cpu == 1 else f"{host.n_cpu} threads"
    yield f"  cpu     {threads}{cores}{quota}{f', {host.cpu_name}' if host.cpu_name else ''}"
    if host.isa:
        yield f"  isa     {' '.join(host.isa)}"
    if host.free_disk_bytes is not None:
        yield f"  disk    {format_bytes(host.free_disk_bytes)} free"


def _device(device: Device) -> Iterator[str]:
    free = f"{format_bytes(device.free_bytes)} free of " if device.free_bytes is not None else ""
    yield f"  {device.name}  {device.description}: {free}{format_bytes(device.total_bytes)}"
    capability = device.compute_capability
    facts = (
        format_rate(device.bandwidth_bytes_per_s) if device.bandwidth_bytes_per_s else None,
        f"PCIe {format_rate(device.pcie_bytes_per_s)}" if device.pcie_bytes_per_s else None,
        f"compute capability {capability[0]}.{capability[1]}" if capability else None,
        device.kind.value,
        f"at {device.bus_id}" if device.bus_id else None,
    )
    yield "        " + ", ".join(fact for fact in facts if fact)
    for process in device.processes:
        used = format_bytes(process.used_bytes) if process.used_bytes is not None else "an unknown amount"
        yield f"        {used} held by {process.name or 'an unnamed process'} (pid {process.pid})"


def _engine(install: EngineInstall, *, has_devices: bool) -> Iterator[str]:
    yield f"  {install.engine.value} {install.version or '(version unknown)'}"
    yield f"        {' '.join(install.argv)}"
    if install.devices:
        seen = (f"{entry.name} = {entry.device}" if entry.device else entry.name for entry in install.devices)
        yield f"        sees {', '.join(seen)}"
    elif install.engine is not Engine.VLLM:  # vLLM is not asked for its devices
        yield "        CPU only" + (": this build sees none of the devices above" if has_devices else "")
