"""Laws of the compact specs: what ships is true, and what is wrong is refused."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import ModelSpec, Provenance, WeightsFormat
from launcher.metadata.gguf import read_gguf_file
from launcher.profiles.specs import CompactSpec, SpecError, expand, parse_spec
from launcher.resources import data_dir

DATA = Path(__file__).parent / "data"
SHIPPED = sorted((data_dir("profiles") / "specs").glob("*.json"))
GGUF = WeightsFormat.GGUF


def shipped(name: str) -> CompactSpec:
    """Return the shipped compact spec of a model."""
    return parse_spec((data_dir("profiles") / "specs" / f"{name}.json").read_bytes())


def full(name: str, quantization: str) -> ModelSpec:
    """Return the shipped spec of one GGUF quantization."""
    return expand(shipped(name), [(GGUF, quantization)])[GGUF, quantization]


@pytest.mark.parametrize(
    ("name", "quantization", "golden", "added"),
    [
        ("gemma2-27b", "q3_k_m", "gemma2-27b-Q3_K_M.json", set()),
        # The converter adds the rotary factors of long-context Llama; the golden's shapes leave out these 256 bytes.
        ("llama3.1-405b", "iq1_m", "llama3.1-405b-IQ1_M.json", {"rope_freqs.weight"}),
        ("gpt-oss-20b", "mxfp4", "gpt-oss-20b-MXFP4_MOE.json", set()),
    ],
)
def test_types_are_those_of_the_quantizer(name: str, quantization: str, golden: str, added: set[str]) -> None:
    """Every tensor has the type that llama-quantize gives it, and no tensor is missing."""
    expected = json.loads((DATA / golden).read_text(encoding="utf-8"))
    types = {tensor.name: tensor.type.value for tensor in full(name, quantization).tensors}
    assert types.keys() - expected.keys() == added
    assert {tensor: types[tensor] for tensor in expected} == expected


@pytest.mark.parametrize(
    ("name", "quantization", "published_gb", "rounding"),
    [
        ("gemma2-27b", "q3_k_m", 13.42, 0.005),
        ("gemma2-27b", "q5_k_m", 19.41, 0.005),
        ("gemma2-27b", "q6_k", 22.34, 0.005),
        ("gemma2-27b", "q8_0", 28.94, 0.005),
        ("gemma2-9b", "q4_k_m", 5.76, 0.005),
        ("gemma2-9b", "iq2_m", 3.43, 0.005),
        ("llama3.1-70b", "q4_k_m", 42.52, 0.005),
        ("llama3.1-70b", "iq1_m", 16.75, 0.005),
        ("llama3.1-405b", "q3_k_m", 195, 0.5),
        ("llama3.1-405b", "iq1_m", 93.5, 0.05),
        ("gpt-oss-20b", "mxfp4", 12.1, 0.05),
        ("gpt-oss-120b", "mxfp4", 63, 0.5),
        ("qwen3-30b-a3b", "q4_k_m", 18.56, 0.005),
        ("qwen3.6-27b", "q4_k_m", 15.401 * 1.073741824, 0.0006),
    ],
)
def test_bytes_agree_with_model_cards(name: str, quantization: str, published_gb: float, rounding: float) -> None:
    """Tensor bytes plus a header of at most 16 MB are the published size, within the rounding of the card."""
    low = full(name, quantization).weights_bytes / 1e9
    assert low - rounding <= published_gb <= low + 0.016 + rounding


@pytest.mark.parametrize(
    ("name", "form", "published_bytes", "tolerance"),
    [
        # `total_size` of the published `model.safetensors.index.json`, to the byte.
        ("llama3.1-8b", "bf16", 16_060_522_496, 0),
        ("gpt-oss-20b", "mxfp4", 13_761_264_768, 0),
        # What vLLM 0.19.0 said that loading took: 56.88 GiB (github.com/llm-d-incubation/llm-d-planner/pull/205).
        ("qwen3-30b-a3b", "bf16", 56.88 * 2**30, 0.001),
        # A folder of 5.34 GiB, with its tokenizer.
        ("llama3.1-8b", "awq-int4", 5.34 * 2**30, 0.01),
    ],
)
def test_safetensors_bytes_agree_with_their_index(
    name: str, form: str, published_bytes: float, tolerance: float
) -> None:
    """The derived layout of a release takes the bytes that its index tells."""
    key = (WeightsFormat.SAFETENSORS, form)
    spec = expand(shipped(name), [key])[key]
    assert abs(spec.weights_bytes - published_bytes) <= tolerance * published_bytes
    assert spec.provenance is Provenance.DERIVED


def test_safetensors_speak_the_configurations_words() -> None:
    """A safetensors spec has what a folder of that release would give: class, configuration keys, tensor names."""
    key = (WeightsFormat.SAFETENSORS, "awq-int4")
    spec = expand(shipped("gemma2-9b"), [key])[key]
    assert spec.architecture == "Gemma2ForCausalLM"
    assert spec.metadata["architectures"] == ("Gemma2ForCausalLM",)
    assert spec.metadata["num_hidden_layers"] == 42
    assert spec.metadata["quantization_config.quant_method"] == "awq"
    tensors = {tensor.name: tensor for tensor in spec.tensors}
    assert tensors["model.layers.41.mlp.down_proj.qweight"].shape == (3584 // 8, 14336)
    assert tensors["model.layers.0.pre_feedforward_layernorm.weight"].shape == (3584,)
    assert "lm_head.weight" not in tensors


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_are_small_and_whole(path: Path) -> None:
    """Each shipped spec takes less than 100 KB, and every form in it expands, each quantization to the same tensors."""
    assert path.stat().st_size < 100_000
    spec = parse_spec(path.read_bytes())
    assert spec.name == path.stem
    specs = expand(spec, [(GGUF, name) for name in spec.quantizations])
    assert len(specs) == len(spec.quantizations) > 0
    assert len({tuple((tensor.name, tensor.shape) for tensor in each.tensors) for each in specs.values()}) == 1
    assert all(each.metadata["general.architecture"] == each.architecture for each in specs.values())
    layouts = expand(spec, [(WeightsFormat.SAFETENSORS, name) for name in spec.safetensors])
    assert len(layouts) == len(spec.safetensors)


def test_shipped_specs_take_less_than_a_megabyte() -> None:
    """All shipped specs together stay small enough to ship."""
    assert sum(path.stat().st_size for path in SHIPPED) < 1_000_000


def test_bigger_quantizations_take_more_bytes() -> None:
    """The usual ladder is strictly falling in bytes, for the largest model."""
    spec = shipped("llama3.1-405b")
    ladder = ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "iq3_m", "q2_k", "iq2_xxs", "iq1_m"]
    specs = expand(spec, [(GGUF, name) for name in ladder])
    sizes = [specs[GGUF, name].weights_bytes for name in ladder]
    assert sizes == sorted(set(sizes), reverse=True)


def test_the_read_spec_is_the_real_file(real_model: Path) -> None:
    """The spec marked as read has the tensors, types and shape parameters of the real file."""
    spec = full("gemma3-270m", "q4_k_m")
    real = read_gguf_file(real_model).spec
    assert spec.provenance is Provenance.READ
    assert {tensor.name: tensor for tensor in spec.tensors} == {tensor.name: tensor for tensor in real.tensors}
    shared = {key: value for key, value in spec.metadata.items() if not isinstance(value, float)}
    assert {key: real.metadata.get(key) for key in shared} == shared
    assert spec.weights_bytes <= real_model.stat().st_size


def test_derived_specs_say_so() -> None:
    """What was not read from a file is marked as derived."""
    assert full("gemma3-270m", "q8_0").provenance is Provenance.DERIVED


def test_quantizations_share_equal_tensors() -> None:
    """Tensors of one type are one object, however many quantizations have them: memory and time stay small."""
    specs = expand(shipped("llama3.1-8b"), [(GGUF, "q4_k_m"), (GGUF, "q8_0")])
    first, second = ({tensor.name: tensor for tensor in spec.tensors} for spec in specs.values())
    assert first["blk.3.attn_norm.weight"] is second["blk.3.attn_norm.weight"]
    assert first["blk.3.attn_q.weight"] is not second["blk.3.attn_q.weight"]


def test_unknown_quantizations_are_left_out() -> None:
    """A quantization that the spec does not know, or knows in another format, has no entry."""
    assert expand(shipped("llama3.1-8b"), [(GGUF, "q9_z"), (WeightsFormat.SAFETENSORS, "q8_0")]) == {}


def compact(blocks: str = "0-3", types: str = "Q8_0", shape: tuple[int, ...] = (64, 2), **changes: object) -> bytes:
    """Return a tiny compact spec of one pattern, with other top-level keys changed at will."""
    document: dict[str, Any] = {
        "schema_version": 1,
        "name": "tiny",
        "architecture": "llama",
        "sources": [],
        "metadata": {"general.architecture": "llama"},
        "tensors": [{"name": "blk.{i}.a.weight", "shape": shape, "blocks": blocks}],
        "quantizations": {"q8_0": {"provenance": "derived", "types": {"blk.{i}.a.weight": types}}},
    }
    return msgspec.json.encode(document | changes)


def expanded(content: bytes) -> ModelSpec:
    """Return the one quantization of a tiny compact spec."""
    return expand(parse_spec(content), [(GGUF, "q8_0")])[GGUF, "q8_0"]


def test_runs_follow_the_order_of_blocks() -> None:
    """`Q8_0 F16*2 Q4_0` over blocks 0, 2, 3 and 5 gives each its type."""
    spec = expanded(compact("0,2-3,5", "Q8_0 F16*2 Q4_0"))
    assert [(tensor.name, tensor.type.value) for tensor in spec.tensors] == [
        ("blk.0.a.weight", "Q8_0"),
        ("blk.2.a.weight", "F16"),
        ("blk.3.a.weight", "F16"),
        ("blk.5.a.weight", "Q4_0"),
    ]


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (compact(schema_version=2), "schema_version"),
        (compact(surprise=1), "surprise"),
        (compact("0-9999"), "block numbers"),
        (compact("0-9999999999"), "not a number of blocks"),
        (compact("3-0"), "ascending"),
        (compact("0,0"), "ascending"),
        (compact("0-x"), "not a number"),
        (compact("0-3", "Q8_0*3"), "another number"),
        (compact("0-3", "Q8_0*5"), "another number"),
        (compact("0-3", "Q8_0*4 F16*0 F16"), "another number"),
        (compact("0-3", "Q8_0*-1"), "not a number"),
        (compact("0-3", "Q99"), "Q99"),
        (compact("0-3", "Q4_K"), "blocks of 256"),
        (compact("0-3", shape=(0, 2)), "absurd shape"),
        (compact("0-3", shape=(64, 2**60)), "absurd shape"),
        (
            compact(
                tensors=[{"name": f"{n}.{{i}}", "shape": [1], "blocks": "0-4095", "type": "F32"} for n in range(99)]
            ),
            "more than",
        ),
        (compact("0-3", metadata={"a": {"b": 1}}), "neither a scalar nor an array"),
        (compact(tensors=[{"name": "a", "shape": [1], "blocks": "0-3", "type": "F32"}]), "no {i}"),
        (compact("0-3", tensors=[{"name": "a", "shape": [1]}]), "no type"),
    ],
)
def test_contradictions_are_refused(content: bytes, fact: str) -> None:
    """A spec that contradicts itself is refused, and the message has the fact."""
    with pytest.raises(SpecError) as caught:
        expanded(content)
    assert fact in str(caught.value)


@given(st.text(alphabet="0123456789,-", max_size=20), st.text(alphabet="QF8_016* ", max_size=20))
def test_any_ranges_and_runs_expand_or_are_refused(blocks: str, runs: str) -> None:
    """Whatever stands in ranges and runs, either every block has its one tensor or a SpecError is raised."""
    try:
        spec = expanded(compact(blocks, runs))
    except SpecError:
        return
    assert len({tensor.name for tensor in spec.tensors}) == len(spec.tensors) > 0
