"""A plan as the file by which another program serves it: one module per program, all from one ``Handover``. Pure."""

from enum import StrEnum
from typing import assert_never

from launcher.domain import Address, Machines, Plan
from launcher.export import compose, kuberay, multinode, quadlet, skypilot
from launcher.export.handover import Surroundings, hand_over


class Target(StrEnum):
    """The programs that a plan can be handed over to."""

    KUBERAY = "kuberay"
    SKYPILOT = "skypilot"
    COMPOSE = "compose"
    QUADLET = "quadlet"
    VLLM_MULTINODE = "vllm-multinode"


def export(plan: Plan, machines: Machines, target: Target, *, weights: str | None = None, address: Address) -> str:
    """Return the whole text of the file that serves ``plan``, made for ``machines``, under ``target``.

    ``weights`` is the path of the weights where the file will be used; ``None`` takes what the plan's artifact says: a path,
    else a repository. ``address`` is where the endpoint is to be reached, on loopback unless told otherwise.

    Raises:
        UsageError: the target cannot express the plan.
    """
    is_container = target in {Target.COMPOSE, Target.QUADLET}
    is_bare = target is Target.VLLM_MULTINODE
    around = Surroundings(has_own_gpus=not is_bare, has_mounts=not is_bare, is_container=is_container)
    handover = hand_over(plan, machines, weights=weights, address=address, around=around)
    match target:
        case Target.KUBERAY:
            return kuberay.render(handover, plan)
        case Target.SKYPILOT:
            return skypilot.render(handover)
        case Target.COMPOSE:
            return compose.render(handover)
        case Target.QUADLET:
            return quadlet.render(handover)
        case Target.VLLM_MULTINODE:
            return multinode.render(handover)
        case _:
            assert_never(target)
