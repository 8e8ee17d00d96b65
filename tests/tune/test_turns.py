"""Laws on what requests and turns come to."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import Provenance, Speed
from launcher.measured import COVERAGE
from launcher.tune.points import Sample, Workload
from launcher.tune.turns import Turn, at_load, figure_of, shorten, turn_of

_rates = st.floats(0.01, 1e6)
_N_COVERED = 6
"""Turns from which there is an interval with that coverage: the range of five misses the median in 2 of 32 cases."""
_values = st.lists(_rates, min_size=1, max_size=40)


@st.composite
def _samples(draw: st.DrawFn) -> Sample:
    n_generated = draw(st.integers(2, 500))
    first_s = draw(st.floats(0.001, 100))
    generation_tps = draw(st.floats(0.1, 1e4))
    n_prompt = draw(st.integers(1, 4096))
    return Sample(
        prompt_tps=n_prompt / first_s,
        generation_tps=generation_tps,
        n_prompt=n_prompt,
        n_timed=n_generated - 1,
        first_token_s=first_s,
        last_token_s=first_s + (n_generated - 1) / generation_tps,
    )


def _chance(n: int, low: int, high: int) -> float:
    """How often the ``low``-th to the ``high``-th smallest of ``n`` fair draws hold the median: by trying every case.

    Each value is below the median or above it, one as likely as the other.
    """
    n_held = sum(low <= sum(case) <= high - 1 for case in itertools.product((0, 1), repeat=n))
    return n_held / (1 << n)


@given(_values)
def test_an_interval_is_of_measured_values_around_the_median(values: list[float]) -> None:
    """Both ends were measured, the median is between them, and the order of the turns does not matter."""
    figure = figure_of(values)
    assert figure.low <= figure.median <= figure.high
    assert {figure.low, figure.high} <= set(values)
    assert figure.n_turns == len(values)
    assert figure_of(values[::-1]) == figure


@pytest.mark.parametrize("n", range(1, 13))
def test_the_coverage_told_is_the_true_one_and_the_interval_the_narrowest(n: int) -> None:
    """What is told is what counting every case gives; one value further in on both sides would be too few."""
    figure = figure_of(range(1, n + 1))
    low, high = int(figure.low), int(figure.high)
    assert low + high == n + 1
    assert figure.coverage == pytest.approx(_chance(n, low, high))
    assert (figure.coverage >= COVERAGE) is (n >= _N_COVERED)
    if n < _N_COVERED:
        assert (low, high) == (1, n)
    elif low + 1 <= high - 1:
        assert _chance(n, low + 1, high - 1) < COVERAGE


@given(_values, st.floats(0.1, 100))
def test_a_ratio_is_measured_by_predicted(values: list[float], factor: float) -> None:
    """Twice as fast is a ratio of two; without a prediction there is none."""
    median = figure_of(values).median
    assert figure_of(values, median / factor).ratio == pytest.approx(factor)
    assert figure_of(values).ratio is None


def test_there_is_no_figure_of_nothing() -> None:
    """A median of no turn is an error, not a zero."""
    with pytest.raises(ValueError, match="no median"):
        figure_of([])


@given(_samples())
def test_one_request_has_its_own_rates(sample: Sample) -> None:
    """They may be by the engine's clock, which knows better than ours."""
    turn = turn_of([sample])
    assert (turn.prompt_tps, turn.generation_tps) == (sample.prompt_tps, sample.generation_tps)
    assert (turn.each_generation_tps, turn.first_token_s) == (sample.generation_tps, sample.first_token_s)


@given(_samples(), st.integers(2, 16))
def test_requests_that_run_alike_add_up(sample: Sample, n: int) -> None:
    """N requests with the same times get n times as much done, and each is as fast as alone."""
    turn = turn_of([sample] * n)
    assert turn.prompt_tps == pytest.approx(n * sample.prompt_tps)
    assert turn.generation_tps == pytest.approx(n * sample.generation_tps, rel=1e-6)
    assert turn.each_generation_tps == sample.generation_tps
    assert turn.first_token_s == sample.first_token_s


@given(st.lists(_samples(), min_size=2, max_size=8))
def test_together_is_never_faster_than_the_sum(samples: list[Sample]) -> None:
    """Waiting for each other costs; and all are done no sooner than the slowest alone."""
    turn = turn_of(samples)
    assert turn.generation_tps <= sum(sample.generation_tps for sample in samples) * (1 + 1e-6)
    assert turn.prompt_tps <= sum(sample.prompt_tps for sample in samples) * (1 + 1e-9)
    slowest = max(samples, key=lambda sample: sample.first_token_s)
    assert turn.prompt_tps >= slowest.prompt_tps


def test_tokens_that_come_all_at_once_cannot_be_timed() -> None:
    """An answer of one token each has no rate of generation."""
    sample = Sample(prompt_tps=1, generation_tps=1, n_prompt=1, n_timed=0, first_token_s=1.0, last_token_s=1.0)
    with pytest.raises(ValueError, match="at once"):
        turn_of([sample, sample])


@given(st.integers(8, 1 << 20), st.integers(1, 4096), st.integers(2, 4096), st.floats(1.0, 4.0))
def test_a_workload_fits_the_context(n_ctx: int, n_prompt: int, n_generated: int, tokens_per_word: float) -> None:
    """Prompt and answer have room with a quarter to spare; nothing is made longer, and what has room is not shortened."""
    asked = Workload(n_prompt=n_prompt, n_generated=n_generated)
    short = shorten(asked, n_ctx, tokens_per_word)
    assert short.n_prompt * tokens_per_word + short.n_generated <= math.ceil(n_ctx * 3 / 4)
    assert 1 <= short.n_prompt <= n_prompt
    assert 2 <= short.n_generated <= n_generated
    if n_ctx >= 4 * max(n_prompt * tokens_per_word, n_generated) + 8:
        assert short == asked


@given(
    st.lists(
        st.builds(Turn, prompt_tps=_rates, generation_tps=_rates, each_generation_tps=_rates, first_token_s=_rates),
        min_size=1,
    )
)
def test_the_prediction_stands_beside_one_request_alone(turns: list[Turn]) -> None:
    """It says nothing of several; that of the first token is the prompt's tokens over the prompt's rate."""
    speed = Speed(generation_tps=40.0, prompt_tps=500.0, basis=Provenance.ASSUMED)
    one, many = at_load(1, turns, speed, 250), at_load(4, turns, speed, 250)
    assert (one.prompt_tps.predicted, one.generation_tps.predicted, one.first_token_s.predicted) == (500, 40, 0.5)
    figures = (many.prompt_tps, many.generation_tps, many.each_generation_tps, many.first_token_s)
    assert {(figure.predicted, figure.ratio) for figure in figures} == {(None, None)}
    unknown = at_load(1, turns, Speed(generation_tps=40.0, basis=Provenance.ASSUMED), 250)
    assert (unknown.first_token_s.predicted, unknown.prompt_tps.predicted) == (None, None)
    assert at_load(1, turns, None, 250).generation_tps.predicted is None
