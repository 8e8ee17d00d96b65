"""What Ray Serve tells of itself and its applications.

Restates the answer to ``GET /api/serve/applications/`` (``ServeInstanceDetails`` in ``ray/serve/schema.py``, Ray 2.60.0) as far as
it is used; what others declared is kept as it came. It must not know what is made of it.
"""

from typing import Any, Final

from msgspec import Struct

from launcher.backends.ray_serve import read_bundles
from launcher.cluster.answers import decode

APPLICATIONS: Final = "/api/serve/applications/"
"""Ray redirects where the slash at the end is missing."""

DECLARATIVE: Final = "declarative"
"""Where an application that came by this API, and that a PUT without it would delete, is from."""
INGRESS: Final = "OpenAiIngress"
"""The deployment of Ray Serve LLM that takes requests, and no GPU."""
WILDCARDS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - read, not bound
"""Hosts that mean every address of a node."""


class Replica(Struct, frozen=True):
    """One replica; it has a node as soon as the scheduler has placed it."""

    replica_id: str = ""
    state: str = ""
    node_id: str | None = None
    node_ip: str | None = None
    actor_id: str | None = None
    log_file_path: str | None = None


class Deployment(Struct, frozen=True):
    """One deployment of an application: so many replicas, and what Ray says of them."""

    status: str = ""
    message: str = ""
    target_num_replicas: int | None = None
    replicas: list[Replica] = []
    recent_dead_replicas: list[Replica] = []
    deployment_config: dict[str, Any] = {}
    required_resources: dict[str, float] = {}
    """Of one replica's first process: what its placement group takes beside that is not told."""

    @property
    def running(self) -> list[Replica]:
        """The replicas that answer."""
        return [replica for replica in self.replicas if replica.state == "RUNNING"]


class Application(Struct, frozen=True):
    """One application. ``deployed_app_config`` is what was declared, word for word; ``None`` while it is deleted."""

    status: str
    message: str = ""
    route_prefix: str | None = None
    source: str = ""
    deployed_app_config: dict[str, Any] | None = None
    deployments: dict[str, Deployment] = {}


class Target(Struct, frozen=True):
    """Where a proxy listens that Ray would have a load balancer send requests to."""

    ip: str
    port: int


class TargetGroup(Struct, frozen=True):
    """Targets of one protocol; without ``app_name`` they take requests of every application."""

    targets: list[Target] = []
    protocol: str = ""
    app_name: str = ""


class ServeDetails(Struct, frozen=True):
    """All of Serve. Before Serve has been started its options are ``None``."""

    applications: dict[str, Application]
    proxy_location: str | None = None
    http_options: dict[str, Any] | None = None
    grpc_options: dict[str, Any] | None = None
    target_capacity: float | None = None
    target_groups: list[TargetGroup] = []

    @property
    def is_started(self) -> bool:
        """Whether Serve runs: its options cannot be changed any more then."""
        return self.http_options is not None


def parse_details(body: bytes, url: str) -> ServeDetails:
    """Return what Serve tells.

    Raises:
        ClusterError: that is not what Ray's dashboard at ``url`` answers.
    """
    return decode(body, ServeDetails, url, who="Ray Serve")


def find_proxies(details: ServeDetails) -> tuple[str, ...]:
    """Return the addresses of the proxies that are healthy, as ``http://10.0.0.5:8000``, without a slash at the end."""
    options = details.http_options or {}
    scheme = "https" if options.get("ssl_certfile") else "http"
    bound = str(options.get("host") or "")
    found = []
    for group in details.target_groups:
        if group.protocol == "HTTP" and not group.app_name:
            for target in group.targets:
                host = target.ip if bound in WILDCARDS else bound
                found.append(
                    f"{scheme}://[{host}]:{target.port}" if ":" in host else f"{scheme}://{host}:{target.port}"
                )
    return tuple(dict.fromkeys(found))


def held_gpus(application: Application) -> dict[str, float]:
    """Return the GPUs that an application of ours holds, by the id of the node.

    Of one that is spread over several nodes Ray tells one alone: nothing is returned then.
    """
    bundles = read_bundles(application.deployed_app_config or {})
    held: dict[str, float] = {}
    for name, deployment in application.deployments.items():
        n_gpu = deployment.required_resources.get("GPU", 0.0)
        if bundles is not None and bundles.together and name != INGRESS:
            n_gpu = bundles.gpus
        for replica in deployment.replicas:
            if replica.node_id is not None and n_gpu:
                held[replica.node_id] = held.get(replica.node_id, 0.0) + n_gpu
    return held
