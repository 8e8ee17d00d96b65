"""A plan as a shell script that starts vLLM on each of several machines, without Ray.

The same script is run on every machine; the place of each and the addresses are variables, for no inventory has them.
"""

from launcher.domain import Engine
from launcher.errors import UsageError
from launcher.export.handover import Handover, bracketed, printable
from launcher.export.shell import serve_together


def render(handover: Handover) -> str:
    """Return the text of the script.

    Raises:
        UsageError: the plan is not vLLM's, or for one machine only.
    """
    if handover.engine is not Engine.VLLM:
        msg = f"the plan is for {handover.engine}, and only vllm spans machines"
        raise UsageError(msg, help="plan it with --engine vllm, or give --to compose or quadlet")
    if len(handover.nodes) == 1:
        msg = "the plan is for one machine"
        raise UsageError(
            msg, help="--to compose, quadlet or skypilot start it there; or plan for several: --inventory 2xNAME"
        )
    places = ", ".join(f"{idx} on {printable(node.name)}" for idx, node in enumerate(handover.nodes))
    key = handover.key_variable
    lines = [
        "#!/bin/sh",
        *(f"# {fact}" for fact in handover.summary),
        f"# Wants vllm {handover.version} on PATH of each machine, and the weights or a network there:",
        "#   NODE_RANK     its number: " + places,
        "#   MASTER_ADDR   an address of machine 0 by which the others reach it",
        "#   OWN_ADDR      an address of this machine by which the others reach it",
        f"#   {key}  a key, on machine 0; in the environment, so that nobody reads it in a list of processes",
        f"# The endpoint is http://{bracketed(handover.host)}:{handover.port}/v1 of machine 0. What the machines say to each other is not",
        "# encrypted, and who reaches their ports can take them over: a private network alone.",
        "set -eu",
        ': "${NODE_RANK:?the number of this machine}" "${MASTER_ADDR:?the address of machine 0}" "${OWN_ADDR:?the address of this machine}"',
        f'[ "$NODE_RANK" != 0 ] || : "${{{key}:?a key for clients of the endpoint}}"',
        *serve_together(handover, rank="NODE_RANK", master="MASTER_ADDR", own="OWN_ADDR"),
    ]
    return "\n".join(lines) + "\n"
