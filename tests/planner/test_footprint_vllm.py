"""The footprint of vLLM against what vLLM itself logged.

``data/vllm_published.json`` holds start-ups on GPUs that others published, with their sources; ``transcripts/vllm`` our own
starts on a CPU, which tell the cache's arithmetic. The constants of the profile run were fitted to the rows of one source;
weights and cache have no fitted constant.
"""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import Device, DeviceKind, ModelSpec, Provenance, TensorInfo, WeightsFormat
from launcher.planner.footprint.vllm import (
    KvGroup,
    KvLayout,
    VllmChoice,
    VllmConfig,
    VllmEstimate,
    capture_sizes,
    cuda_total_bytes,
    estimate,
    estimate_footprint,
    free_at_start_bytes,
    lay_out_kv,
    plan_vllm,
    stage_layers,
)
from launcher.planner.footprint.vllm_model import StateKv, VllmModel, read_model
from launcher.planner.footprint.vllm_support import (
    GATES,
    activation_bytes,
    activation_note,
    check_support,
    weights_kind,
)
from launcher.profiles import load_profile
from launcher.tensor_types import TensorType
from launcher.units import GIB, MIB
from tests.planner.hf_shapes import make_spec

_HERE = Path(__file__).parent
_PUBLISHED: dict[str, Any] = json.loads((_HERE / "data" / "vllm_published.json").read_text())
_ROWS: list[dict[str, Any]] = _PUBLISHED["rows"]
_TRANSCRIPT = (_HERE.parent / "transcripts" / "vllm" / "0.32.0-cpu-kv.log").read_text().splitlines()
_OTHER_RANKS = {"Qwen3-235B-A22B"}
"""Where the log tells the memory of one rank and another had less."""


def _rows(*keys: str, with_encoder: bool = True) -> list[Any]:
    """Return the rows that have all keys, named by model and parallelism; the encoders of some models have no shape here."""
    return [
        pytest.param(row, id=f"{row['model']}-{row['quantization']}-tp{row['tensor_parallel_size']}-{index}")
        for index, row in enumerate(_ROWS)
        if all(key in row for key in keys) and (with_encoder or not row.get("multimodal"))
    ]


def _shipped(name: str, quantization: str) -> ModelSpec:
    wanted = (WeightsFormat.SAFETENSORS, quantization)
    spec = next(a.spec for a in load_profile(name).artifacts if (a.format, a.quantization) == wanted)
    assert spec is not None
    return spec


@cache
def _model(name: str, quantization: str) -> VllmModel:
    if name.startswith("gpt-oss"):
        return read_model(_shipped(name, quantization))
    entry = _PUBLISHED["models"][name]
    kind = quantization if quantization in {"fp8", "int8", "gptq-int4"} else "bf16"
    return read_model(make_spec(entry["architecture"], entry["config"], kind))


def _config(row: dict[str, Any]) -> VllmConfig:
    values = {key: row[key] for key in VllmConfig.__struct_fields__ if key in row}
    return VllmConfig(**{"max_model_len": 8192, "max_num_seqs": 256, **values})


def _gpu(
    name: str = "gpu0", total_mib: int = 81559, capability: tuple[int, int] | None = (9, 0), **values: Any
) -> Device:
    return Device(
        name=name,
        kind=DeviceKind.CUDA,
        description="",
        total_bytes=total_mib * MIB,
        compute_capability=capability,
        **values,
    )


def _gpus(n: int, **values: Any) -> tuple[Device, ...]:
    return tuple(_gpu(f"gpu{idx}", **values) for idx in range(n))


def _estimate(row: dict[str, Any]) -> VllmEstimate:
    config = _config(row)
    capability = tuple(row.get("capability", (9, 0)))
    gpus = _gpus(config.n_rank, total_mib=row.get("total_mib", 81559), capability=capability)
    return estimate(_model(row["model"], row["quantization"]), config, gpus)


def _layout(row: dict[str, Any]) -> KvLayout:
    """Return the row's layout; releases before 0.26 counted one batch in flight instead of two."""
    config = _config(row)
    layout = lay_out_kv(_model(row["model"], row["quantization"]), config)
    return layout if row["version"] == "0.26.0" else replace(layout, n_in_flight=config.max_num_batched_tokens)


# --- Against published start-ups --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", _rows("weights_gib", with_encoder=False))
def test_weights_are_within_two_percent(row: dict[str, Any]) -> None:
    """What "Model loading took" says: within 0.6 %; MXFP4 is padded as for Marlin, 2.5 % above Triton's."""
    predicted = _estimate(row).ranks[0].weights_bytes / GIB
    bar = 0.025 if row.get("kernel") == "triton" else 0.006
    # The log has two decimals.
    assert predicted == pytest.approx(row["weights_gib"], rel=bar, abs=0.006)


