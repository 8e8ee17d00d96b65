"""A plan as a file for Docker Compose: one machine, one container, the endpoint published on one address.

Fields are the Compose Specification's.
"""

from launcher.domain import DeviceKind
from launcher.errors import UsageError
from launcher.export.handover import CACHE_ENV, CACHE_PATH, MODELS_PATH, Handover, Node, bracketed
from launcher.export.yaml_text import to_yaml
from launcher.units import MIB


def render(handover: Handover) -> str:
    """Return the text of a ``compose.yaml``.

    Raises:
        UsageError: the plan is for several machines.
    """
    if len(handover.nodes) > 1:
        msg = f"the plan is for {len(handover.nodes)} machines, and Compose starts containers on one"
        raise UsageError(msg, help="--to vllm-multinode, skypilot or kuberay take several; or plan for one machine")
    node = handover.nodes[0]
    key = handover.key_variable
    service: dict[str, object] = {
        "image": handover.image,
        "entrypoint": [_literal(node.argv[0])],
        "command": [_literal(word) for word in node.argv[1:]],
        "environment": {
            **{name: _literal(value) for name, value in node.env.items()},
            key: f"${{{key}:?put a key into .env: {key}=...}}",
            **({"HF_TOKEN": "${HF_TOKEN:-}"} if handover.source.repository is not None else {}),
            **CACHE_ENV,
        },
        "ports": [f"{bracketed(handover.host)}:{handover.port}:{handover.port}"],
        "volumes": [*_mounts(handover), {"type": "volume", "source": "cache", "target": CACHE_PATH}],
        "healthcheck": {
            "test": ["CMD", "curl", "--fail", "--silent", f"http://127.0.0.1:{handover.port}/health"],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "1h",
        },
        "restart": "unless-stopped",
        "init": True,
        "stop_grace_period": "30s",
        "security_opt": ["no-new-privileges:true"],
        **_amd_devices(handover.kind),
        **({"shm_size": f"{node.shm_bytes // MIB}m"} if node.shm_bytes else {}),
        "deploy": {"resources": _resources(handover.kind, node)},
    }
    comments = (
        *handover.summary,
        f"Once: echo {key}=$(openssl rand -hex 32) > .env; chmod 600 .env",
        "Then: docker compose up --detach",
        "Memory and GPUs are the plan's; `launch export` writes this file anew when they change.",
    )
    return to_yaml(
        {"name": handover.slug, "services": {"engine": service}, "volumes": {"cache": {}}}, comments=comments
    )


def _literal(text: str) -> str:
    """Return a text that Compose takes as it is: a dollar sign begins a variable there."""
    return text.replace("$", "$$")


def _mounts(handover: Handover) -> list[dict[str, object]]:
    folder = handover.source.folder
    if folder is None:
        return []
    bind = {"create_host_path": False}
    return [
        {"type": "bind", "source": _literal(folder), "target": MODELS_PATH, "read_only": True, "bind": bind},
    ]


def _resources(kind: DeviceKind | None, node: Node) -> dict[str, object]:
    limits = {"memory": f"{node.memory_bytes // MIB}m"}
    if kind is not DeviceKind.CUDA:
        return {"limits": limits}
    which: dict[str, object] = {"device_ids": list(node.gpus)} if node.has_further_gpus else {"count": len(node.gpus)}
    return {"limits": limits, "reservations": {"devices": [{"driver": "nvidia", **which, "capabilities": ["gpu"]}]}}


def _amd_devices(kind: DeviceKind | None) -> dict[str, object]:
    """AMD's driver has one device for all GPUs to compute with."""
    return {"devices": ["/dev/kfd", "/dev/dri"], "group_add": ["video"]} if kind is DeviceKind.ROCM else {}
