"""Tells the GGUF files that only Ollama's own engine reads from those that llama.cpp reads.

Ollama has published models in forms of its own: a picture encoder in the same file, other names of tensors, keys or
architectures. llama.cpp refuses most of them, and serves some wrongly: without their rope keys, for one. Ollama's
patched llama.cpp translates them while it loads; the marks here are those by which it knows them
(github.com/ollama/ollama, ``llama/compat/llama-ollama-compat.cpp`` at commit fb30760). What llama.cpp knows is as of
build 11434. It must not know where a file lies.
"""

from collections.abc import Callable, Mapping
from typing import Final

from launcher.domain import ModelSpec

_OWN_ARCHITECTURES: Final = frozenset(
    {"deepseekocr", "glm4moelite", "glmocr", "gptoss", "mllama", "nemotron_h_omni", "olmo3", "qwen25vl"}
)
"""Names of Ollama's; llama.cpp has these models under other ones or not at all."""

_FOREIGN_TENSORS: Final = ("v.", "mm.", "a.", "mtp.", "model.vision_tower.")
"""Beginnings of the names of tensors that belong to encoders, projectors and drafts: a text loader of llama.cpp counts
its tensors and refuses a file that has others."""

_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "gemma3": (
        *("gemma3.mm.tokens_per_image", "gemma3.rope.global.freq_base", "gemma3.rope.local.freq_base"),
        *("tokenizer.ggml.add_padding_token", "tokenizer.ggml.add_unknown_token"),
    ),
    "laguna": ("laguna.rope.swa.dimension_count", "laguna.rope.swa.freq_base"),
    "mistral3": (
        *("mistral3.rope.scaling.beta_fast", "mistral3.rope.scaling.mscale_all_dim", "mistral3.rope.scaling_beta"),
    ),
    "qwen35": (
        *("qwen35.vision.block_count", "qwen35.image_token_id"),
        *("qwen35.ssm.v_head_reordered", "qwen35.rope.mrope_interleaved"),
    ),
    "qwen35moe": (
        *("qwen35moe.vision.block_count", "qwen35moe.image_token_id"),
        *("qwen35moe.ssm.v_head_reordered", "qwen35moe.rope.mrope_interleaved"),
    ),
}
"""Of architectures that both have: keys that only Ollama's converter writes."""

_MISSING_KEYS: Final[Mapping[str, str]] = {
    "gemma3": "gemma3.attention.layer_norm_rms_epsilon",
    "qwen3vl": "qwen3vl.rope.dimension_sections",
    "qwen3vlmoe": "qwen3vlmoe.rope.dimension_sections",
}
"""Keys that llama.cpp's converter always writes."""


def _lfm2(spec: ModelSpec) -> bool:
    names = {tensor.name for tensor in spec.tensors}
    return "output_norm.weight" in names and "token_embd_norm.weight" not in names


def _gemma3n(spec: ModelSpec) -> bool:
    n_vocab = {
        tensor.shape[-1]
        for tensor in spec.tensors
        if tensor.shape and tensor.name in {"token_embd.weight", "per_layer_token_embd.weight"}
    }
    return len(n_vocab) > 1


def _named(*ends: str) -> Callable[[ModelSpec], bool]:
    return lambda spec: any(tensor.name.endswith(ends) for tensor in spec.tensors)


_TENSORS: Final[Mapping[str, Callable[[ModelSpec], bool]]] = {
    "gemma3": _named("dense.0.weight"),
    "gemma3n": _gemma3n,
    "gemma4": lambda spec: spec.metadata.get("tokenizer.ggml.model") == "llama",
    "laguna": _named(".attn_g.weight"),
    "lfm2": _lfm2,
    "nemotron_h_moe": lambda spec: any(".ffn_latent_in" in tensor.name for tensor in spec.tensors),
    "qwen3next": _named(".ssm_dt"),
    "qwen35": _named(".ssm_dt"),
    "qwen35moe": _named(".ssm_dt"),
}
"""Other marks, by architecture."""


def why_only_ollama(spec: ModelSpec) -> str:
    """Return why llama.cpp cannot be given a file that Ollama has, by its header; empty where it can."""
    architecture = spec.architecture
    if architecture in _OWN_ARCHITECTURES:
        return f"its architecture has a name of Ollama's own, `{architecture}`"
    foreign = next((tensor.name for tensor in spec.tensors if tensor.name.startswith(_FOREIGN_TENSORS)), None)
    if foreign is not None:
        return f"encoder, projector or draft are in the same file (`{foreign}`)"
    key = next((key for key in _KEYS.get(architecture, ()) if key in spec.metadata), None)
    if key is not None:
        return f"it has keys of Ollama's own (`{key}`)"
    missing = _MISSING_KEYS.get(architecture)
    if missing is not None and missing not in spec.metadata:
        return f"it lacks a key that llama.cpp needs (`{missing}`)"
    if _TENSORS.get(architecture, _never)(spec):
        return f"its tensors are named or shaped in Ollama's own way of `{architecture}`"
    return ""


def _never(_: ModelSpec) -> bool:
    return False
