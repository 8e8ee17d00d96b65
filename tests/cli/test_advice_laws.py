"""Laws of advice, over drawn machines and requests, on commands as they are printed."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from launcher.cli import app
from launcher.units import GIB, MIB

pytestmark = pytest.mark.slow

_MODELS = ("gemma2-9b", "gemma2-27b", "llama3.1-8b", "llama3.1-70b", "gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b")
_OPTIONS = (
    (),
    ("--n-gpu-layers", "99"),
    ("--quant", "q8_0"),
    ("--context", "8192", "--parallel", "4"),
    ("--min-tps", "15"),
    ("--min-quant", "q6_k"),
    ("--cache-type-k", "f32", "--cache-type-v", "f32", "--context", "8000"),
    ("--engine", "vllm"),
    ("--force", "--n-gpu-layers", "99"),
)


def _write_machine(path: Path, free_bytes: int, host_bytes: int) -> None:
    device = {
        "name": "gpu0",
        "kind": "cuda",
        "description": "drawn",
        "total_bytes": free_bytes + 512 * MIB,
        "free_bytes": free_bytes,
        "bandwidth_bytes_per_s": 600e9,
        "compute_capability": [8, 9],
    }
    host = {"total_bytes": host_bytes, "available_bytes": host_bytes, "n_cpu": 8, "bandwidth_bytes_per_s": 50e9}
    path.write_text(json.dumps({"name": "drawn", "host": host, "devices": [device] if free_bytes else []}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the drawn machine is written, with a space in its name."""
    return tmp_path_factory.mktemp("drawn machines of")


@given(
    st.sampled_from(_MODELS),
    st.sampled_from(_OPTIONS),
    st.sampled_from([0, 3, 6, 11, 23]),
    st.sampled_from([6, 20, 40]),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
def test_every_advised_command_plans(
    folder: Path, model: str, options: tuple[str, ...], free_gib: int, host_gib: int
) -> None:
    """What a refusal proposes, run as it stands, is a plan, or its file; there are at most three, and no two are the same."""
    machine = folder / "drawn.json"
    _write_machine(machine, free_gib * GIB, host_gib * GIB)
    asked = ["plan", model, *options, "--inventory", str(machine), "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code in {0, 3}, result.output
    if result.exit_code == 0:
        return
    given = json.loads(result.stdout)["refusal"]["advice"]
    advice = [tuple(each["argv"]) for each in given]
    assert len(set(advice)) == len(advice) <= 3
    for words in filter(None, (each["export_argv"] for each in given)):
        exported = CliRunner().invoke(app, words[1:])
        assert exported.exit_code == 0, (asked, words, exported.output)
    for words in advice:
        assert words[:2] == ("launch", "plan")
        again = CliRunner().invoke(app, list(words[1:]))
        assert again.exit_code == 0, (asked, words, again.output)


def test_the_law_is_not_vacuous(folder: Path) -> None:
    """On the smallest of these machines the largest of these models is refused, with advice."""
    machine = folder / "small.json"
    _write_machine(machine, 0, 6 * GIB)
    result = CliRunner().invoke(app, ["plan", "gpt-oss-120b", "--inventory", str(machine), "--json"])
    assert result.exit_code == 3
    assert len(json.loads(result.stdout)["refusal"]["advice"]) == 3
