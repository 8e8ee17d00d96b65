"""Metadata that a reader lets through and no model has: inputs that `make fuzz` found, kept."""

from typing import Any

import pytest

from launcher.domain import ModelSpec, WeightsFormat
from launcher.planner.architecture import read_architecture
from launcher.planner.footprint.vllm_model import quantization_method, read_model

_GOOD: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.context_length": 4096,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.vocab_size": 100,
}
_NO_COUNTS: tuple[Any, ...] = (
    -8,
    -(2**63),
    2**64 - 1,
    float("nan"),
    float("inf"),
    float("-inf"),
    "many",
    ("a", "b"),
    (-1, -2),
    (),
)


@pytest.mark.parametrize("value", _NO_COUNTS, ids=repr)
@pytest.mark.parametrize(
    "key",
    [
        *(key for key in _GOOD if key != "general.architecture"),
        *("llama.attention.key_length", "llama.attention.value_length", "llama.nextn_predict_layers"),
        *("llama.attention.sliding_window", "llama.rope.dimension_sections", "llama.expert_count"),
    ],
)
def test_what_is_no_count_is_as_good_as_missing(key: str, value: Any) -> None:
    """A negative number of heads had a negative cache; an infinite one raised."""
    spec = ModelSpec(architecture="llama", format=WeightsFormat.GGUF, metadata={**_GOOD, key: value}, tensors=())
    found = read_architecture(spec)
    figures = [found.n_ctx_train, found.n_embd, found.n_head, found.n_ff, found.n_ff_active, found.n_expert]
    figures += [n for head in found.heads for n in (head.n_head, head.n_head_kv, head.head_k, head.head_v)]
    assert all(0 <= n < 2**40 for n in figures)
    assert all(abs(number) < 2**40 for _, number in found.numbers)


@pytest.mark.parametrize("word", ["\x1b[2Jx", "a\nb", "\u202eevil", "x" * 5000])
def test_the_words_of_a_file_cannot_steer_a_terminal(word: str) -> None:
    """A `quant_method` stood in the refusal as it was; names of architectures stand in refusals and notes, too."""
    metadata = {"quantization_config.quant_method": word}
    form = ModelSpec(architecture=word, format=WeightsFormat.SAFETENSORS, metadata=metadata, tensors=())
    gguf = ModelSpec(architecture=word, format=WeightsFormat.GGUF, metadata={}, tensors=())
    for said in (quantization_method(form), read_model(form).architecture, read_architecture(gguf).name):
        assert said
        assert said.isprintable()
        assert len(said) <= 80
