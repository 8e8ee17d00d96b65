"""A plan as a ``RayService`` for KubeRay on Kubernetes: Ray Serve LLM's application, and a cluster of the planned machines.

The application is the one that ``launcher.backends.ray_serve`` makes for a cluster that runs already. Fields are those of
``ray.io/v1`` as KubeRay 1.6 has them.
"""

from typing import Final

from launcher.backends.ray_serve import build_application
from launcher.domain import Engine, Plan
from launcher.errors import UsageError
from launcher.export.handover import CACHE_ENV, CACHE_PATH, MODELS_PATH, Handover, Node
from launcher.export.images import RAY_IMAGE, RAY_VERSION
from launcher.export.yaml_text import Block, to_yaml
from launcher.units import GIB, MIB

_HEAD_BYTES: Final = 8 * GIB
"""Assumed: what Ray's guide gives to a head that runs no engine."""
_HEAD_CPUS: Final = 2
_RAY_BYTES: Final = 4 * GIB
"""Assumed: Ray's own processes and objects beside the engine."""
_OTHER_CPUS: Final = 2
"""Assumed, beside one of each GPU's process: the engine's other processes and Ray Serve's."""
_SERVE_PORT: Final = 8000
"""Ray Serve's own, inside of the cluster."""
_HF_SECRET: Final = "hf-token"  # noqa: S105 - the name of a secret, not one


def render(handover: Handover, plan: Plan) -> str:
    """Return the text of the manifest.

    Raises:
        UsageError: the plan is not vLLM's.
    """
    if handover.engine is not Engine.VLLM:
        msg = f"the plan is for {handover.engine}, and Ray Serve LLM serves with vllm"
        raise UsageError(msg, help="plan it with --engine vllm, or give --to compose, quadlet or skypilot")
    source = MODELS_PATH if handover.source.path is not None else handover.source.repository
    application = build_application(plan, source=source)
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": handover.slug},
        "spec": {
            "serveConfigV2": Block(to_yaml({"applications": [application]})),
            "rayClusterConfig": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": _head(handover)},
                "workerGroupSpecs": [_group(handover, nodes, plan.replicas) for nodes in _alike(handover)],
            },
        },
    }
    comments = (
        *handover.summary,
        "Wants KubeRay 1.6, and NVIDIA's device plugin or operator on nodes with these GPUs:",
        *sorted({f"  {node.description}" for node in handover.nodes}),
        *((f"A gated repository: kubectl create secret generic {_HF_SECRET} --from-literal=HF_TOKEN=...",)
          if handover.source.repository is not None else ()),
        "Ray Serve asks no key of clients: put a gateway that does before it, and keep its service within the cluster.",
        f"Try: kubectl port-forward service/{handover.slug}-serve-svc {handover.port}:{_SERVE_PORT}",
        f"     http://127.0.0.1:{handover.port}{application['route_prefix']}/v1",
    )  # fmt: skip
    return to_yaml(manifest, comments=comments)


def _alike(handover: Handover) -> list[list[Node]]:
    """Return the machines in groups of which each has the same GPUs."""
    groups: dict[tuple[str, int], list[Node]] = {}
    for node in handover.nodes:
        groups.setdefault((node.description, len(node.gpus)), []).append(node)
    return list(groups.values())


def _head(handover: Handover) -> dict[str, object]:
    resources = {"cpu": str(_HEAD_CPUS), "memory": f"{_HEAD_BYTES // MIB}Mi"}
    ports = [
        {"containerPort": port, "name": name}
        for port, name in ((6379, "gcs"), (8265, "dashboard"), (10001, "client"), (_SERVE_PORT, "serve"))
    ]
    container = {
        "name": "ray-head",
        "image": RAY_IMAGE,
        "ports": ports,
        "env": _environment(handover),
        "resources": {"limits": resources, "requests": dict(resources)},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": _mounts(handover),
    }
    return {"spec": {"containers": [container], "volumes": _volumes(handover, 0)}}


def _group(handover: Handover, nodes: list[Node], replicas: int) -> dict[str, object]:
    first, n = nodes[0], len(nodes) * replicas
    memory = f"{(max(node.memory_bytes for node in nodes) + _RAY_BYTES) // MIB}Mi"
    resources = {"memory": memory, "nvidia.com/gpu": str(len(first.gpus))}
    container = {
        "name": "ray-worker",
        "image": RAY_IMAGE,
        "env": _environment(handover),
        "resources": {"limits": resources, "requests": {"cpu": str(len(first.gpus) + _OTHER_CPUS), **resources}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [*_mounts(handover), *_shared_memory(first)],
    }
    return {
        "groupName": f"gpus-{first.ranks[0]}",
        "replicas": n,
        "minReplicas": n,
        "maxReplicas": n,
        "rayStartParams": {"num-gpus": str(len(first.gpus))},
        "template": {"spec": {"containers": [container], "volumes": _volumes(handover, first.shm_bytes)}},
    }


def _environment(handover: Handover) -> list[dict[str, object]]:
    env: list[dict[str, object]] = [{"name": "HF_HOME", "value": CACHE_ENV["HF_HOME"]}]
    if handover.source.repository is not None:
        secret = {"name": _HF_SECRET, "key": "HF_TOKEN", "optional": True}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}})
    return env


def _mounts(handover: Handover) -> list[dict[str, object]]:
    mounts: list[dict[str, object]] = [{"name": "cache", "mountPath": CACHE_PATH}]
    if handover.source.path is not None:
        mounts.append({"name": "models", "mountPath": MODELS_PATH, "readOnly": True})
    return mounts


def _shared_memory(node: Node) -> list[dict[str, object]]:
    return [{"name": "shm", "mountPath": "/dev/shm"}] if node.shm_bytes else []  # noqa: S108 - the container's own


def _volumes(handover: Handover, shm_bytes: int) -> list[dict[str, object]]:
    volumes: list[dict[str, object]] = [{"name": "cache", "emptyDir": {}}]
    if handover.source.path is not None:
        volumes.append({"name": "models", "hostPath": {"path": handover.source.path, "type": "Directory"}})
    if shm_bytes:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_bytes // MIB}Mi"}})
    return volumes
