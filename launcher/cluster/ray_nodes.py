"""What Ray's dashboard tells of its nodes, as a cluster.

Restates the answers of Ray 2.60.0, recorded in ``tests/transcripts/ray``: which nodes are alive and how many GPUs each declares
(``/api/v0/nodes``, whose word on a lost node is right at once), what each measures of its memory and GPUs
(``/nodes?view=summary``), what of it is reserved (``/api/cluster_status``). It must not know how the answers were had.
"""

from collections.abc import Mapping
from functools import cache
from typing import Final

import msgspec
from msgspec import Struct

from launcher.cluster.answers import decode
from launcher.cluster.ray_holes import find_holes
from launcher.domain import Cluster, Device, DeviceKind, Host, Inventory, Provenance
from launcher.errors import ClusterError
from launcher.inventory import list_machines, load_inventory
from launcher.inventory.machines import MAX_NODES
from launcher.inventory.text import printable
from launcher.units import MIB

_MAX_GPUS: Final = 128
"""Of one node; assumed far above what a machine has: bounds what a dashboard can make us do."""
_MAX_BYTES: Final = 1 << 60
_TYPE_PREFIX: Final = "accelerator_type:"
_TYPE_LABEL: Final = "ray.io/accelerator-type"
_MACHINE_OF_TYPE: Final[Mapping[str, str]] = {
    "T4": "t4",
    "L4": "l4",
    "L40S": "l40s",
    "A100": "a100-40g",
    "A100-40G": "a100-40g",
    "A100-80G": "a100-80g",
    "H100": "h100",
    "H200": "h200",
    "AMD-Instinct-MI300X-OAM": "mi300x",
    "AMD-Instinct-MI300X-HF": "mi300x",
}
"""Ray's names of accelerators (``ray/util/accelerators/accelerators.py``) to reference machines that have one. ``A100`` is either size:
the smaller is taken."""


class _Node(Struct, frozen=True):
    node_id: str
    state: str
    node_ip: str = ""
    is_head_node: bool = False
    resources_total: dict[str, float] = {}
    labels: dict[str, str] = {}


class _Result(Struct, frozen=True):
    result: list[_Node]
    total: int = 0


class _Data(Struct, frozen=True):
    result: _Result


class _Nodes(Struct, frozen=True):
    data: _Data


class _Gpu(Struct, frozen=True, rename="camel"):
    """A GPU as the node's own agent measures it; memory in MiB."""

    name: str
    memory_total: int
    memory_used: int = 0
    index: int = 0
    uuid: str | None = None


class _Raylet(Struct, frozen=True, rename="camel"):
    node_id: str = ""


class _Physical(Struct, frozen=True):
    """What a node measures of itself: ``mem`` is total, available, percent and used, ``cpus`` logical and physical."""

    raylet: _Raylet = _Raylet()
    hostname: str = ""
    cpus: tuple[int, ...] = ()
    mem: tuple[float, ...] = ()
    gpus: list[_Gpu] = []


class _SummaryData(Struct, frozen=True):
    summary: list[_Physical] = []


class _Summary(Struct, frozen=True):
    data: _SummaryData = _SummaryData()


class _LoadReport(Struct, frozen=True, rename="camel"):
    usage_by_node: dict[str, dict[str, tuple[float, float]]] | None = None


class _ClusterStatus(Struct, frozen=True, rename="camel"):
    load_metrics_report: _LoadReport | None = None


class _StatusData(Struct, frozen=True, rename="camel"):
    cluster_status: _ClusterStatus | None = None


class _Status(Struct, frozen=True):
    data: _StatusData = _StatusData()


class _Version(Struct, frozen=True):
    ray_version: str = "of an unknown version"
    session_name: str = ""


