"""Tell whether a series of measurements rises: its slope, an interval for it, a verdict against a bound.

It must not know what was measured. Pure.

The slope is that of least squares. What surrounds it is no white noise: a heap grows in steps and keeps them, a fault is
felt for minutes; the usual interval, which takes every sample for news, would be far too narrow. So the interval comes
from a bootstrap of whole blocks of residuals (Künsch 1989, "The jackknife and the bootstrap for general stationary
observations"): the series is cut into ``N_BLOCKS`` stretches, each of which may have been any stretch of that length.
The variance of the slope under that needs no drawing of lots, it is a sum that can be written down; so the same series
always gives the same interval. It is widened as few blocks demand: by Student's t, with one degree of freedom less for
each of the line's two parameters.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, TypeAlias

from launcher.domain import Noun

N_BLOCKS: Final = 10
N_LEAST: Final = 2 * N_BLOCKS
"""Spans: two a block."""
_T: Final = 2.306
"""Student's t, 97.5 %, with N_BLOCKS - 2 degrees of freedom."""
N_BINS: Final = 100
"""A series is first reduced to one value for each of so many equal spans of time: a burst of some seconds is no trend.
Of a short series the spans are fewer, for some samples to be in each."""
_N_PER_BIN: Final = 4
_HOUR_S: Final = 3600.0
OfSpan: TypeAlias = Callable[[Sequence[float]], float]


class Verdict(StrEnum):
    """What an interval says of a bound."""

    FLAT = "flat"
    """All of the interval is below the bound."""
    RISES = "rises"
    """All of it is above."""
    UNDECIDED = "undecided"
    """The bound is in it: measured too short, or too noisy."""


class Trend(Noun, frozen=True):
    """A slope with its 95 % interval, per hour, in the unit of what was measured; the medians of both ends' tenths."""

    slope: float
    low: float
    high: float
    begins: float
    ends: float
    span_s: float
    n_samples: int

    def against(self, bound: float) -> Verdict:
        """Return what the interval says of a bound per hour."""
        if self.high < bound:
            return Verdict.FLAT
        return Verdict.RISES if self.low > bound else Verdict.UNDECIDED


def fit_trend(
    points: Sequence[tuple[float, float]], of_span: OfSpan = statistics.median, n_bins: int = N_BINS
) -> Trend | None:
    """Return the trend of points (seconds, value) in the order of time; ``None`` where they are too few to tell.

    ``of_span`` reduces the values of a span: the median, or ``min`` where only what stays after every burst counts. Of
    these the longer spans have one that is calm at some moment: fewer ``n_bins`` for them.
    """
    if len(points) < N_LEAST:
        return None
    times, values = _reduce(points, of_span, n_bins)
    n = len(times) - len(times) % N_BLOCKS
    if n < N_LEAST:
        return None
    times, values = times[-n:], values[-n:]
    middle = statistics.fmean(times)
    spread = math.fsum((time - middle) ** 2 for time in times)
    weights = [(time - middle) / spread for time in times]
    slope = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
    level = statistics.fmean(values)
    residuals = [value - level - slope * (time - middle) for time, value in zip(times, values, strict=True)]
    half = _T * math.sqrt(_variance(weights, residuals) * N_BLOCKS / (N_BLOCKS - 2))
    tenth = max(1, len(points) // N_BLOCKS)
    return Trend(
        slope=slope * _HOUR_S,
        low=(slope - half) * _HOUR_S,
        high=(slope + half) * _HOUR_S,
        begins=statistics.median(value for _, value in points[:tenth]),
        ends=statistics.median(value for _, value in points[-tenth:]),
        span_s=points[-1][0] - points[0][0],
        n_samples=len(points),
    )


def bound_per_h(per_h: float, step: float, span_s: float) -> float:
    """Return the bound for a span: below an hour, one ``step`` in all of it is allowed, however short it was.

    A heap grows by steps of a certain size. Over a few minutes one of them is many an hour, and says nothing.
    """
    return max(per_h, step * _HOUR_S / span_s) if span_s > 0 else per_h


def _reduce(points: Sequence[tuple[float, float]], of_span: OfSpan, n_bins: int) -> tuple[list[float], list[float]]:
    """Return times and values of at most ``n_bins`` spans, a span without any sample left out."""
    first, last = points[0][0], points[-1][0]
    n_bins = min(n_bins, max(N_LEAST, len(points) // _N_PER_BIN))
    width = (last - first) / n_bins or 1.0
    bins: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        bins.setdefault(min(n_bins - 1, int((point[0] - first) / width)), []).append(point)
    kept = [bins[number] for number in sorted(bins)]
    times = [statistics.fmean(time for time, _ in span) for span in kept]
    return times, [of_span([value for _, value in span]) for span in kept]


def _variance(weights: Sequence[float], residuals: Sequence[float]) -> float:
    """Return the variance of the slope when each block of residuals is any of the series' stretches of its length.

    The blocks are independent, so their variances add up; each is over all stretches that might stand there.
    """
    length = len(residuals) // N_BLOCKS
    stretches = [residuals[start : start + length] for start in range(len(residuals) - length + 1)]
    total = 0.0
    for start in range(0, len(residuals), length):
        block = weights[start : start + length]
        total += statistics.pvariance([_dot(block, stretch) for stretch in stretches])
    return total


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))
