"""Weights of true shape for tests: the tensors that a Hugging Face configuration implies, without a file.

It knows the layouts of the models in ``data/vllm_published.json``; names and shapes are those of the published repositories.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.domain import ModelSpec, TensorInfo, WeightsFormat
from launcher.tensor_types import TensorType

_WEIGHTS = {"bf16": TensorType.BF16, "fp8": TensorType.F8_E4M3, "int8": TensorType.I8}


def make_spec(architecture: str, config: Mapping[str, Any], quantization: str = "bf16") -> ModelSpec:
    """Return a spec with the tensors of a decoder: ``quantization`` is ``bf16``, ``fp8``, ``int8`` or ``gptq-int4``."""
    metadata = {"architectures": (architecture,), **config}
    if quantization in {"fp8", "int8"}:
        metadata["quantization_config.quant_method"] = "compressed-tensors"
    elif quantization == "gptq-int4":
        metadata |= {"quantization_config.quant_method": "gptq", "quantization_config.group_size": 128}
    return ModelSpec(
        architecture=architecture,
        format=WeightsFormat.SAFETENSORS,
        metadata=metadata,
        tensors=tuple(_tensors(architecture, config, quantization)),
    )


def _tensor(name: str, *shape: int, kind: TensorType = TensorType.BF16) -> TensorInfo:
    return TensorInfo(name=name, shape=shape, type=kind)


def _linear(name: str, n_in: int, n_out: int, quantization: str) -> Iterator[TensorInfo]:
    if quantization == "gptq-int4":
        yield _tensor(f"{name}.qweight", n_out, n_in // 8, kind=TensorType.I32)
        yield _tensor(f"{name}.qzeros", n_out // 8, n_in // 128, kind=TensorType.I32)
        yield _tensor(f"{name}.scales", n_out, n_in // 128, kind=TensorType.F16)
        yield _tensor(f"{name}.g_idx", n_in, kind=TensorType.I32)
        return
    yield _tensor(f"{name}.weight", n_in, n_out, kind=_WEIGHTS[quantization])
    if quantization != "bf16":
        yield _tensor(f"{name}.weight_scale", 1, n_out)


def _tensors(architecture: str, config: Mapping[str, Any], quantization: str) -> Iterator[TensorInfo]:
    n_embd, n_vocab = config["hidden_size"], config["vocab_size"]
    yield _tensor("model.embed_tokens.weight", n_embd, n_vocab)
    yield _tensor("model.norm.weight", n_embd)
    if not config["tie_word_embeddings"]:
        yield _tensor("lm_head.weight", n_embd, n_vocab)
    for idx in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{idx}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield _tensor(f"{prefix}.{name}.weight", n_embd)
        yield from _attention(architecture, config, f"{prefix}.self_attn", quantization)
        yield from _feed_forward(config, prefix, idx, quantization)


def _attention(architecture: str, config: Mapping[str, Any], prefix: str, quantization: str) -> Iterator[TensorInfo]:
    n_embd, n_head = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim", n_embd // n_head)
    if latent := config.get("kv_lora_rank"):
        rope, nope, value = (config[f"{part}_head_dim"] for part in ("qk_rope", "qk_nope", "v"))
        yield from _linear(f"{prefix}.q_proj", n_embd, n_head * (rope + nope), quantization)
        yield from _linear(f"{prefix}.kv_a_proj_with_mqa", n_embd, latent + rope, quantization)
        yield from _linear(f"{prefix}.kv_b_proj", latent, n_head * (nope + value), quantization)
        yield from _linear(f"{prefix}.o_proj", n_head * value, n_embd, quantization)
        return
    for name, heads in (("q_proj", n_head), *((part, config["num_key_value_heads"]) for part in ("k_proj", "v_proj"))):
        yield from _linear(f"{prefix}.{name}", n_embd, heads * size, quantization)
        if architecture.startswith("Qwen2"):
            yield _tensor(f"{prefix}.{name}.bias", heads * size)
    yield from _linear(f"{prefix}.o_proj", n_head * size, n_embd, quantization)


def _feed_forward(config: Mapping[str, Any], prefix: str, idx: int, quantization: str) -> Iterator[TensorInfo]:
    n_embd = config["hidden_size"]
    n_expert = next(
        (config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config), 0
    )
    if not n_expert or idx < config.get("first_k_dense_replace", 0):
        yield from _gated(f"{prefix}.mlp", n_embd, config["intermediate_size"], quantization)
        return
    n_ff = config.get("moe_intermediate_size", config["intermediate_size"])
    yield _tensor(f"{prefix}.mlp.gate.weight", n_embd, n_expert)
    for expert in range(n_expert):
        yield from _gated(f"{prefix}.mlp.experts.{expert}", n_embd, n_ff, quantization)
    if shared := config.get("n_shared_experts"):
        yield from _gated(f"{prefix}.mlp.shared_experts", n_embd, n_ff * shared, quantization)


def _gated(prefix: str, n_embd: int, n_ff: int, quantization: str) -> Iterator[TensorInfo]:
    yield from _linear(f"{prefix}.gate_proj", n_embd, n_ff, quantization)
    yield from _linear(f"{prefix}.up_proj", n_embd, n_ff, quantization)
    yield from _linear(f"{prefix}.down_proj", n_ff, n_embd, quantization)