def build_cluster(
    url: str, *, nodes: bytes, summary: bytes, status: bytes, version: bytes, given_back: Mapping[str, float] = {}
) -> Cluster:
    """Return the living nodes as a cluster called ``url``; each answer is the body of one.

    GPUs that a node declares and does not measure are taken to be as in the reference machine of their type, and said to
    be; those that applications have reserved are left out. ``given_back`` are GPUs by a node's id that are about to be free.

    Raises:
        ClusterError: an answer is not what Ray's dashboard gives, no node is alive, or there are too many.
    """
    alive, names, measured = _read_nodes(url, nodes, summary)
    report = decode(status, _Status, url).data.cluster_status
    load = report.load_metrics_report if report is not None else None
    usage = (load.usage_by_node if load is not None else None) or {}
    if not alive:
        message = f"no node of the Ray cluster at {url} is alive"
        raise ClusterError(message, help="`ray status` on its machine tells more")
    if len(alive) > MAX_NODES:
        message = f"the Ray cluster at {url} has {len(alive)} nodes; at most {MAX_NODES} machines are planned for"
        raise ClusterError(message)
    found = [
        _build_node(
            name, node, measured.get(node.node_id), usage.get(node.node_id, {}), given_back.get(node.node_id, 0.0)
        )
        for name, node in zip(names, alive, strict=True)
    ]
    is_measured = all(inventory.provenance is Provenance.MEASURED for inventory in found)
    ray = printable(decode(version, _Version, url).ray_version)
    return Cluster(
        name=url,
        nodes=tuple(found),
        provenance=Provenance.MEASURED if is_measured else Provenance.ASSUMED,
        notes=(
            f"Ray {ray}: {len(found)} node{'s' if len(found) > 1 else ''}",
            *(f"Ray {ray}: {hole}: update it" for hole in find_holes(ray)),
            *(f"{node.name}: {note}" for node in found for note in node.notes),
        ),
    )


def read_accelerators(url: str, *, nodes: bytes, summary: bytes) -> dict[str, str | None]:
    """Return Ray's name of the GPUs of each node that has any, by the node's name in the cluster.

    ``None`` where a node declares GPUs and no resource of their type: Ray could not be asked for them.
    """
    alive, names, _ = _read_nodes(url, nodes, summary)
    types = [
        next((key.removeprefix(_TYPE_PREFIX) for key in node.resources_total if key.startswith(_TYPE_PREFIX)), None)
        for node in alive
    ]
    return {
        name: kind
        for name, node, kind in zip(names, alive, types, strict=True)
        if node.resources_total.get("GPU", 0.0) > 0
    }


def read_session(url: str, *, version: bytes) -> str:
    """Return the name of the cluster's life: another one after the cluster was started again."""
    return decode(version, _Version, url).session_name


def list_alive(url: str, *, nodes: bytes) -> frozenset[str]:
    """Return the ids of the nodes that Ray holds to be alive: right at once of one that left, after ten seconds of one killed."""
    return frozenset(node.node_id for node in _alive(url, nodes))


def empty_cluster(cluster: Cluster) -> Cluster:
    """Return the cluster as it would be if nothing ran on it."""
    return msgspec.structs.replace(cluster, nodes=tuple(_empty(node) for node in cluster.nodes))


def _empty(node: Inventory) -> Inventory:
    devices = tuple(msgspec.structs.replace(device, free_bytes=device.total_bytes) for device in node.devices)
    host = msgspec.structs.replace(node.host, available_bytes=node.host.total_bytes)
    return msgspec.structs.replace(node, devices=devices, host=host)


def _read_nodes(url: str, nodes: bytes, summary: bytes) -> tuple[list[_Node], list[str], dict[str, _Physical]]:
    """Return the living nodes in their order, the head first, their names, and what each measures by its id."""
    alive = _alive(url, nodes)
    measured = {each.raylet.node_id: each for each in decode(summary, _Summary, url).data.summary}
    alive.sort(key=lambda node: (not node.is_head_node, node.node_ip, node.node_id))
    return alive, _names(alive, measured), measured


def _alive(url: str, nodes: bytes) -> list[_Node]:
    return [node for node in decode(nodes, _Nodes, url).data.result.result if node.state == "ALIVE"]


def _names(alive: list[_Node], measured: Mapping[str, _Physical]) -> list[str]:
    """Name the nodes by host where no two are of one, else by address, else by the beginning of their number."""
    by_host = [measured[node.node_id].hostname if node.node_id in measured else "" for node in alive]
    for candidates in (by_host, [node.node_ip for node in alive], [node.node_id[:12] for node in alive]):
        names = [printable(name).replace("/", "_") for name in candidates]
        if all(names) and len(set(names)) == len(names):
            return names
    return [f"node{idx}" for idx in range(len(alive))]


