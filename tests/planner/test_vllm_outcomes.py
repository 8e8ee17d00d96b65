"""The planner's word against published starts of vLLM; ``python -m benchmarks.vllm_outcomes`` prints them."""

from benchmarks.vllm_outcomes import AIM, judge_all, share


def test_it_agrees_with_eleven_of_twelve_published_outcomes() -> None:
    """Served or refused, at the settings that each report had."""
    pairs = [start for start in judge_all() if start.is_counted]
    assert len(pairs) >= 12
    assert len({start.pair for start in pairs}) == len(pairs)
    assert sum(not start.served for start in pairs) >= 4
    assert sum(start.served for start in pairs) >= 4
    assert share(pairs) >= AIM


def test_where_it_disagrees_is_known() -> None:
    """Two of releases before 0.8, which divide memory otherwise, and two that ran out although their cache had room."""
    assert {start.pair for start in judge_all() if not start.agrees} == {
        "llama2-7b bf16, 1 x A2",
        "deepseek-coder-33b bf16, 2 x L40",
        "qwen3-30b-a3b bf16, 4 x A10",
        "qwen3-coder-30b-a3b fp8, 8 x 24 GB, Ampere",
    }


def test_what_was_served_would_be_planned_too() -> None:
    """With settings of the planner's own, margins included: of what it agrees fits, nothing is refused."""
    agreed = [start for start in judge_all() if start.served and start.agrees]
    assert [start.own_refusal for start in agreed] == [None] * len(agreed)
