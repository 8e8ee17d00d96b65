"""What the requests of several turns come to: rates of a turn, medians with intervals, ratios to the prediction. Pure.

It must not know how a request is measured.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import Speed
from launcher.measured import COVERAGE, AtLoad, Figure
from launcher.tune.points import Sample, Workload

_SHARE_OF_CONTEXT: Final = 4
"""A prompt takes at most half of a request's context, an answer a quarter."""


class Turn(Struct, frozen=True, kw_only=True):
    """What one turn reached: rates of its requests together, and of the median one of them."""

    prompt_tps: float
    generation_tps: float
    each_generation_tps: float
    first_token_s: float


def shorten(workload: Workload, n_ctx_per_request: int, tokens_per_word: float) -> Workload:
    """Return the workload as far as a request's context has room for it, its prompt being of ``n_prompt`` words."""
    part = max(2, n_ctx_per_request // _SHARE_OF_CONTEXT)
    n_words = max(1, int(2 * part / tokens_per_word))
    return replace(
        workload, n_prompt=min(workload.n_prompt, n_words), n_generated=max(2, min(workload.n_generated, part))
    )


def turn_of(samples: Sequence[Sample]) -> Turn:
    """Return what requests reached that were sent at the same moment.

    A single one has its own rates. Of several together: all prompt tokens until the last of them began to be answered; all tokens
    but the first of each, from the first of all to the last of all. That is what the engine got done, waiting included.

    Raises:
        ValueError: no time passed between the first token of all and the last.
    """
    if len(samples) == 1:
        prompt, generation = samples[0].prompt_tps, samples[0].generation_tps
    else:
        begun_s = [sample.first_token_s for sample in samples]
        generating_s = max(sample.last_token_s for sample in samples) - min(begun_s)
        if generating_s <= 0:
            message = "all tokens came at once"
            raise ValueError(message)
        prompt = sum(sample.n_prompt for sample in samples) / max(begun_s)
        generation = sum(sample.n_timed for sample in samples) / generating_s
    return Turn(
        prompt_tps=prompt,
        generation_tps=generation,
        each_generation_tps=statistics.median(sample.generation_tps for sample in samples),
        first_token_s=statistics.median(sample.first_token_s for sample in samples),
    )


def figure_of(values: Sequence[float], predicted: float | None = None) -> Figure:
    """Return the median of independent values with its interval between two of them, which assumes no distribution.

    The k-th smallest and the k-th largest of n hold the median unless fewer than k values fall on one side of it, each side
    being as likely as the other: 1 - 2 P(B < k), B binomial (n, 1/2) (the sign test turned round; Conover, Practical
    Nonparametric Statistics, section 3.2). The largest k with enough coverage is taken, or the range.

    Raises:
        ValueError: there is no value.
    """
    ordered = sorted(values)
    n = len(ordered)
    median = statistics.median(ordered)
    k = max((k for k in range(1, (n + 1) // 2 + 1) if _coverage(n, k) >= COVERAGE), default=1)
    return Figure(
        median=median,
        low=ordered[k - 1],
        high=ordered[n - k],
        coverage=_coverage(n, k),
        n_turns=n,
        predicted=predicted,
        ratio=median / predicted if predicted else None,
    )


def _coverage(n: int, k: int) -> float:
    n_outside = 2 * sum(math.comb(n, below) for below in range(k))
    return max(0.0, 1.0 - n_outside / (1 << n))


def at_load(n_requests: int, turns: Sequence[Turn], speed: Speed | None, n_prompt: int) -> AtLoad:
    """Return what the turns at one load come to; ``speed`` is of one request, and so compared with one request alone.

    Raises:
        ValueError: there is no turn.
    """
    of_one = speed if n_requests == 1 else None
    prompt_tps = of_one.prompt_tps if of_one is not None else None
    generation_tps = of_one.generation_tps if of_one is not None else None
    return AtLoad(
        n_requests=n_requests,
        prompt_tps=figure_of([turn.prompt_tps for turn in turns], prompt_tps),
        generation_tps=figure_of([turn.generation_tps for turn in turns], generation_tps),
        each_generation_tps=figure_of([turn.each_generation_tps for turn in turns], generation_tps),
        first_token_s=figure_of([turn.first_token_s for turn in turns], n_prompt / prompt_tps if prompt_tps else None),
    )
