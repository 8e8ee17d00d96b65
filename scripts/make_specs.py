#!/usr/bin/env python3
"""Write the compact model specs of the shipped profiles from published shapes.

    python scripts/make_specs.py --quantizer PATH/TO/llama-quantize [--read gemma3-270m:q4_k_m=FILE.gguf] [NAME ...]

For each model of `make_specs.toml` it derives the tensors from the published configuration, writes a GGUF that has them
over a sparse data area (a few MB of disk whatever its apparent size), and asks `llama-quantize --dry-run` which type
each tensor would get in each quantization. `--read` takes the truth from a real file instead, for that one quantization.
It needs the `gguf` package and a llama.cpp build; nothing is downloaded. It must not know of profiles or plans.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
SCHEMA_VERSION = 1
ALIGNMENT = 32
LINE_WIDTH = 140
DRY_RUN_LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*type = +(\w+), size = .*?(?:\((\w+)\))?$")
BLOCK_NAME = re.compile(r"^blk\.(\d+)\.")

Hparams = dict[str, Any]


@dataclass(frozen=True)
class Pattern:
    """Tensors of one shape: a name, in which `{i}` stands for each of `blocks`; `fixed` where no quantization touches it."""

    name: str
    shape: tuple[int, ...]
    blocks: tuple[int, ...] | None = None
    fixed: str | None = None

    def names(self) -> Iterator[str]:
        """Yield the full names in the order of blocks."""
        if self.blocks is None:
            yield self.name
        else:
            for i in self.blocks:
                yield self.name.replace("{i}", str(i))


# --- From a configuration to tensors: the GGUF names and shapes that llama.cpp's converter gives ------------------


def attention(h: Hparams, blocks: tuple[int, ...], *, gated: bool = False) -> list[Pattern]:
    """Return the four projections of grouped-query attention; `gated` doubles the query's rows (Qwen 3.5)."""
    d, heads, kv_heads = h["embedding_length"], h["attention.head_count"], h["attention.head_count_kv"]
    key, value = h["attention.key_length"], h["attention.value_length"]
    return [
        Pattern("blk.{i}.attn_q.weight", (d, heads * key * (2 if gated else 1)), blocks),
        Pattern("blk.{i}.attn_k.weight", (d, kv_heads * key), blocks),
        Pattern("blk.{i}.attn_v.weight", (d, kv_heads * value), blocks),
        Pattern("blk.{i}.attn_output.weight", (heads * value, d), blocks),
    ]


def feed_forward(h: Hparams, blocks: tuple[int, ...]) -> list[Pattern]:
    """Return the gated feed-forward network of a dense block."""
    d, ff = h["embedding_length"], h["feed_forward_length"]
    return [
        Pattern("blk.{i}.ffn_gate.weight", (d, ff), blocks),
        Pattern("blk.{i}.ffn_up.weight", (d, ff), blocks),
        Pattern("blk.{i}.ffn_down.weight", (ff, d), blocks),
    ]


def experts(h: Hparams, blocks: tuple[int, ...]) -> list[Pattern]:
    """Return the router and the stacked experts of a mixture-of-experts block."""
    d, ff, n = h["embedding_length"], h["expert_feed_forward_length"], h["expert_count"]
    return [
        Pattern("blk.{i}.ffn_gate_inp.weight", (d, n), blocks, "F32"),
        Pattern("blk.{i}.ffn_gate_exps.weight", (d, ff, n), blocks),
        Pattern("blk.{i}.ffn_up_exps.weight", (d, ff, n), blocks),
        Pattern("blk.{i}.ffn_down_exps.weight", (ff, d, n), blocks),
    ]


def vectors(blocks: tuple[int, ...], **extents: int) -> list[Pattern]:
    """Return the F32 vectors of each block, as `name=extent` without the suffix `.weight`."""
    return [Pattern(f"blk.{{i}}.{name}.weight", (extent,), blocks, "F32") for name, extent in extents.items()]


def gemma(h: Hparams, blocks: tuple[int, ...]) -> list[Pattern]:
    """Gemma 2 and 3: a norm before and after each half of the block; Gemma 3 also norms queries and keys."""
    d = h["embedding_length"]
    norms = vectors(blocks, attn_norm=d, post_attention_norm=d, ffn_norm=d, post_ffw_norm=d)
    if "attn_logit_softcapping" not in h:
        norms += vectors(blocks, attn_q_norm=h["attention.key_length"], attn_k_norm=h["attention.key_length"])
    return attention(h, blocks) + feed_forward(h, blocks) + norms


