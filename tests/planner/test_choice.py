"""Which of several plans is best, and what is said of it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from launcher.domain import Engine, Objective, Plan, Provenance, Request, Settings, Speed
from launcher.inventory import load_inventory
from launcher.planner.choice import MANY_REQUESTS, NEAR_LOSSLESS, explain, pareto_front, pick
from launcher.planner.fit import decide
from launcher.profiles import load_profile


class _Option(Struct, frozen=True):
    engine: Engine
    quantization: str
    kl: float
    tps: float
    weights_bytes: int = 0

    @property
    def speed(self) -> Speed:
        return Speed(generation_tps=self.tps, basis=Provenance.ASSUMED)


_Q8, _Q4 = _Option(Engine.LLAMA_SERVER, "q8_0", 0.0014, 40.0), _Option(Engine.LLAMA_SERVER, "q4_k_m", 0.028, 70.0)
_BF16, _FP8 = _Option(Engine.VLLM, "bf16", 0.0, 21.0), _Option(Engine.VLLM, "fp8", 0.003, 42.0)
_AWQ = _Option(Engine.VLLM, "awq-int4", 0.03, 75.0)
_EVERY = (_Q8, _Q4, _BF16, _FP8, _AWQ)

_options = st.lists(st.sampled_from(_EVERY), min_size=1, unique=True)
_alike = st.lists(
    st.builds(
        _Option,
        st.sampled_from([Engine.LLAMA_SERVER, Engine.VLLM]),
        st.just("drawn"),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.sampled_from([9.0, 10.0, 20.0]),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=6,
)
"""Options of which many are equal in something."""


@given(_options, st.sampled_from(Objective), st.integers(1, 300))
def test_a_pick_is_among_the_options_and_is_explained(
    options: list[_Option], objective: Objective, n_parallel: int
) -> None:
    """Whatever the objective; the words name its engine, and there are some wherever another engine had an option."""
    best = pick(options, objective, n_parallel)
    assert best in options
    words = explain(best, options, objective, n_parallel)
    assert words.startswith(best.engine) or not words
    if len({option.engine for option in options}) > 1:
        assert words


@given(_options, st.sampled_from(Objective), st.integers(MANY_REQUESTS, 300))
def test_many_requests_go_to_vllm_where_it_loses_next_to_nothing(
    options: list[_Option], objective: Objective, n_parallel: int
) -> None:
    """A form of 4 bits is no reason to leave llama.cpp; one that is nearly lossless is."""
    fine = [option for option in options if option.engine is Engine.VLLM and option.kl <= NEAR_LOSSLESS]
    best = pick(options, objective, n_parallel)
    assert best in fine if fine else best == pick(options, objective, 1)


@given(_options, st.integers(1, MANY_REQUESTS - 1))
def test_few_requests_are_weighed_as_one(options: list[_Option], n_parallel: int) -> None:
    """The least loss that is at least half as fast as the fastest."""
    best = pick(options, Objective.QUALITY, n_parallel)
    fastest = max(option.tps for option in options)
    assert best.tps >= fastest / 2
    assert all(option.kl >= best.kl for option in options if option.tps >= fastest / 2)


@given(_alike)
def test_of_what_loses_equally_much_the_larger_file_or_the_faster_engine_is_taken(options: list[_Option]) -> None:
    """Of one engine's options the one with more bits, of several engines' the one that generates faster."""
    best = pick(options, Objective.QUALITY, 1)
    quick = [option for option in options if option.tps >= max(option.tps for option in options) / 2]
    equal = [option for option in quick if option.kl == best.kl]
    assert best.kl == min(option.kl for option in quick)
    assert best.weights_bytes == max(option.weights_bytes for option in equal if option.engine is best.engine)
    for engine in {option.engine for option in equal} - {best.engine}:
        largest = max(option.weights_bytes for option in equal if option.engine is engine)
        first = next(option for option in equal if option.engine is engine and option.weights_bytes == largest)
        assert best.tps >= first.tps


@given(_alike)
def test_the_fastest_is_taken_by_speed_and_among_those_the_best(options: list[_Option]) -> None:
    """Loss decides only between equally fast ones."""
    best = pick(options, Objective.SPEED, 1)
    assert (best.tps, -best.kl) == max((option.tps, -option.kl) for option in options)


@given(_alike)
def test_a_front_has_what_nothing_beats_and_nothing_else(options: list[_Option]) -> None:
    """Each is worse in quality than the one before, and faster; whatever was left out is no better than one of them."""
    front = pareto_front(options)
    for better, faster in pairwise(front):
        assert better.kl < faster.kl
        assert better.tps < faster.tps
    assert all(any(kept.kl <= option.kl and kept.tps >= option.tps for kept in front) for option in options)


@pytest.mark.parametrize(
    ("best", "options", "objective", "n_parallel", "said"),
    [
        (_BF16, (_Q8, _BF16), Objective.QUALITY, 1, "bf16 loses less than q8_0 with llama-server"),
        (_Q8, (_Q8, _FP8), Objective.QUALITY, 1, "q8_0 loses less than fp8 with vllm"),
        (_FP8, (_Q8, _FP8), Objective.QUALITY, 8, "for 8 requests at once"),
        (_AWQ, (_Q8, _AWQ), Objective.SPEED, 1, "about 75 tokens/s for one request, 40 with llama-server at q8_0"),
        (
            _Q4,
            (_Q4, _BF16),
            Objective.QUALITY,
            1,
            "bf16 with vllm loses less, but generates about 21 tokens/s, less than half",
        ),
        (_AWQ, (_AWQ,), Objective.QUALITY, 1, "no other engine holds it whole"),
        (_Q8, (_Q8,), Objective.QUALITY, 1, ""),
    ],
)
def test_the_reason_is_the_one_that_decided(
    best: _Option, options: tuple[_Option, ...], objective: Objective, n_parallel: int, said: str
) -> None:
    """Loss, the sum of many requests, speed, or that nothing else fits."""
    assert pick(options, objective, n_parallel) == best
    words = explain(best, options, objective, n_parallel)
    assert said in words
    assert bool(words) is bool(said)


def test_concurrency_decides_on_a_whole_machine() -> None:
    """One request on an RTX 4090 is llama.cpp's at 8 bits; of sixteen vLLM's at FP8, unless another engine was asked for."""
    machine, profile = load_inventory("rtx4090"), load_profile("llama3.1-8b")

    def engine(**fixed: object) -> Engine:
        found = decide(Request(profile=profile, settings=Settings(n_ctx_per_request=4096, **fixed)), machine)  # type: ignore[arg-type]  # names of fields, given as words
        assert isinstance(found, Plan)
        return found.engine

    assert engine() is Engine.LLAMA_SERVER
    assert engine(n_parallel=16) is Engine.VLLM
    assert engine(n_parallel=16, engine=Engine.LLAMA_SERVER) is Engine.LLAMA_SERVER