def _build_node(
    name: str,
    node: _Node,
    physical: _Physical | None,
    usage: Mapping[str, tuple[float, float]],
    given_back: float,
) -> Inventory:
    notes: list[str] = []
    provenance = Provenance.MEASURED
    declared = _count(node.resources_total.get("GPU", 0.0), _MAX_GPUS)
    measured = sorted(physical.gpus, key=lambda gpu: gpu.index)[:declared] if physical is not None else []
    devices = [_measured_device(f"gpu{idx}", gpu) for idx, gpu in enumerate(measured)]
    missing = declared - len(devices)
    if missing:
        reference = _reference(node)
        if reference is None:
            notes.append(f"{missing} GPUs are declared, of a type and memory that nobody tells: left out")
        else:
            provenance = Provenance.ASSUMED
            notes.append(f"{missing} GPUs are declared and not measured: taken for {reference.description}, all free")
            devices += [msgspec.structs.replace(reference, name=f"gpu{idx}") for idx in range(len(devices), declared)]
    devices = _give_back(devices, _count(given_back, _MAX_GPUS))
    reserved = min(len(devices), _ceil(usage.get("GPU", (0.0, 0.0))[0] - given_back))
    if reserved:
        notes.append(f"{reserved} of {declared} GPUs are reserved by applications: left out")
        emptiest = sorted(devices, key=lambda device: -device.known_free_bytes)[: len(devices) - reserved]
        devices = [device for device in devices if device in emptiest]
    host, host_note = _host(node, physical)
    if host_note is not None:
        provenance = Provenance.ASSUMED
        notes.append(host_note)
    return Inventory(name=name, host=host, devices=tuple(devices), provenance=provenance, notes=tuple(notes))


def _host(node: _Node, physical: _Physical | None) -> tuple[Host, str | None]:
    """Return a node's host; with a note where it was declared rather than measured."""
    mem = physical.mem if physical is not None else ()
    n_cpu = _count(node.resources_total.get("CPU", 1.0), 1 << 16)
    if len(mem) >= 2 and mem[0] >= 1:  # noqa: PLR2004 - total and available
        assert physical is not None  # noqa: S101 - it has the memory
        total = _count(mem[0], _MAX_BYTES)
        cpus = (*physical.cpus, None, None)
        return Host(
            total_bytes=total,
            available_bytes=min(total, _count(mem[1], _MAX_BYTES)),
            n_cpu=max(1, cpus[0] or n_cpu),
            n_cpu_physical=cpus[1] if cpus[1] and cpus[1] > 0 else None,
        ), None
    total = max(1, _count(node.resources_total.get("memory", 0.0), _MAX_BYTES))
    host = Host(total_bytes=total, available_bytes=total, n_cpu=max(1, n_cpu))
    return host, "its memory is what Ray may use of it: nothing was measured yet"


def _measured_device(name: str, gpu: _Gpu) -> Device:
    """Return a GPU with what its node measured; what its model has otherwise is looked up."""
    total = _count(gpu.memory_total, _MAX_BYTES // MIB) * MIB
    description = printable(gpu.name)
    known = next((device for device in _reference_devices() if device.description == description), None)
    is_amd = "AMD" in description or "Radeon" in description or "Instinct" in description
    return Device(
        name=name,
        kind=known.kind if known is not None else DeviceKind.ROCM if is_amd else DeviceKind.CUDA,
        description=description,
        total_bytes=max(1, total),
        free_bytes=max(0, total - _count(gpu.memory_used, _MAX_BYTES // MIB) * MIB),
        bandwidth_bytes_per_s=known.bandwidth_bytes_per_s if known is not None else None,
        pcie_bytes_per_s=known.pcie_bytes_per_s if known is not None else None,
        compute_capability=known.compute_capability if known is not None else None,
        uuid=printable(gpu.uuid) if gpu.uuid is not None else None,
    )


def _give_back(devices: list[Device], n: int) -> list[Device]:
    """Return the devices with the ``n`` fullest of them empty."""
    fullest = sorted(devices, key=lambda device: device.known_free_bytes)[:n]
    return [
        msgspec.structs.replace(device, free_bytes=device.total_bytes) if device in fullest else device
        for device in devices
    ]


def _reference(node: _Node) -> Device | None:
    """Return the GPU of the reference machine for a node's accelerator type, by its label or its resource."""
    types = [node.labels.get(_TYPE_LABEL, "")]
    types += [key.removeprefix(_TYPE_PREFIX) for key in node.resources_total if key.startswith(_TYPE_PREFIX)]
    machine = next((_MACHINE_OF_TYPE[name] for name in types if name in _MACHINE_OF_TYPE), None)
    return load_inventory(machine).devices[0] if machine is not None else None


@cache
def _reference_devices() -> tuple[Device, ...]:
    return tuple(device for name in list_machines() for device in load_inventory(name).devices[:1])


def _count(value: float, most: int) -> int:
    """Return a number of a foreign answer as a count; what is no number at all counts as none."""
    return int(min(value, most)) if value > 0 else 0


def _ceil(value: float) -> int:
    """Round a reservation up: of a GPU that is shared nothing is planned for."""
    n = _count(value, _MAX_GPUS)
    return n + (value > n)
