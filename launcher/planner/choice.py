"""Which of several plans is best by the profile's objective, whatever engine each is for.

It must not know how plans are found.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from launcher.domain import Engine, Objective, Speed


class Option(Protocol):
    """A plan in the making that needs no offload: what the objective weighs."""

    @property
    def engine(self) -> Engine:
        """Which engine it is for."""

    @property
    def speed(self) -> Speed:
        """Predicted tokens per second."""

    @property
    def kl(self) -> float:
        """Loss of quality, in nats."""

    @property
    def weights_bytes(self) -> int:
        """Size of the weights."""


AnyOption = TypeVar("AnyOption", bound=Option)


def pick(options: Sequence[AnyOption], objective: Objective) -> AnyOption:
    """Pick by objective: the best quality that is at least half as fast as the fastest, or the fastest.

    Of one engine's plans that lose equally much the largest file is taken (more bits under the same name), of several
    engines' the fastest, of what is equal in that too the first.
    """
    fastest = max(option.speed.generation_tps for option in options)
    if objective is Objective.SPEED:
        return max(options, key=lambda option: (option.speed.generation_tps, -option.kl))
    quick = [option for option in options if option.speed.generation_tps >= fastest / 2]
    best: dict[Engine, AnyOption] = {}
    for option in sorted(quick, key=lambda option: (option.kl, -option.weights_bytes)):
        best.setdefault(option.engine, option)
    return min(best.values(), key=lambda option: (option.kl, -option.speed.generation_tps))


def pareto_front(options: Iterable[AnyOption]) -> list[AnyOption]:
    """Return the options that no other beats in both quality and speed, best quality first."""
    front: list[AnyOption] = []
    for option in sorted(options, key=lambda option: (option.kl, -option.speed.generation_tps)):
        if not front or option.speed.generation_tps > front[-1].speed.generation_tps:
            front.append(option)
    return front
