"""The generator of the specs, as far as it runs without a llama.cpp build."""

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from launcher.resources import data_dir

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_specs.py"
MODELS = tomllib.loads(SCRIPT.with_suffix(".toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make_specs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(MODELS))
def test_shipped_specs_are_what_the_generator_writes(generator: ModuleType, name: str) -> None:
    """No shipped spec is stale: tensors, metadata, sources and forms follow from the committed shapes."""
    spec = json.loads((data_dir("profiles") / "specs" / f"{name}.json").read_text(encoding="utf-8"))
    model = MODELS[name]
    assert spec["tensors"] == [generator.compact_tensor(pattern) for pattern in generator.patterns_of(model)]
    assert spec["metadata"] == generator.metadata_of(model)
    assert spec["sources"] == model["sources"]
    assert list(spec["quantizations"]) == model["quantizations"]
    assert spec["safetensors"] == {form: generator.layout_of(model, form) for form in model.get("safetensors", ())}


def test_no_spec_is_without_shapes() -> None:
    """Every shipped spec has its table in the generator's input."""
    assert {path.stem for path in (data_dir("profiles") / "specs").glob("*.json")} == MODELS.keys()


def test_the_quantizers_lines_are_understood(generator: ModuleType) -> None:
    """Both forms of a dry run's line give the final type: changed, and left alone."""
    changed = (
        "[   1/ 291] output.weight                        - [  4096, 128256,      1,      1], "
        "type =    f16, size =  1002.00 MiB ->   410.98 MiB (q6_K)"
    )
    kept = (
        "[   2/ 291] output_norm.weight                   - [  4096,      1,      1,      1], "
        "type =    f32, size =    0.016 MiB"
    )
    assert [generator.DRY_RUN_LINE.match(line).groups() for line in (changed, kept)] == [
        ("output.weight", "f16", "q6_K"),
        ("output_norm.weight", "f32", None),
    ]


def test_runs_and_ranges_are_short(generator: ModuleType) -> None:
    """Equal neighbours are counted, a single type stands alone, ranges join."""
    assert generator.write_runs(["Q6_K", "Q6_K", "Q5_K"]) == "Q6_K*2 Q5_K"
    assert generator.write_runs(["Q6_K", "Q6_K"]) == "Q6_K"
    assert generator.write_ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"


def test_written_json_reads_back(generator: ModuleType) -> None:
    """The writer breaks lines where they are long, and nothing else: the value stays the same."""
    value = {"a": [1, 2.5, None, True], "b": {"c": ["x" * 100, "y" * 100], "d": {}}, "e": "z" * 300}
    text = generator.write_json(value)
    assert json.loads(text) == value
    assert text.count("\n") > 3
