"""Several machines that a Ray cluster knows, and an application on them: by HTTP, without Ray itself.

How it is built
---------------
`dashboard` asks and sends; `answers` reads what comes back: `ray_nodes` says what machines there are, `serve_details` what Ray
Serve runs, `demands` what Ray cannot place. `applications` decides what is sent, so that whatever others run stays; `submission`
sends it. `following` reads how far ours is, `machine` says what follows, `proof` asks it for a token, `replica_logs` finds what
its replicas wrote. `runner` ties them together, with what `serving` describes. It must not know how a plan is made, nor start
or signal any process.
"""

from typing import TYPE_CHECKING, Final

from launcher.domain import Cluster

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launcher.cluster.dashboard import Dashboard

__all__ = ["NODES", "STATUS", "SUMMARY", "VERSION", "ask_cluster", "read_cluster"]

VERSION: Final = "/api/version"
NODES: Final = "/api/v0/nodes?detail=1&limit=10000"
SUMMARY: Final = "/nodes?view=summary"
STATUS: Final = "/api/cluster_status"


def read_cluster(url: str) -> Cluster:
    """Return the machines of the Ray cluster whose dashboard answers at ``url``.

    Raises:
        UsageError: the address is malformed, or beyond this machine without a token.
        ClusterError: nobody answers there, or not as Ray's dashboard does.
        ClusterAccessError: the dashboard wants a token, or another one.
    """
    from launcher.cluster.dashboard import open_dashboard  # noqa: PLC0415 - urllib3 takes 60 ms

    with open_dashboard(url) as dashboard:
        return ask_cluster(dashboard)


def ask_cluster(
    dashboard: "Dashboard", *, given_back: "Mapping[str, float] | None" = None, as_if_empty: bool = False
) -> Cluster:
    """Return the machines as they are now: with GPUs that are about to be free, or ``as_if_empty``: with all that are reserved.

    Raises:
        ClusterError: the dashboard does not answer, or not as Ray's does.
    """
    from msgspec.structs import replace  # noqa: PLC0415 - with what follows

    from launcher.cluster.ray_nodes import build_cluster, empty_cluster  # noqa: PLC0415 - with urllib3

    cluster = build_cluster(
        dashboard.url,
        nodes=dashboard.get(NODES),
        summary=dashboard.get(SUMMARY),
        status=b"{}" if as_if_empty else dashboard.get(STATUS),
        version=dashboard.get(VERSION),
        given_back=given_back or {},
    )
    exposed = ("its token goes over the network unencrypted",) if dashboard.is_exposed else ()
    cluster = replace(cluster, notes=(*cluster.notes, *exposed))
    return empty_cluster(cluster) if as_if_empty else cluster
