"""The hosts of the machines that a plan is for: one, or those of a cluster under names that tell them apart.

It must not know engines or models.
"""

from collections.abc import Iterator

from msgspec.structs import replace

from launcher.domain import Budget, Cluster, Device, Inventory, Machines, MemoryUse, Plan
from launcher.units import GIB


def hosts_of(machines: Machines) -> tuple[Inventory, ...]:
    """Return each host as an inventory; in a cluster its devices are called ``node0/gpu0``."""
    if isinstance(machines, Inventory):
        return (machines,)
    return tuple(
        replace(node, devices=tuple(replace(device, name=f"{node.name}/{device.name}") for device in node.devices))
        for node in machines.nodes
    )


def devices_of(machines: Machines) -> Iterator[Device]:
    """Yield the devices of every host, under the names that each has there."""
    for node in machines.nodes if isinstance(machines, Cluster) else (machines,):
        yield from node.devices


def distinct_nodes(cluster: Cluster) -> list[tuple[Inventory, int]]:
    """Return of each kind of machine the one with the most free memory, and how many there are of the kind.

    Machines are of one kind that differ in nothing but names and what is free.
    """
    kinds: dict[tuple[object, ...], list[Inventory]] = {}
    for node in cluster.nodes:
        devices = tuple((device.kind, device.description, device.total_bytes) for device in node.devices)
        kinds.setdefault((devices, node.host.total_bytes // GIB, node.host.n_cpu, node.engines), []).append(node)
    return [(max(nodes, key=_free_bytes), len(nodes)) for nodes in kinds.values()]


def _free_bytes(node: Inventory) -> tuple[int, int]:
    return sum(device.known_free_bytes for device in node.devices), node.host.free_bytes


def on_node(plan: Plan, node: str) -> Plan:
    """Return a plan for one host as a plan for the cluster that has it: its memories carry the node's name."""

    def use(each: MemoryUse) -> MemoryUse:
        return replace(each, name=f"{node}/{each.name}", host=node)

    def budget(each: Budget) -> Budget:
        return replace(each, name=f"{node}/{each.name}", host=node)

    footprint = plan.footprint
    return replace(
        plan,
        footprint=replace(
            footprint, devices=tuple(map(use, footprint.devices)), host=replace(footprint.host, host=node)
        ),
        budgets=tuple(map(budget, plan.budgets)),
    )
