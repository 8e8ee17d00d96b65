"""The statistics of `make soak`, on series whose slope is known."""

import random
import statistics
from collections.abc import Callable

import pytest

from benchmarks.trend import N_BINS, N_LEAST, OfSpan, Trend, Verdict, bound_per_h, fit_trend

_N = 1200
_STEP_S = 5.0
Noise = Callable[[random.Random], list[float]]


def _dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - noise, no secrets


def _white(dice: random.Random) -> list[float]:
    return [dice.gauss(0.0, 0.5) for _ in range(_N)]


def _slow(dice: random.Random) -> list[float]:
    """Wander about zero and come back within minutes, as memory around faults does."""
    value, values = 0.0, []
    for _ in range(_N):
        value = 0.97 * value + dice.gauss(0.0, 0.1)
        values.append(value)
    return values


def _bursts(dice: random.Random) -> list[float]:
    """Stand at zero, and high for a quarter of a minute now and then, as descriptors under a storm do."""
    values = [0.0] * _N
    for _ in range(30):
        start = dice.randrange(_N - 3)
        values[start : start + 3] = [100.0] * 3
    return values


def _trend(noise: list[float], per_h: float, of_span: OfSpan = statistics.median, n_bins: int = N_BINS) -> Trend:
    points = [(idx * _STEP_S, 60.0 + per_h * idx * _STEP_S / 3600 + each) for idx, each in enumerate(noise)]
    found = fit_trend(points, of_span, n_bins)
    assert found is not None
    return found


@pytest.mark.parametrize("noise", [_white, _slow])
@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_found(noise: Noise, seed: int) -> None:
    """A rise well above the bound is called one, and its slope is in the interval, whatever surrounds it."""
    trend = _trend(noise(_dice(seed)), 3.0)
    assert trend.against(1.0) is Verdict.RISES
    assert trend.low <= 3.0 <= trend.high


@pytest.mark.parametrize("noise", [_white, _slow])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_leak(noise: Noise, seed: int) -> None:
    """What only goes to and fro is flat."""
    assert _trend(noise(_dice(seed)), 0.0).against(1.0) is Verdict.FLAT


@pytest.mark.parametrize(("per_h", "verdict"), [(0.0, Verdict.FLAT), (3.0, Verdict.RISES)])
@pytest.mark.parametrize("seed", range(5))
def test_bursts_hide_nothing_where_the_least_counts(seed: int, per_h: float, verdict: Verdict) -> None:
    """What stays when each burst is over rises, or does not."""
    assert _trend(_bursts(_dice(seed)), per_h, min, N_LEAST).against(1.0) is verdict


@pytest.mark.parametrize(("noise", "least"), [(_white, 90), (_slow, 90)])
def test_the_interval_covers_what_it_says(noise: Noise, least: int) -> None:
    """The true slope is in the interval of 95 % in at least nine of ten of 100 series, also where samples resemble their neighbours."""
    dice = _dice(1)
    trends = [_trend(noise(dice), 0.5) for _ in range(100)]
    assert sum(trend.low <= 0.5 <= trend.high for trend in trends) >= least


def test_neighbours_that_resemble_each_other_widen_the_interval() -> None:
    """Samples in another order have the same spread and tell more: the interval is narrower."""
    dice = _dice(1)
    slow = _slow(dice)
    mixed = dice.sample(slow, len(slow))
    ordered, shuffled = _trend(slow, 0.0), _trend(mixed, 0.0)
    assert ordered.high - ordered.low > 2 * (shuffled.high - shuffled.low)


def test_a_fall_is_flat() -> None:
    """Memory that is given back is no leak."""
    assert _trend(_white(_dice(1)), -5.0).against(1.0) is Verdict.FLAT


def test_the_same_value_all_the_time() -> None:
    """No spread, no slope, no width."""
    trend = _trend([0.0] * _N, 0.0)
    assert trend.slope == pytest.approx(0.0, abs=1e-9)
    assert trend.high - trend.low == pytest.approx(0.0, abs=1e-6)


def test_one_large_step_is_not_called_flat() -> None:
    """Four MiB taken once in the middle of 100 minutes are above the bound of one an hour, and not passed over."""
    noise = [0.0] * (_N // 2) + [4.0] * (_N // 2)
    assert _trend(noise, 0.0).against(1.0) is not Verdict.FLAT


def test_too_few_samples_have_no_trend() -> None:
    """Nineteen samples are less than two for each block."""
    assert fit_trend([(float(idx), 1.0) for idx in range(19)]) is None


@pytest.mark.parametrize(("span_s", "bound"), [(7200.0, 1.0), (3600.0, 1.0), (600.0, 6.0), (0.0, 1.0)])
def test_over_a_short_time_one_step_is_allowed(span_s: float, bound: float) -> None:
    """Below an hour the bound is one step in the whole span."""
    assert bound_per_h(1.0, 1.0, span_s) == pytest.approx(bound)
