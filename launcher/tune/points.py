"""Which settings are tried, in what order of preference, and which of those measured is best. Pure.

It must not know how a point is measured.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import Plan

TIE: Final = 1.01
"""A point must be faster than the plan's own settings by more than this to be taken: below it is noise."""
HOPELESS: Final = 1.3
"""A point slower than the best by this factor is not measured again."""
_UBATCHES: Final = (128, 256, 1024, 2048)
_FEW_CPUS: Final = 8


class Workload(Struct, frozen=True, kw_only=True):
    """What is asked of an engine in one measurement: about ``n_prompt`` tokens in, ``n_generated`` out."""

    n_prompt: int = 512
    n_generated: int = 48


class Sample(Struct, frozen=True, kw_only=True):
    """The rates of one request, how many prompt tokens the engine counted, and when its answer began and ended.

    Both times are seconds since it was sent, by the clock of whoever sent it; ``n_timed`` tokens came between them.
    """

    prompt_tps: float
    generation_tps: float
    n_prompt: int
    n_timed: int
    first_token_s: float
    last_token_s: float


class Point(Struct, frozen=True, kw_only=True):
    """One choice of what a plan leaves to measurement, for the engine of one build."""

    build: str
    n_threads: int
    n_threads_batch: int
    n_batch: int
    n_ubatch: int
    flash_attn: bool


class Rate(Struct, frozen=True, kw_only=True):
    """The median rates of a point, and the seconds of the request they come to."""

    prompt_tps: float
    generation_tps: float
    request_s: float


Samples = Mapping[Point, Sequence[Sample]]


def point_of(plan: Plan, build: str) -> Point:
    """Return the point that a plan stands for."""
    return Point(
        build=build,
        n_threads=plan.n_threads,
        n_threads_batch=plan.n_threads_batch,
        n_batch=plan.n_batch,
        n_ubatch=plan.n_ubatch,
        flash_attn=plan.flash_attn,
    )


def thread_counts(n_cpu: int, n_cpu_physical: int | None) -> tuple[int, ...]:
    """Return the counts worth trying, the usual one first: all cores, one fewer, halves, and one where CPUs are few.

    One fewer matters where another program keeps a core busy: the engine's threads wait for each other in every layer.
    """
    physical = min(n_cpu, n_cpu_physical or n_cpu)
    wanted = [physical, physical - 1, n_cpu, n_cpu - 1, -(-physical // 2), -(-physical // 4)]
    wanted += [1] if n_cpu <= _FEW_CPUS else []
    return tuple(dict.fromkeys(n for n in wanted if n >= 1))


def other_steps(point: Point, n_ctx: int) -> tuple[Point, ...]:
    """Return the point with other steps, the batch following where it must be larger, and with the least batch."""
    steps = (n for n in _UBATCHES if n != point.n_ubatch and n <= n_ctx)
    points = [replace(point, n_ubatch=n, n_batch=max(n, point.n_batch)) for n in steps]
    if point.n_batch > point.n_ubatch:
        points.append(replace(point, n_batch=point.n_ubatch))
    return tuple(points)


def rate_of(samples: Sequence[Sample], n_prompt: int, n_generated: int) -> Rate:
    """Return the medians of a point's samples, and what a request of that size takes at these."""
    prompt = statistics.median(sample.prompt_tps for sample in samples)
    generation = statistics.median(sample.generation_tps for sample in samples)
    return Rate(prompt_tps=prompt, generation_tps=generation, request_s=n_prompt / prompt + n_generated / generation)


def best_threads(rates: Mapping[Point, Rate]) -> tuple[int, int]:
    """Return the thread counts that generated and that read prompts fastest; of equals the first measured."""
    generation = max(rates, key=lambda point: rates[point].generation_tps)
    prompt = max(rates, key=lambda point: rates[point].prompt_tps)
    return generation.n_threads, prompt.n_threads_batch


def survivors(rates: Mapping[Point, Rate]) -> frozenset[Point]:
    """Return the points that are worth another measurement: near the best in the whole request or in either part."""
    fastest = min(rate.request_s for rate in rates.values())
    generation = max(rate.generation_tps for rate in rates.values())
    prompt = max(rate.prompt_tps for rate in rates.values())
    return frozenset(
        point
        for point, rate in rates.items()
        if rate.request_s <= fastest * HOPELESS
        or rate.generation_tps * HOPELESS >= generation
        or rate.prompt_tps * HOPELESS >= prompt
    )


def choose(rates: Mapping[Point, Rate], preferred: Iterable[Point]) -> Point:
    """Return the fastest point by the whole request, or the first preferred one that is as fast but for noise."""
    fastest = min(rates, key=lambda point: rates[point].request_s)
    for point in preferred:
        if point in rates and rates[point].request_s <= rates[fastest].request_s * TIE:
            return point
    return fastest
