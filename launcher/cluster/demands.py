"""What Ray's scheduler cannot place, and which nodes it has left.

Serve's own messages do not tell: of a replica whose process takes more than half a minute to start they say the same as of one
that no node has room for, and of one that lost its node nothing at all (2.60.0, seen). The scheduler lists what it has not
placed, every five seconds. It must not know what is made of it.
"""

from typing import Final

from msgspec import Struct

from launcher.backends.ray_serve import read_bundles
from launcher.cluster.answers import decode
from launcher.cluster.serve_details import Application

_ENOUGH: Final = 1e-6


class _Group(Struct, frozen=True):
    """A placement group: bundles, each with how many there are of it."""

    bundles: list[tuple[dict[str, float], int]] = []


class _Report(Struct, frozen=True, rename="camel"):
    resource_demand: list[tuple[dict[str, float], int]] = []
    pg_demand: list[tuple[_Group, int]] = []


class _ClusterStatus(Struct, frozen=True, rename="camel"):
    load_metrics_report: _Report | None = None


class _Data(Struct, frozen=True, rename="camel"):
    cluster_status: _ClusterStatus | None = None


class _Status(Struct, frozen=True):
    data: _Data = _Data()


def parse_demands(body: bytes, url: str) -> tuple[dict[str, float], ...]:
    """Return the resources of each thing that waits for a node, a placement group's together.

    Raises:
        ClusterError: that is not what Ray's dashboard at ``url`` answers.
    """
    status = decode(body, _Status, url).data.cluster_status
    report = status.load_metrics_report if status is not None else None
    if report is None:
        return ()
    alone = (dict(resources) for resources, n in report.resource_demand if n > 0)
    groups = (_sum([(bundle, n) for bundle, n in group.bundles]) for group, n in report.pg_demand if n > 0)
    return (*alone, *groups)


def find_demand(demands: tuple[dict[str, float], ...], application: Application) -> str | None:
    """Return what a replica of the application takes that waits for a node, in words; ``None``: none does.

    Ray does not say whose a demand is: one for as many GPUs as a replica of ours takes (processors, where it takes none) is
    taken for it.
    """
    bundles = read_bundles(application.deployed_app_config or {})
    whole = {"GPU": bundles.gpus, "CPU": bundles.cpus} if bundles is not None else None
    for deployment in application.deployments.values():
        if all(replica.node_id is not None for replica in deployment.replicas):
            continue
        for wanted in (whole, deployment.required_resources):
            if wanted is not None and any(_is_alike(demand, wanted) for demand in demands):
                parts = [f"{wanted[name]:g} {name}" for name in ("GPU", "CPU") if wanted.get(name, 0.0) > 0]
                return ", ".join(parts)
    return None


def _sum(parts: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for resources, n in parts:
        for name, amount in resources.items():
            total[name] = total.get(name, 0.0) + n * amount
    return total


def _is_alike(one: dict[str, float], other: dict[str, float]) -> bool:
    kinds = ("GPU",) if other.get("GPU", 0.0) > 0 else ("GPU", "CPU")
    differ = any(abs(one.get(kind, 0.0) - other.get(kind, 0.0)) > _ENOUGH for kind in kinds)
    return not differ and any(other.get(kind, 0.0) > 0 for kind in kinds)
