"""Command lines of a plan's machines in the shell's language; vLLM over several machines without Ray.

``--nnodes``, ``--node-rank``, ``--master-addr`` and ``--headless`` are vLLM 0.32's own. It must not know who runs the shell.
"""

import shlex
from collections.abc import Sequence
from typing import Final

from launcher.errors import UsageError
from launcher.export.handover import MASTER_PORT, Handover, Node

_OWN_ADDRESS: Final = "VLLM_HOST_IP"
"""Where the others reach vLLM's processes of one machine: known only there."""


def serve_alone(node: Node) -> str:
    """Return a line of POSIX shell that becomes the engine of a plan for one machine."""
    return _become(node, (), ())


def serve_together(handover: Handover, *, rank: str, master: str, own: str) -> list[str]:
    """Return lines of POSIX shell that become the engine of one machine of several.

    ``rank``, ``master`` and ``own`` are names of variables: the number of the machine, the address by which the others reach
    the first one, and that by which they reach this one.

    Raises:
        UsageError: vLLM would divide the model over the machines otherwise than planned.
    """
    nodes = handover.nodes
    n_each = len(nodes[0].gpus)
    if any(node.ranks != tuple(range(idx * n_each, (idx + 1) * n_each)) for idx, node in enumerate(nodes)):
        counts = ", ".join(f"{node.name} {len(node.gpus)}" for node in nodes)
        msg = f"vllm without Ray takes as many GPUs of each machine; the plan takes {counts}"
        raise UsageError(msg, help="--to kuberay takes it, or plan for machines that are alike (--inventory 2xNAME)")
    lines = [f'case "${rank}" in']
    for idx, node in enumerate(nodes):
        words = (
            *("--distributed-executor-backend", "mp", "--nnodes", str(len(nodes)), "--node-rank", str(idx)),
            *("--master-port", str(MASTER_PORT), *(("--headless",) if idx else ())),
        )
        addresses = (f'{_OWN_ADDRESS}="${own}"', f'--master-addr "${master}"')
        lines += [f"{idx})", f"  {_become(node, words, addresses)}", "  ;;"]
    return [*lines, f'*) echo "there is no machine number ${rank}" >&2; exit 2 ;;', "esac"]


def _become(node: Node, words: Sequence[str], addresses: Sequence[str]) -> str:
    """Return the line for one machine; ``addresses`` are what shell puts in: a variable's assignment, and an option."""
    env = [f"{name}={shlex.quote(value)}" for name, value in node.env.items() if not addresses or name != _OWN_ADDRESS]
    return " ".join(["exec env", *addresses[:1], *env, shlex.join((*node.argv, *words)), *addresses[1:]])
