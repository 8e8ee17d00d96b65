"""Which of several plans is best by the profile's objective, whatever engine each is for.

It must not know how plans are found.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

from launcher.domain import Engine, Objective, Speed

MANY_REQUESTS: Final = 8
"""From so many requests at once their sum counts, not the speed of one; assumed."""
NEAR_LOSSLESS: Final = 0.01
"""Nats of loss that are given for it: a little above q6_k's, below q5_k_m's. vLLM's throughput was seen to grow with the
requests while llama.cpp's stayed flat (published: Llama 3.1 8B on one H200, developers.redhat.com, 30 September 2025)."""


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

    @property
    def quantization(self) -> str:
        """The written name of the weights' quantization."""


AnyOption = TypeVar("AnyOption", bound=Option)


def pick(options: Sequence[AnyOption], objective: Objective, n_parallel: int) -> AnyOption:
    """Pick by objective: the best quality that is at least half as fast as the fastest, or the fastest.

    For many requests at once vLLM's are preferred that lose next to nothing. Of one engine's plans that lose equally much
    the largest file is taken (more bits under the same name), of several engines' the fastest, of what is equal in that
    too the first.
    """
    if n_parallel >= MANY_REQUESTS:
        options = [option for option in options if _is_for_many(option)] or options
    fastest = max(option.speed.generation_tps for option in options)
    if objective is Objective.SPEED:
        return max(options, key=lambda option: (option.speed.generation_tps, -option.kl))
    quick = [option for option in options if option.speed.generation_tps >= fastest / 2]
    best: dict[Engine, AnyOption] = {}
    for option in sorted(quick, key=lambda option: (option.kl, -option.weights_bytes)):
        best.setdefault(option.engine, option)
    return min(best.values(), key=lambda option: (option.kl, -option.speed.generation_tps))


def _is_for_many(option: Option) -> bool:
    return option.engine is Engine.VLLM and option.kl <= NEAR_LOSSLESS


def explain(best: Option, options: Sequence[Option], objective: Objective, n_parallel: int) -> str:
    """Say why the engine of the best option was chosen; nothing where no other engine had any."""
    others = [option for option in options if option.engine is not best.engine]
    if not others:
        return f"{best.engine}: no other engine holds it whole" if best.engine is Engine.VLLM else ""
    other = pick(others, objective, n_parallel)
    if n_parallel >= MANY_REQUESTS and _is_for_many(best):
        return f"{best.engine} for {n_parallel} requests at once: their sum grows with them, with {other.engine} it hardly does"
    rates = f"about {best.speed.generation_tps:.0f} tokens/s for one request, {other.speed.generation_tps:.0f} with {other.engine}"
    if objective is not Objective.SPEED and best.kl < other.kl:
        loss = f"loses less than {other.quantization} with {other.engine} (KL divergence {best.kl:.2g}, not {other.kl:.2g})"
        return f"{best.engine}: {best.quantization} {loss}"
    if objective is not Objective.SPEED and best.kl > other.kl:
        fastest = max(option.speed.generation_tps for option in options)
        slow = f"{other.quantization} with {other.engine} loses less, but generates about {other.speed.generation_tps:.0f} tokens/s"
        return f"{best.engine}: {slow}, less than half the fastest, {fastest:.0f}"
    return f"{best.engine}: {rates} at {other.quantization}"


def pareto_front(options: Iterable[AnyOption]) -> list[AnyOption]:
    """Return the options that no other beats in both quality and speed, best quality first."""
    front: list[AnyOption] = []
    for option in sorted(options, key=lambda option: (option.kl, -option.speed.generation_tps)):
        if not front or option.speed.generation_tps > front[-1].speed.generation_tps:
            front.append(option)
    return front