def llama(h: Hparams, blocks: tuple[int, ...]) -> list[Pattern]:
    """Llama 3: a plain dense block, and the factors of its long-context rotary embedding."""
    d = h["embedding_length"]
    factors = Pattern("rope_freqs.weight", (h["rope.dimension_count"] // 2,), fixed="F32")
    return [factors, *attention(h, blocks), *feed_forward(h, blocks), *vectors(blocks, attn_norm=d, ffn_norm=d)]


def qwen3moe(h: Hparams, blocks: tuple[int, ...]) -> list[Pattern]:
    """Qwen 3 MoE: every block a mixture of experts, with normed queries and keys."""
    d, key = h["embedding_length"], h["attention.key_length"]
    norms = vectors(blocks, attn_norm=d, ffn_norm=d, attn_q_norm=key, attn_k_norm=key)
    return attention(h, blocks) + experts(h, blocks) + norms


def gpt_oss(h: Hparams, blocks: tuple[int, ...]) -> list[Pattern]:
    """gpt-oss: biases everywhere, a sink per head."""
    d, ff, n = h["embedding_length"], h["expert_feed_forward_length"], h["expert_count"]
    biases = {
        "attn_q": (h["attention.head_count"] * h["attention.key_length"],),
        "attn_k": (h["attention.head_count_kv"] * h["attention.key_length"],),
        "attn_v": (h["attention.head_count_kv"] * h["attention.value_length"],),
        "attn_output": (d,),
        "ffn_gate_inp": (n,),
        "ffn_gate_exps": (ff, n),
        "ffn_up_exps": (ff, n),
        "ffn_down_exps": (d, n),
    }
    return [
        *attention(h, blocks),
        *experts(h, blocks),
        *vectors(blocks, attn_norm=d, post_attention_norm=d, attn_sinks=h["attention.head_count"]),
        *(Pattern(f"blk.{{i}}.{name}.bias", shape, blocks, "F32") for name, shape in biases.items()),
    ]


def qwen35(h: Hparams, blocks: tuple[int, ...]) -> list[Pattern]:
    """Qwen 3.5 and 3.6: every n-th block has gated attention, the others a gated delta net."""
    d, key = h["embedding_length"], h["attention.key_length"]
    full = tuple(i for i in blocks if (i + 1) % h["full_attention_interval"] == 0)
    linear = tuple(i for i in blocks if i not in full)
    inner, state, heads = h["ssm.inner_size"], h["ssm.state_size"], h["ssm.time_step_rank"]
    qkv = 2 * h["ssm.group_count"] * state + inner
    return [
        *attention(h, full, gated=True),
        *vectors(full, attn_q_norm=key, attn_k_norm=key),
        Pattern("blk.{i}.attn_qkv.weight", (d, qkv), linear),
        Pattern("blk.{i}.attn_gate.weight", (d, inner), linear),
        Pattern("blk.{i}.ssm_conv1d.weight", (h["ssm.conv_kernel"], qkv), linear, "F32"),
        Pattern("blk.{i}.ssm_dt.bias", (heads,), linear, "F32"),
        Pattern("blk.{i}.ssm_a", (heads,), linear, "F32"),
        Pattern("blk.{i}.ssm_beta.weight", (d, heads), linear),
        Pattern("blk.{i}.ssm_alpha.weight", (d, heads), linear),
        *vectors(linear, ssm_norm=state),
        Pattern("blk.{i}.ssm_out.weight", (inner, d), linear),
        *feed_forward(h, blocks),
        *vectors(blocks, attn_norm=d, post_attention_norm=d),
    ]


FAMILIES = {
    "gemma2": gemma,
    "gemma3": gemma,
    "llama": llama,
    "qwen3moe": qwen3moe,
    "gpt-oss": gpt_oss,
    "qwen35": qwen35,
}


def patterns_of(model: dict[str, Any]) -> list[Pattern]:
    """Return every tensor of a model: the embeddings, the output, and its family's blocks."""
    h = model["metadata"]
    d, blocks = h["embedding_length"], tuple(range(h["block_count"]))
    ends = [Pattern("token_embd.weight", (d, model["n_vocab"])), Pattern("output_norm.weight", (d,), fixed="F32")]
    if not model.get("tied", False):
        ends.append(Pattern("output.weight", (d, model["n_vocab"])))
    return ends + FAMILIES[model["architecture"]](h, blocks)


def metadata_of(model: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata with the file's own keys, the tokenizer's arrays reduced to their length."""
    architecture = model["architecture"]
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in model["metadata"].items()},
        "tokenizer.ggml.model": model["tokenizer"],
        "tokenizer.ggml.tokens.length": model["n_vocab"],
    }


# --- The layout of the original release, as safetensors -----------------------------------------------------------

CLASSES = {
    "gemma2": "Gemma2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
LAYER = "model.layers.{i}."
TORCH_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_q": f"{LAYER}self_attn.q_proj",
    "blk.{i}.attn_k": f"{LAYER}self_attn.k_proj",
    "blk.{i}.attn_v": f"{LAYER}self_attn.v_proj",
    "blk.{i}.attn_output": f"{LAYER}self_attn.o_proj",
    "blk.{i}.attn_sinks": f"{LAYER}self_attn.sinks",
    "blk.{i}.ffn_gate": f"{LAYER}mlp.gate_proj",
    "blk.{i}.ffn_up": f"{LAYER}mlp.up_proj",
    "blk.{i}.ffn_down": f"{LAYER}mlp.down_proj",
    "blk.{i}.ffn_gate_inp": f"{LAYER}mlp.router",
    "blk.{i}.attn_norm": f"{LAYER}input_layernorm",
    "blk.{i}.post_attention_norm": f"{LAYER}post_attention_layernorm",
    "blk.{i}.ffn_norm": f"{LAYER}post_attention_layernorm",
    "blk.{i}.post_ffw_norm": f"{LAYER}post_feedforward_layernorm",
}
FAMILY_NAMES = {
    "gemma2": {"blk.{i}.ffn_norm": f"{LAYER}pre_feedforward_layernorm"},
    "qwen3moe": {
        "blk.{i}.attn_q_norm": f"{LAYER}self_attn.q_norm",
        "blk.{i}.attn_k_norm": f"{LAYER}self_attn.k_norm",
        "blk.{i}.ffn_gate_inp": f"{LAYER}mlp.gate",
        # one tensor per expert there; here all of a block's stand as one of three dimensions, which sums to the same
        "blk.{i}.ffn_gate_exps": f"{LAYER}mlp.experts.gate_proj",
        "blk.{i}.ffn_up_exps": f"{LAYER}mlp.experts.up_proj",
        "blk.{i}.ffn_down_exps": f"{LAYER}mlp.experts.down_proj",
    },
}
FAMILY_CONFIG_KEYS = {
    "qwen3moe": {"expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size"},
}
CONFIG_KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
}
INT4_GROUP = 128
"""Weights that share a scale, in the AWQ and GPTQ releases of these models."""
FP8_BLOCK = 128
"""Rows and columns of weights that share a scale, in Qwen's own FP8 releases."""

QUANTIZATION_CONFIGS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp8": {"quant_method": "compressed-tensors"},
    "fp8-block": {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]},
    "awq-int4": {"quant_method": "awq", "bits": 4, "group_size": INT4_GROUP},
    "gptq-int4": {"quant_method": "gptq", "bits": 4, "group_size": INT4_GROUP},
    "mxfp4": {"quant_method": "mxfp4"},
}


def quantized_linear(name: str, shape: tuple[int, ...], blocks: tuple[int, ...], scheme: str) -> list[Pattern]:
    """Return the tensors that stand for one linear layer of `shape` (inputs, outputs) under a scheme.

    AWQ packs eight 4-bit outputs into an integer, GPTQ eight inputs; both keep a scale and a zero point per group.
    FP8 keeps one scale per layer, or one per block of weights. Whatever further extents there are stay as they are.
    """
    n_in, n_out, *more = shape
    groups = n_in // INT4_GROUP
    scales = (-(-n_in // FP8_BLOCK), -(-n_out // FP8_BLOCK))
    forms: dict[str, list[tuple[str, tuple[int, ...], str]]] = {
        "fp8": [("weight", shape, "F8_E4M3"), ("weight_scale", (1,), "BF16")],
        "fp8-block": [("weight", (n_in, n_out), "F8_E4M3"), ("weight_scale_inv", scales, "BF16")],
        "awq-int4": [
            ("qweight", (n_out // 8, n_in), "I32"),
            ("qzeros", (n_out // 8, groups), "I32"),
            ("scales", (n_out, groups), "F16"),
        ],
        "gptq-int4": [
            ("qweight", (n_out, n_in // 8), "I32"),
            ("qzeros", (n_out // 8, groups), "I32"),
            ("scales", (n_out, groups), "F16"),
            ("g_idx", (n_in,), "I32"),
        ],
    }
    return [Pattern(f"{name}.{suffix}", (*extents, *more), blocks, kind) for suffix, extents, kind in forms[scheme]]


def mxfp4_experts(h: Hparams) -> list[Pattern]:
    """Return gpt-oss's experts: blocks of 16 bytes hold 32 weights, with a scale of one byte each."""
    d, ff, n = h["embedding_length"], h["expert_feed_forward_length"], h["expert_count"]
    blocks, experts_of = tuple(range(h["block_count"])), f"{LAYER}mlp.experts."
    patterns = []
    for name, n_in, n_out in (("gate_up_proj", d, 2 * ff), ("down_proj", ff, d)):
        patterns += [
            Pattern(f"{experts_of}{name}_blocks", (16, n_in // 32, n_out, n), blocks, "U8"),
            Pattern(f"{experts_of}{name}_scales", (n_in // 32, n_out, n), blocks, "U8"),
            Pattern(f"{experts_of}{name}_bias", (n_out, n), blocks, "BF16"),
        ]
    return patterns


def layout_of(model: dict[str, Any], scheme: str) -> dict[str, Any]:
    """Return the tensors and the configuration of one safetensors form of a model."""
    names = TORCH_NAMES | FAMILY_NAMES.get(model["architecture"], {})
    keys = CONFIG_KEYS | FAMILY_CONFIG_KEYS.get(model["architecture"], {})
    packed = "fp8-block" if scheme == "fp8" and model.get("fp8_blocks") else scheme
    plain = "F16" if scheme.endswith("int4") else "BF16"
    patterns: list[Pattern] = []
    for pattern in patterns_of(model):
        base, _, kind = pattern.name.rpartition(".")
        if base == "rope_freqs" or ("_exps" in base and base not in names):
            continue
        name = names[base]
        is_linear = pattern.blocks is not None and pattern.fixed is None
        if is_linear and pattern.blocks is not None and scheme not in ("bf16", "mxfp4"):
            patterns += quantized_linear(name, pattern.shape, pattern.blocks, packed)
        else:
            full_name = name if name.endswith("sinks") else f"{name}.{kind}"
            patterns.append(Pattern(full_name, pattern.shape, pattern.blocks, plain))
    if scheme == "mxfp4":
        patterns += mxfp4_experts(model["metadata"])
    quantization = {f"quantization_config.{key}": value for key, value in QUANTIZATION_CONFIGS[packed].items()}
    return {
        "provenance": "derived",
        "architecture": CLASSES[model["architecture"]],
        "metadata": {
            "architectures": [CLASSES[model["architecture"]]],
            **{keys[key]: value for key, value in model["metadata"].items() if key in keys},
            "vocab_size": model["n_vocab"],
            "tie_word_embeddings": model.get("tied", False),
            "torch_dtype": {"F16": "float16", "BF16": "bfloat16"}[plain],
            **quantization,
        },
        "tensors": [compact_tensor(pattern) for pattern in patterns],
    }


# --- The shape file and the quantizer ------------------------------------------------------------------------------


def write_shape_file(model: dict[str, Any], patterns: list[Pattern], path: Path) -> None:
    """Write a GGUF of F16 and F32 tensors whose data area is a hole in the file."""
    writer = gguf.GGUFWriter(path, model["architecture"])
    for key, value in model["metadata"].items():
        full_key = f"{model['architecture']}.{key}"
        match value:
            case int():
                writer.add_uint32(full_key, value)
            case float():
                writer.add_float32(full_key, value)
            case str():
                writer.add_string(full_key, value)
            case _:
                writer.add_array(full_key, value)
    writer.add_tokenizer_model(model["tokenizer"])
    writer.add_token_list([f"t{i}" for i in range(model["n_vocab"])])
    n_data_bytes = 0
    for pattern in patterns:
        n_bytes = 4 if pattern.fixed == "F32" else 2
        for extent in pattern.shape:
            n_bytes *= extent
        dtype = np.dtype("float32" if pattern.fixed == "F32" else "float16")
        for name in pattern.names():
            writer.add_tensor_info(name, tuple(reversed(pattern.shape)), dtype, n_bytes)
            n_data_bytes += -(-n_bytes // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + ALIGNMENT + n_data_bytes)


def ask_types(quantizer: Path, shape_file: Path, quantization: str) -> dict[str, str]:
    """Return the type that `llama-quantize` would give each tensor.

    The rules for very small types differ with an importance matrix at hand only in that the run is refused without
    one; a dry run prints its choice all the same.
    """
    name = {"mxfp4": "MXFP4_MOE"}.get(quantization, quantization.upper())
    argv = [str(quantizer), "--dry-run", str(shape_file), name]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603  the caller's own path
    types = {}
    for line in (run.stdout + run.stderr).splitlines():
        if match := DRY_RUN_LINE.match(line.strip()):
            tensor, before, after = match.groups()
            types[tensor] = (after or before).upper()
    if run.returncode or not types:
        sys.exit(f"{' '.join(argv)} failed with {run.returncode}:\n{run.stderr[-2000:]}")
    return types


def read_types(path: Path) -> dict[str, str]:
    """Return the tensor types of a real GGUF file."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


# --- The compact form ----------------------------------------------------------------------------------------------


def write_ranges(blocks: tuple[int, ...]) -> str:
    """Write ascending numbers as ranges: `0-3,7,9-11`."""
    parts: list[list[int]] = []
    for i in blocks:
        if parts and parts[-1][1] == i - 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def write_runs(types: list[str]) -> str:
    """Write types in the order of blocks as runs: `Q6_K*2 Q5_K`; a type shared by all stands alone."""
    if len(set(types)) == 1:
        return types[0]
    runs: list[tuple[str, int]] = []
    for kind in types:
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] + 1)
        else:
            runs.append((kind, 1))
    return " ".join(kind if n == 1 else f"{kind}*{n}" for kind, n in runs)


def compact_tensor(pattern: Pattern) -> dict[str, Any]:
    """Return a pattern as it stands in the file, without what is absent."""
    tensor: dict[str, Any] = {"name": pattern.name, "shape": list(pattern.shape)}
    if pattern.blocks is not None:
        tensor["blocks"] = write_ranges(pattern.blocks)
    if pattern.fixed:
        tensor["type"] = pattern.fixed
    return tensor


def compact_types(patterns: list[Pattern], types: dict[str, str]) -> dict[str, str]:
    """Return the runs of every pattern whose type a quantization chooses; the fixed ones must be as stated."""
    named = {name for pattern in patterns for name in pattern.names()}
    if named != types.keys():
        sys.exit(f"tensors differ from the file's: {sorted(named ^ types.keys())[:6]}")
    for pattern in patterns:
        if pattern.fixed and {types[name] for name in pattern.names()} != {pattern.fixed}:
            sys.exit(f"{pattern.name} is not {pattern.fixed} throughout")
    return {p.name: write_runs([types[name] for name in p.names()]) for p in patterns if not p.fixed}


def write_json(value: object, indent: int = 0) -> str:
    """Write JSON that keeps on one line whatever fits there, so that differences can be read."""
    line = json.dumps(value)
    if indent + len(line) <= LINE_WIDTH or not isinstance(value, dict | list):
        return line
    inner = indent + 1
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {write_json(item, inner)}" for key, item in value.items()]
    else:
        items = [write_json(item, inner) for item in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n" + ",\n".join(" " * inner + item for item in items) + "\n" + " " * indent + end


def make_spec(name: str, model: dict[str, Any], quantizer: Path, real_files: dict[str, Path]) -> dict[str, Any]:
    """Return the compact spec of one model."""
    patterns = patterns_of(model)
    quantizations: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        shape_file = Path(folder) / "shape.gguf"
        write_shape_file(model, patterns, shape_file)
        for quantization in model["quantizations"]:
            if real := real_files.get(quantization):
                types, provenance = read_types(real), "read"
            else:
                types, provenance = ask_types(quantizer, shape_file, quantization), "derived"
            quantizations[quantization] = {"provenance": provenance, "types": compact_types(patterns, types)}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "architecture": model["architecture"],
        "sources": model["sources"],
        "metadata": metadata_of(model),
        "tensors": [compact_tensor(pattern) for pattern in patterns],
        "quantizations": quantizations,
        "safetensors": {scheme: layout_of(model, scheme) for scheme in model.get("safetensors", ())},
    }


def main() -> None:
    """Write the specs of the named models, or of all."""
    models = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(models)}")
    parser.add_argument("--quantizer", type=Path, required=True, help="the `llama-quantize` of a llama.cpp build")
    parser.add_argument("--read", action="append", default=[], metavar="NAME:QUANT=FILE", help="a real file to read")
    parser.add_argument("--output", type=Path, default=ROOT / "profiles" / "specs")
    arguments = parser.parse_args()
    real_files: dict[str, dict[str, Path]] = {}
    for item in arguments.read:
        target, _, path = item.partition("=")
        name, _, quantization = target.partition(":")
        real_files.setdefault(name, {})[quantization] = Path(path)
    for name in arguments.names or models:
        spec = make_spec(name, models[name], arguments.quantizer, real_files.get(name, {}))
        path = arguments.output / f"{name}.json"
        text = write_json(spec) + "\n"
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}: {len(text)} bytes, {len(spec['quantizations'])} quantizations\n")


if __name__ == "__main__":
    main()
