"""A plan as a task for SkyPilot, which rents machines of a cloud for it.

Fields are those of SkyPilot 0.14's task. vLLM is installed on the machine; llama.cpp comes with its image, for to compile it
takes long.
"""

from ipaddress import ip_address
from typing import Final

from launcher.domain import Engine
from launcher.errors import UsageError
from launcher.export.handover import MODELS_PATH, Handover, printable
from launcher.export.images import SKYPILOT_GPUS
from launcher.export.shell import serve_alone, serve_together
from launcher.export.yaml_text import Block, to_yaml
from launcher.units import GIB, ceil_div

_DISK_BYTES_BESIDE: Final = 100 * GIB
"""Assumed: the system, drivers, the engine and what it compiles."""


def render(handover: Handover) -> str:
    """Return the text of a ``task.yaml``.

    Raises:
        UsageError: SkyPilot has no name for the planned GPUs, or would rent machines that are not all alike.
    """
    nodes, key = handover.nodes, handover.key_variable
    is_open = not ip_address(handover.host).is_loopback
    resources: dict[str, object] = {
        **_accelerators(handover),
        "memory": f"{max(ceil_div(node.memory_bytes, GIB) for node in nodes)}+",
        "disk_size": ceil_div(handover.weights_bytes + _DISK_BYTES_BESIDE, GIB),
        **({"image_id": f"docker:{handover.image}"} if handover.engine is not Engine.VLLM else {}),
        **({"ports": handover.port} if is_open else {}),
    }
    folder = handover.source.folder
    task: dict[str, object] = {
        "name": handover.slug,
        **({"num_nodes": len(nodes)} if len(nodes) > 1 else {}),
        "resources": resources,
        **({"file_mounts": {MODELS_PATH: folder}} if folder is not None else {}),
        "secrets": {key: None, **({"HF_TOKEN": ""} if handover.source.repository is not None else {})},
        **({"setup": Block(_setup(handover))} if handover.engine is Engine.VLLM else {}),
        "run": Block("\n".join(_run(handover)) + "\n"),
    }
    reach = (
        f"The endpoint is open to the network at port {handover.port}; `sky status --endpoint {handover.port} NAME` says where."
        if is_open
        else f"The endpoint is on the machine's loopback: ssh -N -L {handover.port}:127.0.0.1:{handover.port} NAME"
    )
    comments = (
        *handover.summary,
        f"Run: {key}=$(openssl rand -hex 32) sky launch -c NAME --secret {key} FILE",
        *(("A gated repository wants --secret HF_TOKEN, too.",) if handover.source.repository is not None else ()),
        reach,
    )
    return to_yaml(task, comments=comments)


def _accelerators(handover: Handover) -> dict[str, object]:
    counts = {len(node.gpus) for node in handover.nodes}
    descriptions = {node.description for node in handover.nodes}
    if handover.kind is None:
        return {}
    if len(counts) > 1 or len(descriptions) > 1:
        msg = f"SkyPilot rents machines that are alike; the plan is for {' and '.join(sorted(map(printable, descriptions)))}"
        raise UsageError(msg, help="plan for machines that are alike (--inventory 2xNAME)")
    (description,) = descriptions
    name = SKYPILOT_GPUS.get(description)
    if name is None:
        msg = f"SkyPilot's name for `{printable(description)}` is not known"
        raise UsageError(msg, help=f"plan for one of these: {', '.join(SKYPILOT_GPUS)}")
    return {"accelerators": {name: counts.pop()}}


def _setup(handover: Handover) -> str:
    return f"""\
set -eu
[ -x ~/vllm/bin/vllm ] || python3 -m venv ~/vllm
~/vllm/bin/pip install --quiet vllm=={handover.version}
"""


def _run(handover: Handover) -> list[str]:
    lines = ["set -eu"]
    if handover.engine is Engine.VLLM:
        lines.append('export PATH="$HOME/vllm/bin:$PATH"')
    if len(handover.nodes) == 1:
        return [*lines, serve_alone(handover.nodes[0])]
    return [
        *lines,
        "# SkyPilot's addresses are one a line, machine 0 first.",
        'MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
        'OWN_ADDR=$(echo "$SKYPILOT_NODE_IPS" | sed -n "$((SKYPILOT_NODE_RANK + 1))p")',
        *serve_together(handover, rank="SKYPILOT_NODE_RANK", master="MASTER_ADDR", own="OWN_ADDR"),
    ]