@pytest.mark.parametrize("row", _rows("activation_gib"))
def test_the_profile_runs_peak_is_within_seven_percent(row: dict[str, Any]) -> None:
    """What "torch peak memory increase" says; within 2.5 % but for stages without sampler and models with an encoder."""
    predicted = _estimate(row).ranks[0].activation_bytes / GIB
    odd = row["pipeline_parallel_size"] > 1 or row.get("multimodal")
    assert predicted == pytest.approx(row["activation_gib"], rel=0.07 if odd else 0.025)


@pytest.mark.parametrize("row", _rows("available_kv_gib", "n_blocks"))
def test_blocks_follow_from_the_memory_available(row: dict[str, Any]) -> None:
    """The number of blocks that vLLM makes of the logged memory, to the log's rounding; 1.5 % where ranks differ."""
    layers = stage_layers(_model(row["model"], row["quantization"]).n_layer, row["pipeline_parallel_size"])[0]
    predicted = row["available_kv_gib"] * GIB / _layout(row).block_bytes(layers)
    ranks_differ = row["pipeline_parallel_size"] > 1 or row["model"] in _OTHER_RANKS
    rounding = 0.006 / row["available_kv_gib"]
    assert predicted == pytest.approx(row["n_blocks"], rel=0.015 if ranks_differ else rounding, abs=2)


@pytest.mark.parametrize("row", _rows("available_kv_gib", "max_concurrency"))
def test_concurrency_follows_from_the_memory_available(row: dict[str, Any]) -> None:
    """Concurrency as in "Maximum concurrency for N tokens per request", for full, sliding, latent and hybrid caches alike."""
    layout = _layout(row)
    layers = stage_layers(_model(row["model"], row["quantization"]).n_layer, row["pipeline_parallel_size"])[0]
    predicted = (
        row["available_kv_gib"] * GIB / layout.block_bytes(layers) / layout.blocks_per_request(row["max_model_len"])
    )
    bar = 0.015 if row["pipeline_parallel_size"] > 1 else 0.004
    assert predicted == pytest.approx(row["max_concurrency"], rel=bar, abs=0.006)


@pytest.mark.parametrize("row", _rows("available_kv_gib", "total_mib", with_encoder=False))
def test_memory_left_for_the_cache_is_near_the_published(row: dict[str, Any]) -> None:
    """What "Available KV cache memory" says, from model, GPU and flags: within 0.25 GiB and 1.1 % (4 % on 24 GB)."""
    rank = _estimate(row).ranks[0]
    predicted = rank.available_kv_bytes + (0 if row["graphs_deducted"] else rank.graph_bytes)
    assert predicted / GIB == pytest.approx(row["available_kv_gib"], abs=0.25)
    assert predicted / GIB == pytest.approx(row["available_kv_gib"], rel=0.011 if row["total_mib"] > 40000 else 0.04)


@pytest.mark.parametrize("row", _rows("graph_gib"))
def test_graphs_are_within_a_factor_of_two(row: dict[str, Any]) -> None:
    """CUDA graphs vary between runs of one configuration; the figure is a fit, and never further off than half a GiB but once."""
    predicted = _estimate(row).ranks[0].graph_bytes / GIB
    assert row["graph_gib"] / 2 < predicted < row["graph_gib"] * 2
    assert predicted == pytest.approx(row["graph_gib"], abs=0.9 if row["model"] == "gpt-oss-20b" else 0.6)


@pytest.mark.parametrize("row", _rows("request_gib"))
def test_a_window_keeps_the_batches_in_flight(row: dict[str, Any]) -> None:
    """Memory for one request of a model with windows: from 0.26 on, two batches in flight count (issue 49878)."""
    layout = _layout(row)
    n_bytes = layout.blocks_per_request(row["max_model_len"]) * layout.block_bytes(range(60))
    assert n_bytes / GIB == pytest.approx(row["request_gib"], abs=0.006)


@pytest.mark.parametrize("row", _rows("attention_block_size"))
def test_a_block_grows_until_a_state_fits_in_its_page(row: dict[str, Any]) -> None:
    """As in "Setting attention block size to 1568 tokens": a page holds the state of a linear-attention layer."""
    layout = lay_out_kv(_model(row["model"], row["quantization"]), _config(row))
    assert {group.block_size for group in layout.groups} == {row["attention_block_size"], None}


@pytest.mark.parametrize("row", _rows("kv_tokens"))
def test_the_tokens_of_a_hybrid_model_are_exact(row: dict[str, Any]) -> None:
    """The "GPU KV cache size" of a hybrid is concurrency times length, to the token."""
    layout = _layout(row)
    n_blocks = row["available_kv_gib"] * GIB // layout.block_bytes(range(40))
    assert int(n_blocks / layout.blocks_per_request(row["max_model_len"]) * row["max_model_len"]) == row["kv_tokens"]


def test_enough_is_published_to_trust_the_bars() -> None:
    """At least ten start-ups with weights, memory left and blocks, each with its source."""
    assert sum(all(key in row for key in ("weights_gib", "available_kv_gib", "n_blocks")) for row in _ROWS) >= 10
    assert all(row["source"].startswith("https://") for row in _ROWS)


