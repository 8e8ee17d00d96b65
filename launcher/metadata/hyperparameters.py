"""Translates what a model's files call its hyperparameters into llama.cpp's words.

It must not know streams, nor what the figures are used for.
"""

from collections.abc import Mapping
from typing import Final

from launcher.domain import ModelSpec, WeightsFormat

_GGUF: Final[Mapping[str, tuple[str, ...]]] = {
    "n_ctx_train": ("{}.context_length",),
    "n_layer": ("{}.block_count",),
    "n_embd": ("{}.embedding_length",),
    "n_head": ("{}.attention.head_count",),
    "n_head_kv": ("{}.attention.head_count_kv", "{}.attention.head_count"),
    "n_expert": ("{}.expert_count",),
    "n_expert_used": ("{}.expert_used_count",),
    "n_swa": ("{}.attention.sliding_window",),
    "n_vocab": ("tokenizer.ggml.tokens.length", "{}.vocab_size"),
}
_HUGGING_FACE: Final[Mapping[str, tuple[str, ...]]] = {
    "n_ctx_train": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "n_layer": ("num_hidden_layers", "n_layer", "num_layers"),
    "n_embd": ("hidden_size", "n_embd", "d_model"),
    "n_head": ("num_attention_heads", "n_head"),
    "n_head_kv": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "n_expert": ("num_local_experts", "num_experts", "n_routed_experts"),
    "n_expert_used": ("num_experts_per_tok", "top_k_experts"),
    "n_swa": ("sliding_window",),
    "n_vocab": ("vocab_size",),
}
_TEXT_MODEL: Final = "text_config."
"""Where a model that also sees or hears keeps the configuration of its language model."""


def hyperparameters(spec: ModelSpec) -> dict[str, int | tuple[int, ...]]:
    """Return the figures that the model's metadata gives, by llama.cpp's names; what it does not say is left out.

    A figure that differs between layers is a tuple with one entry per layer.
    """
    found: dict[str, int | tuple[int, ...]] = {}
    for name, keys in (_GGUF if spec.format is WeightsFormat.GGUF else _HUGGING_FACE).items():
        for key in keys:
            value = _count(spec, key.format(spec.architecture) if spec.format is WeightsFormat.GGUF else key)
            if value is not None:
                found[name] = value
                break
    return found


def _count(spec: ModelSpec, key: str) -> int | tuple[int, ...] | None:
    value = spec.metadata.get(key)
    if value is None and spec.format is WeightsFormat.SAFETENSORS:
        value = spec.metadata.get(_TEXT_MODEL + key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, tuple) and value and all(type(item) is int for item in value):
        return value  # type: ignore[return-value]  # every item was just seen to be an int
    return None
