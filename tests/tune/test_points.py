"""Which points are tried and chosen."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.tune.points import (
    TIE,
    Point,
    Rate,
    Sample,
    best_threads,
    choose,
    other_steps,
    rate_of,
    survivors,
    thread_counts,
)

_POINT = Point(build="b", n_threads=4, n_threads_batch=4, n_batch=2048, n_ubatch=512, flash_attn=True)


def _rate(prompt_tps: float, generation_tps: float) -> Rate:
    sample = Sample(
        prompt_tps=prompt_tps,
        generation_tps=generation_tps,
        n_prompt=512,
        n_timed=47,
        first_token_s=512 / prompt_tps,
        last_token_s=512 / prompt_tps + 47 / generation_tps,
    )
    return rate_of([sample], 512, 48)


@given(st.integers(1, 256), st.one_of(st.none(), st.integers(1, 256)))
def test_thread_counts_begin_with_the_cores_and_stay_within_the_cpus(n_cpu: int, n_physical: int | None) -> None:
    """The usual count first, one fewer among the rest, none twice, few in all."""
    counts = thread_counts(n_cpu, n_physical)
    usual = min(n_cpu, n_physical or n_cpu)
    assert counts[0] == usual
    assert usual == 1 or usual - 1 in counts
    assert len(set(counts)) == len(counts) <= 7
    assert all(1 <= n <= n_cpu for n in counts)


@given(st.integers(256, 32768))
def test_steps_fit_the_context_and_the_batch_holds_them(n_ctx: int) -> None:
    """No new step exceeds the context, none its batch; the present point is not repeated; the least batch is tried."""
    for point in (_POINT, replace(_POINT, n_batch=512)):
        points = other_steps(point, n_ctx)
        assert all(other.n_ubatch <= other.n_batch for other in points)
        assert all(other.n_ubatch <= n_ctx for other in points if other.n_ubatch != point.n_ubatch)
        assert point not in points
        assert (replace(point, n_batch=512) in points) is (point.n_batch > 512)


_rates = st.dictionaries(
    st.builds(
        Point,
        build=st.just("b"),
        n_threads=st.integers(1, 8),
        n_threads_batch=st.integers(1, 8),
        n_batch=st.just(2048),
        n_ubatch=st.just(512),
        flash_attn=st.booleans(),
    ),
    st.builds(_rate, st.floats(1, 1e4), st.floats(1, 1e3)),
    min_size=1,
)


@given(_rates)
def test_the_best_survives_and_is_chosen(rates: dict[Point, Rate]) -> None:
    """Without a preference the fastest request wins; a preferred point wins only within the tie."""
    fastest = min(rate.request_s for rate in rates.values())
    assert rates[choose(rates, ())].request_s == fastest
    assert choose(rates, ()) in survivors(rates)
    for preferred, rate in rates.items():
        chosen = choose(rates, [preferred])
        assert rates[chosen].request_s <= fastest * TIE
        if rate.request_s <= fastest * TIE:
            assert chosen == preferred


def test_threads_are_chosen_apart_for_prompts_and_generation() -> None:
    """Two threads may read prompts faster while one generates faster: a core kept busy by another program."""
    one, two = replace(_POINT, n_threads=1, n_threads_batch=1), replace(_POINT, n_threads=2, n_threads_batch=2)
    rates = {one: _rate(250, 26), two: _rate(300, 4)}
    assert best_threads(rates) == (1, 2)
    assert survivors(rates) == {one, two}


def test_a_hopeless_point_is_dropped() -> None:
    """What is much slower in the whole request and in both parts is not measured again."""
    slow = replace(_POINT, n_threads=1)
    assert survivors({_POINT: _rate(300, 30), slow: _rate(200, 20)}) == {_POINT}
