"""Several machines that a Ray cluster knows: read from its dashboard by HTTP, without Ray itself.

It must not know of models, profiles or plans.
"""

from launcher.domain import Cluster

__all__ = ["read_cluster"]


def read_cluster(url: str) -> Cluster:
    """Return the machines of the Ray cluster whose dashboard answers at ``url``.

    Raises:
        UsageError: the address is malformed, or beyond this machine without a token.
        ClusterError: nobody answers there, or not as Ray's dashboard does.
        ClusterAccessError: the dashboard wants a token, or another one.
    """
    from msgspec.structs import replace  # noqa: PLC0415 - with what follows

    from launcher.cluster.dashboard import open_dashboard  # noqa: PLC0415 - urllib3 takes 60 ms
    from launcher.cluster.ray_nodes import build_cluster  # noqa: PLC0415 - as above

    with open_dashboard(url) as dashboard:
        cluster = build_cluster(
            dashboard.url,
            nodes=dashboard.get("/api/v0/nodes?detail=1&limit=10000"),
            summary=dashboard.get("/nodes?view=summary"),
            status=dashboard.get("/api/cluster_status"),
            version=dashboard.get("/api/version"),
        )
        exposed = ("its token goes over the network unencrypted",) if dashboard.is_exposed else ()
        return replace(cluster, notes=(*cluster.notes, *exposed))