# --- Against our own starts on a CPU ----------------------------------------------------------------------------

_TINY = {
    "m/tiny-llama": (
        "LlamaForCausalLM",
        {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    ),
    "m/tiny-gemma2": (
        "Gemma2ForCausalLM",
        {
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "sliding_window": 512,
        },
    ),
}
_TINY_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def _starts() -> list[Any]:
    """Return pairs: the arguments of a start, and the lines that it logged of its cache."""
    starts: list[tuple[dict[str, Any], list[str]]] = []
    for line in _TRANSCRIPT:
        if "non-default args: " in line:
            starts.append((ast.literal_eval(line.partition("non-default args: ")[2]), []))
        elif starts:
            starts[-1][1].append(line)
    return [pytest.param(*start, id=str(index)) for index, start in enumerate(starts)]


def _cpu_layout(args: dict[str, Any]) -> tuple[KvLayout, int, int]:
    """Return layout, number of blocks and length of a start on a CPU, whose blocks have 128 tokens."""
    architecture, dims = _TINY[args["model"]]
    model = read_model(make_spec(architecture, {**_TINY_CONFIG, **dims}))
    n_ctx = args.get("max_model_len", 2048)
    config = VllmConfig(
        max_model_len=2048 if n_ctx < 0 else n_ctx,
        max_num_seqs=4,
        pipeline_parallel_size=args.get("pipeline_parallel_size", 1),
        kv_cache_dtype=args.get("kv_cache_dtype", "auto"),
        block_size=128,
    )
    layout = lay_out_kv(model, config)
    layers = stage_layers(model.n_layer, config.pipeline_parallel_size)[0]
    n_blocks = args.get("kv_cache_memory_bytes", GIB) // layout.block_bytes(layers)
    return layout, n_blocks, config.max_model_len


@pytest.mark.parametrize(("args", "lines"), _starts())
def test_cache_sizes_are_those_that_vllm_printed(args: dict[str, Any], lines: list[str]) -> None:
    """Tokens, concurrency and the longest request, to the last digit: full, fp8, windows, two stages, a null block."""
    layout, n_blocks, n_ctx = _cpu_layout(args)
    text = " ".join(lines)
    longest = layout.max_model_len(n_blocks, n_ctx)
    if match := re.search(r"(?:estimated maximum model length is|reduced from 2048 to) (\d+)", text):
        assert longest == int(match[1])
        n_ctx = longest
    else:
        assert longest == n_ctx
    if match := re.search(
        r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x", text
    ):
        concurrency = n_blocks / layout.blocks_per_request(n_ctx)
        assert n_ctx == int(match[2].replace(",", ""))
        assert int(concurrency * n_ctx) == int(match[1].replace(",", ""))
        assert f"{concurrency:.2f}" == match[3]


# --- Laws -------------------------------------------------------------------------------------------------------


def test_key_value_heads_are_repeated_on_more_ranks_than_there_are() -> None:
    """8 KV heads on 16 ranks: each rank holds a whole one, so two ranks hold the same."""
    model = read_model(_shipped("llama3.1-8b", "bf16"))
    half, quarter = (
        lay_out_kv(model, VllmConfig(max_model_len=8192, max_num_seqs=1, tensor_parallel_size=tp)) for tp in (8, 16)
    )
    assert half.block_bytes(range(32)) == quarter.block_bytes(range(32))
    weights = [model.weights_bytes(range(32), tp, first=True, last=True) for tp in (8, 16)]
    assert weights[1] > weights[0] / 2


@pytest.mark.parametrize("quantization", ["bf16", "fp8", "awq-int4", "gptq-int4"])
def test_every_stage_holds_its_part_once(quantization: str) -> None:
    """The stages of a pipeline together hold the model once, but for the rotary tables, which each has."""
    model = read_model(_shipped("llama3.1-70b", quantization))
    whole = model.weights_bytes(range(80), 1, first=True, last=True)
    parts = [
        model.weights_bytes(layers, 1, first=idx == 0, last=idx == 2) for idx, layers in enumerate(stage_layers(80, 3))
    ]
    assert sum(parts) == whole + 2 * model.rope_bytes


def test_tied_embeddings_are_held_by_the_first_and_the_last_stage() -> None:
    """Gemma's output layer is its input layer: two stages hold it twice."""
    model = read_model(_shipped("gemma2-9b", "bf16"))
    parts = [
        model.weights_bytes(layers, 1, first=idx == 0, last=idx == 1) for idx, layers in enumerate(stage_layers(42, 2))
    ]
    whole = model.weights_bytes(range(42), 1, first=True, last=True)
    assert sum(parts) - whole == model.rope_bytes + 256000 * 3584 * 2


def test_the_cache_of_70b_on_8_ranks_is_what_vllms_own_functions_computed() -> None:
    """``get_kv_cache_configs`` of vLLM 0.32.0, asked in process without a GPU (blocks of 128 tokens)."""
    model = _model("Llama-3.1-70B", "bf16")
    config = VllmConfig(max_model_len=32768, max_num_seqs=1, tensor_parallel_size=8, block_size=128)
    layout = lay_out_kv(model, config)
    n_bytes = layout.block_bytes(range(80))
    for gib, tokens, concurrency in ((8, 209_664, 6.398), (20, 524_288, 16.0)):
        found = gib * GIB // n_bytes / layout.blocks_per_request(32768)
        assert int(found * 32768) == tokens
        assert found == pytest.approx(concurrency, abs=0.001)
    assert layout.max_model_len(GIB // n_bytes, 131072) == 25984


def test_a_state_is_divided_over_ranks() -> None:
    """8 ranks, three drafted tokens beside the convolution's three: "attention block size to 544", padded by 2.64 %.

    Logged for a model of 64 value and 16 key heads (github.com/Sandermage/genesis-vllm-patches, issue 24).
    """
    entry = _PUBLISHED["models"]["Qwen3.6-27B"]["config"]
    heads = {
        "linear_num_value_heads": 64,
        "num_key_value_heads": 2,
        "linear_conv_kernel_dim": 7,
        "num_attention_heads": 32,
    }
    model = read_model(make_spec("Qwen3_5MoeForConditionalGeneration", {**entry, **heads}))
    layout = lay_out_kv(model, VllmConfig(max_model_len=8192, max_num_seqs=1, tensor_parallel_size=8))
    state = next(layer.state_bytes(8, 2) for layer in model.layers if isinstance(layer, StateKv))
    assert {group.block_size for group in layout.groups} == {544, None}
    assert layout.groups[0].page_bytes[0] / state == pytest.approx(1.0264, abs=0.0001)


def test_latent_attention_keeps_a_row_per_token_and_a_copy_of_its_projections() -> None:
    """DeepSeek: 576 elements a token on every rank; the absorbed projections are divided over the ranks."""
    model = _model("DeepSeek-V2-Lite", "bf16")
    assert model.latent_copy_elements == 16 * (128 + 128) * 512
    for tp in (1, 4):
        layout = lay_out_kv(model, VllmConfig(max_model_len=8192, max_num_seqs=1, tensor_parallel_size=tp))
        assert layout.block_bytes(range(27)) == 27 * 16 * 576 * 2
    bare = replace(model, latent_copy_elements=0)
    with_copy, without = (m.weights_bytes(range(27), 4, first=True, last=True) for m in (model, bare))
    assert with_copy - without == 27 * 16 * 256 * 512 * 2 // 4


def test_layers_that_share_a_cache_have_none() -> None:
    """``num_kv_shared_layers`` counts from the end."""
    entry = _PUBLISHED["models"]["Llama-3.1-8B"]["config"]
    layers = read_model(make_spec("LlamaForCausalLM", {**entry, "num_kv_shared_layers": 12})).layers
    assert [layer is None for layer in layers] == [False] * 20 + [True] * 12


def test_kinds_that_are_nearly_equally_frequent_are_padded_not_split() -> None:
    """13 full and 12 sliding layers make one group each (``_get_kv_cache_groups_uniform_page_size``); 5 and 20 make one and four."""
    entry = _PUBLISHED["models"]["gemma-2-2b"]["config"]
    for n_full, n_sliding, n_group in ((13, 12, 2), (5, 20, 5)):
        kinds = ("full_attention",) * n_full + ("sliding_attention",) * n_sliding
        spec = make_spec("Gemma2ForCausalLM", {**entry, "num_hidden_layers": n_full + n_sliding, "layer_types": kinds})
        assert len(lay_out_kv(read_model(spec), VllmConfig(max_model_len=8192, max_num_seqs=1)).groups) == n_group


def test_each_parameter_is_divided_as_its_layer_demands() -> None:
    """Row-parallel scales and biases are per output, so every rank has them whole; group scales and columns are divided."""

    def held(name: str, *shape: int, kind: TensorType = TensorType.BF16) -> int:
        tensor = TensorInfo(name=f"model.layers.0.{name}", shape=shape, type=kind)
        spec = ModelSpec(
            architecture="LlamaForCausalLM",
            format=WeightsFormat.SAFETENSORS,
            metadata={"num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2},
            tensors=(tensor,),
        )
        return read_model(spec).weights_bytes(range(1), 4, first=True, last=True)

    assert held("self_attn.o_proj.weight", 64, 64) == 64 * 64 * 2 // 4
    assert held("self_attn.o_proj.bias", 64) == 64 * 2
    assert held("self_attn.o_proj.weight_scale", 1, 64) == 64 * 2
    assert held("self_attn.o_proj.scales", 64, 2) == 64 * 2 * 2 // 4
    assert held("mlp.up_proj.weight_scale", 1, 64) == 64 * 2 // 4
    assert held("mlp.up_proj.weight_scale", 1) == 2
    assert held("mlp.down_proj.g_idx", 64, kind=TensorType.I32) == 64 * 4 // 4
    assert held("mlp.up_proj.g_idx", 64, kind=TensorType.I32) == 64 * 4
    assert held("self_attn.k_proj.weight", 64, 16) == 64 * 16 * 2 // 2
    assert held("input_layernorm.weight", 64) == 64 * 2
    assert held("mlp.experts.3.down_proj.weight", 64, 64) == 64 * 64 * 2 // 4


def test_draft_layers_and_a_tied_head_are_not_loaded() -> None:
    """A layer beyond the count, a draft of its own, and a head that repeats the embeddings take no memory."""
    entry = _PUBLISHED["models"]["gemma-2-2b"]
    spec = make_spec(entry["architecture"], entry["config"])
    names = ("model.layers.26.self_attn.q_proj.weight", "mtp.layers.0.mlp.up_proj.weight", "lm_head.weight")
    extra = tuple(TensorInfo(name=name, shape=(2304, 256000), type=TensorType.BF16) for name in names)
    plain, more = (read_model(replace(spec, tensors=tensors)) for tensors in (spec.tensors, spec.tensors + extra))
    assert plain.parameters == more.parameters


def test_several_gpus_are_as_strong_as_the_weakest() -> None:
    """Two ranks of one fraction: the GPU with less free memory decides it, and notes tell what communication takes."""
    gpus = (_gpu("gpu0", free_bytes=78 * GIB), _gpu("gpu1", free_bytes=60 * GIB))
    found = _plan(_shipped("llama3.1-70b", "fp8"), gpus, tensor_parallel_size=2)
    asked = found.config.gpu_memory_utilization * cuda_total_bytes(gpus[1])
    assert found.devices == ("gpu0", "gpu1")
    assert asked <= free_at_start_bytes(gpus[1], found.config) - 512 * MIB
    texts = [note.text for note in found.estimate.notes]
    assert any("communication buffers of 2.2 GiB" in text for text in texts)
    assert any("context and NCCL take 1.6 GiB" in text for text in texts)


def test_the_logged_tokens_are_concurrency_times_length() -> None:
    """The engine's own figure, which for a plain model is nearly the number of cached tokens."""
    config = VllmConfig(max_model_len=8192, max_num_seqs=8)
    found = estimate(_model("Llama-3.1-8B", "bf16"), config, _gpus(1))
    assert found.kv_tokens == found.n_blocks * 16
    assert found.largest_max_model_len == 131072


def test_leftover_layers_go_to_the_stages_before_the_last() -> None:
    """``get_pp_indices``: the last stage has the norm and the head, so it gets no extra layer."""
    assert [len(layers) for layers in stage_layers(62, 4)] == [15, 16, 16, 15]
    assert [len(layers) for layers in stage_layers(7, 3)] == [2, 3, 2]
    assert stage_layers(80, 1) == (range(80),)


def test_graphs_are_captured_for_the_sizes_that_the_engine_logs() -> None:
    """As logged: "PIECEWISE=51 (largest=512), FULL=35 (largest=256)" for 256 requests; none in eager mode."""
    config = VllmConfig(max_model_len=8192, max_num_seqs=256)
    assert capture_sizes(config, (8, 9)) == (51, 35)
    assert capture_sizes(replace(config, max_num_seqs=1024), (9, 0)) == (51, 51)
    assert capture_sizes(replace(config, max_num_seqs=1024), (10, 0)) == (83, 83)
    assert capture_sizes(replace(config, enforce_eager=True), (9, 0)) == (0, 0)


@given(
    st.integers(1, 5000),
    st.integers(1, 300_000),
    st.integers(0, 5000),
    st.integers(1, 65536),
    st.sampled_from([16, 128, 1568]),
)
def test_the_longest_request_is_the_longest(
    n_blocks: int, limit: int, window: int, n_in_flight: int, block: int
) -> None:
    """No request is longer that the blocks hold beside the null block, and the one named is held."""
    full = KvGroup(layers=(0,), page_bytes=(1,), block_size=block)
    sliding = KvGroup(layers=(1,), page_bytes=(1,), block_size=block, window=window + 1)
    state = KvGroup(layers=(2,), page_bytes=(1,), block_size=None)
    layout = KvLayout(groups=(full, sliding, state), n_in_flight=n_in_flight)
    longest = layout.max_model_len(n_blocks, limit)
    assert longest == 0 or layout.blocks_per_request(longest) < n_blocks
    assert longest == limit or layout.blocks_per_request(longest + 1) >= n_blocks


@given(st.integers(8, 200), st.sampled_from([1024, 8192, 32768]), st.integers(1, 64), st.floats(0.05, 1.0))
def test_the_required_utilization_is_required(total_gib: int, n_ctx: int, n_seqs: int, utilization: float) -> None:
    """At the required fraction the cache holds all requests; a step below it does not; and what starts serves one."""
    model = _model("Llama-3.1-8B", "bf16")
    config = VllmConfig(max_model_len=n_ctx, max_num_seqs=n_seqs, gpu_memory_utilization=utilization)
    gpus = (_gpu(total_mib=total_gib * 1024),)
    found = estimate(model, config, gpus)
    at, below = (
        estimate(model, replace(config, gpu_memory_utilization=found.required_utilization - step), gpus)
        for step in (0, 0.0021)
    )
    per_request = lay_out_kv(model, config).blocks_per_request(n_ctx)
    assert at.n_blocks - 1 >= n_seqs * per_request > below.n_blocks - 1
    if found.refusal is None:
        assert found.max_concurrency >= 1
        assert utilization >= found.minimum_utilization - 0.001
        assert utilization * cuda_total_bytes(gpus[0]) <= free_at_start_bytes(gpus[0], config) + 1


def test_more_ranks_are_needed_than_devices_given() -> None:
    """Two ranks on one device are the caller's fault."""
    config = VllmConfig(max_model_len=1024, max_num_seqs=1, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="1 devices for 2 ranks"):
        estimate(_model("Llama-3.1-8B", "bf16"), config, _gpus(1))


def test_a_footprint_has_one_entry_per_rank_and_stays_below_the_utilization() -> None:
    """The engine takes what the utilization allows and no more, to less than a block."""
    model = _model("Llama-3.1-70B", "fp8")
    config = VllmConfig(max_model_len=8192, max_num_seqs=8, tensor_parallel_size=2, gpu_memory_utilization=0.9)
    gpus = _gpus(2)
    footprint = estimate_footprint(model, config, gpus)
    assert [use.name for use in footprint.devices] == ["gpu0", "gpu1"]
    for use in footprint.devices:
        assert 0 <= 0.9 * cuda_total_bytes(gpus[0]) - use.total_bytes < 4 * MIB
    assert footprint.host.resident_mmap_bytes == pytest.approx(70.6e9, rel=0.05)


@pytest.mark.parametrize(
    ("values", "gpu", "fact"),
    [
        ({"max_model_len": 200_000}, {}, "more than the model's 131072"),
        ({"max_num_seqs": 4096}, {}, "cannot hold 4096 requests"),
        ({}, {"free_bytes": 20 * GIB}, "gpu0 has 19.5 GiB free when the engine looks, less than the 71.3 GiB"),
        ({"gpu_memory_utilization": 0.1}, {}, "leave nothing for the cache"),
        ({"max_model_len": 131072, "gpu_memory_utilization": 0.25}, {}, "requests of"),
    ],
)
def test_a_start_is_refused_for_the_engines_reasons(values: dict[str, Any], gpu: dict[str, Any], fact: str) -> None:
    """Too long for the model, for the batch, for the memory that is free, for the weights, for the cache."""
    config = replace(VllmConfig(max_model_len=8192, max_num_seqs=16, gpu_memory_utilization=0.9), **values)
    refusal = estimate(_model("Llama-3.1-8B", "bf16"), config, (_gpu(**gpu),)).refusal
    assert refusal is not None
    assert fact in refusal


_VALUES = st.one_of(
    st.integers(-(2**62), 2**62),
    st.booleans(),
    st.text(max_size=8),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(-5, 5), max_size=4).map(tuple),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", "linear_attention"]), max_size=4).map(tuple),
)
_KEYS = st.sampled_from(
    sorted({*_PUBLISHED["models"]["Qwen3.6-27B"]["config"], "layer_types", "kv_lora_rank", "sliding_window"})
)


@given(st.dictionaries(_KEYS, _VALUES), st.sampled_from(["LlamaForCausalLM", "Gemma2ForCausalLM", "Nonsense"]))
def test_no_configuration_makes_the_arithmetic_fail(metadata: dict[str, Any], architecture: str) -> None:
    """Whatever stands in config.json, there is an estimate or a reason."""
    tensors = tuple(
        TensorInfo(name=f"model.layers.{idx}.self_attn.q_proj.weight", shape=(64, 64), type=TensorType.BF16)
        for idx in range(3)
    )
    spec = ModelSpec(architecture=architecture, format=WeightsFormat.SAFETENSORS, metadata=metadata, tensors=tensors)
    found = plan_vllm(spec, (_gpus(1),), n_ctx_per_request=1024)
    assert isinstance(found, str | VllmChoice)
    config = VllmConfig(max_model_len=1024, max_num_seqs=2)
    assert estimate(read_model(spec), config, _gpus(1)).ranks[0].weights_bytes >= 0


def test_what_is_not_modelled_is_named() -> None:
    """A window without a pattern in an unknown architecture: every layer caches all, and a note says that this errs high."""
    entry = _PUBLISHED["models"]["Llama-3.1-8B"]
    spec = make_spec("SomethingNewForCausalLM", {**entry["config"], "sliding_window": 4096})
    model = read_model(spec)
    notes = estimate(model, VllmConfig(max_model_len=8192, max_num_seqs=1), _gpus(1)).notes
    assert not model.known
    assert any("not modelled" in note.text and note.provenance is Provenance.ASSUMED for note in notes)
    assert lay_out_kv(model, VllmConfig(max_model_len=8192, max_num_seqs=1)).blocks_per_request(8192) == 512


# --- What can be loaded where -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quantization", "kind"),
    [
        ("llama3.1-8b", "bf16", "none"),
        ("llama3.1-8b", "fp8", "fp8"),
        ("llama3.1-8b", "awq-int4", "awq"),
        ("llama3.1-8b", "gptq-int4", "gptq"),
        ("gpt-oss-20b", "mxfp4", "mxfp4"),
    ],
)
def test_the_kind_of_weights_is_read_from_the_configuration(name: str, quantization: str, kind: str) -> None:
    """Kinds come from ``quant_method`` and element types, and each has a gate with a source."""
    assert weights_kind(_shipped(name, quantization)) == kind
    assert GATES[kind].source


@pytest.mark.parametrize(
    ("name", "quantization", "capability", "tp", "fact"),
    [
        ("llama3.1-8b", "bf16", (7, 0), 1, "need compute capability 7.5 or more, this GPU has 7.0"),
        ("gpt-oss-20b", "mxfp4", (7, 5), 1, "mxfp4 weights need compute capability 8.0"),
        ("llama3.1-8b", "bf16", (8, 9), 3, "32 attention heads cannot be divided over 3 GPUs"),
        ("llama3.1-8b", "bf16", (8, 9), 0, "no count of GPUs"),
        (
            "llama3.1-70b",
            "awq-int4",
            (8, 0),
            64,
            "448 feed-forward rows per GPU are not whole quantization groups of 128",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(
    name: str, quantization: str, capability: tuple[int, int], tp: int, fact: str
) -> None:
    """Gates of compute capability and of divisibility."""
    reason = check_support(_shipped(name, quantization), capability, tp)
    assert reason is not None
    assert fact in reason


@pytest.mark.parametrize(
    ("name", "quantization", "capability", "tp"),
    [
        ("llama3.1-8b", "bf16", (7, 5), 1),
        ("llama3.1-8b", "fp8", (8, 6), 2),
        ("llama3.1-70b", "awq-int4", (8, 9), 4),
        ("llama3.1-70b", "fp8", None, 8),
        ("gpt-oss-120b", "mxfp4", (9, 0), 4),
    ],
)
def test_what_can_be_loaded_is_not_refused(
    name: str, quantization: str, capability: tuple[int, int] | None, tp: int
) -> None:
    """Weight-only kernels serve FP8 below 8.9, AWQ from 7.5; an unknown GPU passes; MXFP4 pads instead of dividing."""
    assert check_support(_shipped(name, quantization), capability, tp) is None


def test_other_formats_quantizations_and_caches_are_refused() -> None:
    """GGUF needs a plugin, EXL2 is unknown, and an fp8 cache needs 8.0."""
    spec = _shipped("llama3.1-8b", "bf16")
    gguf = check_support(replace(spec, format=WeightsFormat.GGUF), (9, 0), 1)
    exl2 = check_support(
        replace(spec, metadata={**spec.metadata, "quantization_config.quant_method": "exl2"}), (9, 0), 1
    )
    fp8 = check_support(spec, (7, 5), 1, kv_cache_dtype="fp8")
    assert check_support(spec, (8, 0), 1, kv_cache_dtype="fp8") is None
    empty = check_support(replace(spec, metadata={}), (9, 0), 1)
    assert gguf is not None
    assert "needs a plugin" in gguf
    assert exl2 is not None
    assert "`exl2`" in exl2
    assert fp8 is not None
    assert "fp8 cache" in fp8
    assert empty is not None
    assert "config.json lacks" in empty


def test_without_bfloat16_the_engine_takes_another_type() -> None:
    """Llama runs as float16 on a T4; Gemma 2, whose float16 is unstable, as float32 at twice the size."""
    llama, gemma = _shipped("llama3.1-8b", "bf16"), _shipped("gemma2-9b", "bf16")
    assert activation_bytes(llama, (7, 5)) == 2
    assert activation_bytes(gemma, (7, 5)) == 4
    assert "takes float16" in (activation_note(llama, (7, 5)) or "")
    assert "takes float32" in (activation_note(gemma, (7, 5)) or "")
    assert activation_note(llama, (8, 0)) is None
    wide, half = (
        read_model(gemma, dtype_bytes=size).weights_bytes(range(42), 1, first=True, last=True) for size in (4, 2)
    )
    assert wide == pytest.approx(2 * half, rel=0.001)


# --- The choice -------------------------------------------------------------------------------------------------

_RTX4090: dict[str, Any] = {"total_mib": 24564, "free_bytes": 24082 * MIB, "capability": (8, 9)}


def _plan(spec: ModelSpec, gpus: tuple[Device, ...], **values: Any) -> VllmChoice:
    found = plan_vllm(spec, (gpus,), **{"n_ctx_per_request": 8192, **values})
    assert isinstance(found, VllmChoice), found
    return found


def test_the_fewest_gpus_are_chosen() -> None:
    """8B fits on one card of two; 70B at FP8 needs both, as tensor parallelism."""
    one = _plan(_shipped("llama3.1-8b", "bf16"), _gpus(2))
    two = _plan(_shipped("llama3.1-70b", "fp8"), _gpus(2), n_parallel=4)
    assert one.devices == ("gpu0",)
    assert two.devices == ("gpu0", "gpu1")
    assert (two.config.tensor_parallel_size, two.config.pipeline_parallel_size) == (2, 1)


def test_a_pipeline_serves_where_tensors_cannot_be_divided() -> None:
    """28 heads do not divide by 3: three small cards are three stages."""
    entry = _PUBLISHED["models"]["Qwen2.5-7B"]
    found = _plan(make_spec(entry["architecture"], entry["config"]), _gpus(3, total_mib=8192, capability=(8, 6)))
    assert (found.config.tensor_parallel_size, found.config.pipeline_parallel_size) == (1, 3)


def test_the_freest_gpu_is_taken_first() -> None:
    """Another program's GPU is left alone."""
    gpus = (_gpu("gpu0", free_bytes=30 * GIB), _gpu("gpu1", free_bytes=78 * GIB))
    assert _plan(_shipped("llama3.1-8b", "bf16"), gpus).devices == ("gpu1",)


def test_what_the_user_fixed_is_honoured() -> None:
    """Parallelism, utilization and cache type stand as they were asked for, or there is a reason."""
    spec = _shipped("llama3.1-8b", "bf16")
    found = _plan(
        spec,
        _gpus(4),
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        gpu_memory_utilization=0.5,
        kv_cache_dtype="fp8",
    )
    assert found.config.n_rank == 4
    assert found.config.gpu_memory_utilization == 0.5
    assert found.config.kv_cache_dtype == "fp8"
    assert plan_vllm(spec, (_gpus(1),), n_ctx_per_request=8192, tensor_parallel_size=2) == (
        "the fixed parallelism needs more GPUs than there are"
    )


def test_the_margin_stays_free() -> None:
    """On a card whose memory another program uses, the engine asks for less than is free, by half a GiB."""
    gpu = _gpu(total_mib=24564, free_bytes=18 * GIB, capability=(8, 9))
    found = _plan(_shipped("llama3.1-8b", "awq-int4"), (gpu,))
    asked = found.config.gpu_memory_utilization * cuda_total_bytes(gpu)
    assert free_at_start_bytes(gpu, found.config) - asked >= 512 * MIB
    assert found.estimate.refusal is None


def test_gemma2_27b_in_four_bits_on_a_4090() -> None:
    """AWQ leaves room for 8192 tokens on 24 GB; 8 bits do not fit, and the reason names the bytes."""
    awq = _plan(_shipped("gemma2-27b", "awq-int4"), (_gpu(**_RTX4090),))
    assert awq.estimate.max_concurrency >= 1
    assert plan_vllm(_shipped("gemma2-27b", "fp8"), ((_gpu(**_RTX4090),),), n_ctx_per_request=8192) == (
        "gpu0: weights 26.5 GiB with 458 MiB for running leave nothing for the cache, 5.3 GiB are missing"
    )


def test_smaller_batches_and_eager_mode_come_before_another_gpu() -> None:
    """Where memory is short the batch shrinks first, and what was given up is said."""
    spec = _shipped("llama3.1-8b", "bf16")
    roomy = _plan(spec, (_gpu(**_RTX4090),))
    assert roomy.given_up == ()
    needed = roomy.estimate.minimum_utilization * cuda_total_bytes(_gpu(**_RTX4090))
    tight = _gpu(total_mib=24564, free_bytes=int(needed) + 1044 * MIB - 64 * MIB, capability=(8, 9))
    found = _plan(spec, (tight, _gpu("gpu1", total_mib=24564, free_bytes=2 * GIB, capability=(8, 9))))
    assert found.devices == ("gpu0",)
    assert found.given_up


def test_nothing_to_plan_on_is_a_reason() -> None:
    """No GPU, or a model far too large: words, not an exception."""
    spec = _shipped("llama3.1-405b", "fp8")
    assert plan_vllm(spec, (), n_ctx_per_request=8192) == "no GPU"
    reason = plan_vllm(spec, ((_gpu(**_RTX4090),),), n_ctx_per_request=8192)
    assert isinstance(reason, str)
    assert "leave nothing for the cache" in reason
