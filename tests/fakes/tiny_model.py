"""A language model of a megabyte in a Hugging Face folder: random weights, a tokenizer of single bytes.

It needs none of the libraries that read it, and answers nonsense. What a test wants otherwise it changes in the folder.
"""

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

N_CTX: Final = 2048
N_LAYER: Final = 2
N_HEAD: Final = 4
N_HEAD_KV: Final = 2
N_PER_HEAD: Final = 32
_N_EMBD: Final = N_HEAD * N_PER_HEAD
_N_FF: Final = 256
_N_VOCAB: Final = 320
_SPECIAL: Final = ("<s>", "</s>")

_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_tiny_model(folder: Path, *, n_layer: int = N_LAYER) -> Path:
    """Write the model into a folder, which is made, and return it: Llama's architecture, bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 256,
        "eos_token_id": 257,
        "hidden_act": "silu",
        "hidden_size": _N_EMBD,
        "intermediate_size": _N_FF,
        "max_position_embeddings": N_CTX,
        "num_attention_heads": N_HEAD,
        "num_hidden_layers": n_layer,
        "num_key_value_heads": N_HEAD_KV,
        "head_dim": N_PER_HEAD,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": _N_VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": _SPECIAL[0],
                "eos_token": _SPECIAL[1],
                "model_max_length": N_CTX,
                "chat_template": _TEMPLATE,
            }
        )
    )
    (folder / "model.safetensors").write_bytes(_weights(n_layer))
    return folder


def _tokenizer() -> dict[str, object]:
    """One token per byte, as its byte-level alphabet writes them, and two special ones."""
    vocab = {char: idx for idx, char in enumerate(_byte_alphabet())}
    added = [
        {
            "id": len(vocab) + idx,
            "content": word,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for idx, word in enumerate(_SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _byte_alphabet() -> list[str]:
    """Return a printable character for each byte: its own where it has one, else one from 256 on (GPT-2's alphabet)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]


def _shapes(n_layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    n_kv = N_HEAD_KV * N_PER_HEAD
    yield "model.embed_tokens.weight", (_N_VOCAB, _N_EMBD)
    for idx in range(n_layer):
        layer = f"model.layers.{idx}"
        for name, n_out, n_in in (
            ("self_attn.q_proj", _N_EMBD, _N_EMBD),
            ("self_attn.k_proj", n_kv, _N_EMBD),
            ("self_attn.v_proj", n_kv, _N_EMBD),
            ("self_attn.o_proj", _N_EMBD, _N_EMBD),
            ("mlp.gate_proj", _N_FF, _N_EMBD),
            ("mlp.up_proj", _N_FF, _N_EMBD),
            ("mlp.down_proj", _N_EMBD, _N_FF),
        ):
            yield f"{layer}.{name}.weight", (n_out, n_in)
        yield f"{layer}.input_layernorm.weight", (_N_EMBD,)
        yield f"{layer}.post_attention_layernorm.weight", (_N_EMBD,)
    yield "model.norm.weight", (_N_EMBD,)
    yield "lm_head.weight", (_N_VOCAB, _N_EMBD)


def _weights(n_layer: int) -> bytes:
    """Return a safetensors file: matrices of numbers near a fortieth with either sign, norms of one."""
    rng = random.Random(0)  # noqa: S311 - weights, not secrets
    header: dict[str, object] = {}
    parts: list[bytes] = []
    end = 0
    for name, shape in _shapes(n_layer):
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        bits = [0x3F80] * n if len(shape) == 1 else [0x3CC0 | (rng.getrandbits(16) & 0x803F) for _ in range(n)]
        parts.append(struct.pack(f"<{n}H", *bits))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + 2 * n]}
        end += 2 * n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)
