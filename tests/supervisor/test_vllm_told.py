"""What is read of vLLM's log, and how it compares with the plan."""

from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from launcher.domain import Footprint, HostUse, MemoryUse, Plan, VllmTerms
from launcher.supervisor.placement import describe, parse_placement
from launcher.supervisor.vllm_told import VllmTold, compare, fewer_tokens, parse_told
from launcher.units import GIB
from tests.fakes.plans import plan_for

_LOG: Final = Path(__file__).parents[1] / "transcripts" / "vllm" / "0.32.0-cpu-kv.log"


def _plan(n_tokens: int, n_parallel: int = 1, weights_bytes: int = 0) -> Plan:
    device = MemoryUse(name="gpu0", weights_bytes=weights_bytes)
    return replace(
        plan_for(),
        n_parallel=n_parallel,
        footprint=Footprint(devices=(device,) if weights_bytes else (), host=HostUse()),
        vllm=VllmTerms(dtype="bfloat16", kv_cache_tokens=n_tokens),
    )


def test_the_recorded_caches_are_read() -> None:
    """Each start of the transcript has one line, with thousands separated."""
    lines = [line for line in _LOG.read_text().splitlines() if "KV cache size" in line]
    told = [parse_told([line]) for line in lines]
    assert told[0] == VllmTold(kv_cache_tokens=2_097_152, max_concurrency=1024.0)
    assert VllmTold(kv_cache_tokens=123_361, max_concurrency=120.47) in told


def test_on_gpus_the_largest_rank_counts() -> None:
    """Weights and cache are told per worker, by the engine's source; the earlier form has two lines for the cache."""
    told = parse_told(
        [
            "(Worker_TP0 pid=7) INFO 11-22 00:31:43 [gpu_model_runner.py:5150] Model loading took 7.5 GiB memory and 3.1 seconds",
            "(Worker_TP1 pid=8) INFO 11-22 00:31:43 [gpu_model_runner.py:5150] Model loading took 7.75 GiB memory and 3.2 seconds",
            "(Worker_TP0 pid=7) INFO 11-22 00:31:50 [gpu_worker.py:760] Available KV cache memory: 12.5 GiB",
            "(EngineCore pid=5) INFO 11-22 00:31:51 [kv_cache_utils.py:1] GPU KV cache size: 204,800 tokens",
            "(EngineCore pid=5) INFO 11-22 00:31:51 [kv_cache_utils.py:2] Maximum concurrency for 8,192 tokens per request: 25.00x",
        ]
    )
    assert told == VllmTold(
        kv_cache_tokens=204_800,
        max_concurrency=25.0,
        weights_bytes=int(7.75 * GIB),
        kv_cache_bytes=int(12.5 * GIB),
    )


def test_other_engines_tell_nothing_of_it() -> None:
    """Lines of llama-server are none of vLLM's."""
    assert parse_told(["llama_kv_cache: size = 24.00 MiB ( 4096 cells)", ""]) is None
    assert parse_placement(["load_tensors: offloaded 10/19 layers to GPU"]).vllm is None


@pytest.mark.parametrize(("planned", "words"), [(2176, "as planned"), (2000, "176 more"), (3000, "824 fewer")])
def test_a_cache_is_compared_to_the_token(planned: int, words: str) -> None:
    """The planner says what the engine should."""
    placement = parse_placement(
        ["CPU KV cache size: 2,176 tokens, Maximum concurrency for 2,048 tokens per request: 1.06x"]
    )
    assert placement.vllm is not None
    found = compare(placement.vllm, _plan(planned))
    assert found is not None
    assert words in found.text
    assert (found.facts["kv_cache_tokens"], found.facts["planned_kv_cache_tokens"]) == (2176, planned)
    assert "2,176 tokens" in describe(placement)


def test_fewer_requests_at_once_than_planned_are_said() -> None:
    """Others then wait, though the engine serves."""
    found = compare(VllmTold(kv_cache_tokens=100, max_concurrency=1.5), _plan(100, n_parallel=2))
    assert found is not None
    assert "1.50 requests of full length at once, of 2" in found.text


def test_weights_are_compared_where_a_device_holds_them() -> None:
    """On a CPU vLLM does not tell them."""
    found = compare(VllmTold(weights_bytes=8 * GIB), _plan(0, weights_bytes=7 * GIB))
    assert found is not None
    assert found.text == "weights 8.0 GiB, planned 7.0 GiB"
    assert compare(VllmTold(weights_bytes=8 * GIB), _plan(0)) is None


def test_a_plan_of_another_engine_is_not_compared() -> None:
    """It has no figure to compare with."""
    assert compare(VllmTold(kv_cache_tokens=5), plan_for()) is None


def test_a_smaller_cache_alone_is_a_lesson() -> None:
    """One as large as planned, a larger one, and an engine without a figure teach nothing."""
    assert fewer_tokens(VllmTold(kv_cache_tokens=99), _plan(100)) == 99
    assert fewer_tokens(VllmTold(kv_cache_tokens=100), _plan(100)) is None
    assert fewer_tokens(VllmTold(kv_cache_tokens=101), _plan(100)) is None
    assert fewer_tokens(VllmTold(max_concurrency=1.0), _plan(100)) is None
    assert fewer_tokens(VllmTold(kv_cache_tokens=5), plan_for()) is None
