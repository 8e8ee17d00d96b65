"""The JSON of ``launch plan``, and the schema that is promised for it."""

import json
import os
from pathlib import Path

import jsonschema
import pytest
from msgspec.structs import replace

from launcher.domain import HostUse, MemoryUse, Plan, Refusal, Request
from launcher.inventory import load_inventory
from launcher.planner.advice import plan
from launcher.profiles import load_profile
from launcher.render.plan import outcome_json, outcome_schema, render_outcome

_SCHEMA = Path(__file__).parents[2] / "docs" / "plan.schema.json"


def test_the_schema_file_is_the_code_s() -> None:
    """``docs/plan.schema.json`` is what the nouns say; ``make golden`` rewrites it."""
    if os.environ.get("LAUNCHER_GOLDEN"):
        _SCHEMA.write_text(outcome_schema())
    assert _SCHEMA.read_text() == outcome_schema()


@pytest.mark.parametrize(("model", "kind"), [("gemma2-27b", "plan"), ("llama3.1-405b", "refusal")])
def test_documents_keep_to_the_schema(model: str, kind: str) -> None:
    """A plan and a refusal are both valid, and neither is valid as the other."""
    document = json.loads(outcome_json(plan(Request(profile=load_profile(model)), load_inventory("rtx4090"))))
    jsonschema.validate(document, json.loads(outcome_schema()))
    assert set(document) == {"schema_version", kind}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema_version": 2, kind: {}}, json.loads(outcome_schema()))


@pytest.mark.parametrize("model", ["gemma3-270m", "gemma2-27b", "gpt-oss-120b", "llama3.1-70b"])
@pytest.mark.parametrize("machine", ["rtx4090", "cpu-64g", "8xh100", "t4"])
def test_a_plan_fits_80_columns_without_colour(model: str, machine: str) -> None:
    """Every line but the head; each bar is a whole line of letters, and has one of each part that is there.

    Equal neighbours share a bar.
    """
    request = Request(profile=load_profile(model), force=True)
    outcome = plan(request, load_inventory(machine))
    text = render_outcome(outcome)
    assert "\x1b" not in text
    if isinstance(outcome, Refusal):
        return
    assert max(len(line) for line in text.splitlines()[1:]) <= 80
    bars = [line.strip() for line in text.splitlines() if line.startswith("  [")]
    assert {len(bar) for bar in bars} == {76}
    uses: list[MemoryUse | HostUse] = [*outcome.footprint.devices, outcome.footprint.host]
    first, last = uses[0], uses[-1]
    assert len(bars) <= len(uses)
    for bar, use in zip((bars[0], bars[-1]), (first, last), strict=True):
        parts = {"w": use.weights_bytes, "k": use.kv_cache_bytes, "c": use.compute_bytes}
        assert {letter for letter, n_bytes in parts.items() if n_bytes} == set(bar) & set(parts)


def test_equal_devices_share_a_bar() -> None:
    """Eight equal GPUs are one row with the names of the first and the last; the host has its own."""
    text = render_outcome(plan(Request(profile=load_profile("llama3.1-405b")), load_inventory("8xh100")))
    assert text.count("  [") == 2
    assert "  gpu0-gpu7, each\n" in text


def test_a_plan_of_vllm_speaks_its_options() -> None:
    """None of llama-server's options is named; what vLLM is told is, the cache's type too."""
    outcome = plan(Request(profile=load_profile("llama3.1-405b")), load_inventory("8xh100"))
    text = render_outcome(outcome)
    for option in ("--max-model-len 8192", "--max-num-seqs 1", "--gpu-memory-utilization", "--tensor-parallel-size 8"):
        assert option in text
    assert "--ctx-size" not in text
    assert "in steps of" not in text
    assert "--kv-cache-dtype auto" in text
    assert isinstance(outcome, Plan)
    assert outcome.vllm is not None
    other = replace(outcome, vllm=replace(outcome.vllm, kv_cache_dtype="fp8"))
    assert "--kv-cache-dtype fp8" in render_outcome(other)
