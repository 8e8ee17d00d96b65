"""Writes a GGUF file of a model's true shape: real header, real size of vocabulary, and data that is a hole.

The file takes a few MB of disk however large it seems, so an engine's own account of a 405B model can be asked on a
small machine. It must not know where a spec comes from.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from launcher.domain import MetadataValue, ModelSpec
from launcher.tensor_types import TRAITS
from launcher.units import pad

_ALIGNMENT: Final = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_SCALARS: Final = {_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
"""Kinds of a token (``enum llama_token_type``)."""


def write_shape(spec: ModelSpec, path: Path) -> int:
    """Write the file; return its apparent size in bytes. The vocabulary has as many words as the embedding has rows."""
    n_vocab = next(tensor.shape[1] for tensor in spec.tensors if tensor.name == "token_embd.weight")
    prefix = f"{spec.architecture}."
    pairs = [_pair("general.architecture", spec.architecture), _pair("general.alignment", _ALIGNMENT)]
    pairs += [_pair(key, value) for key, value in spec.metadata.items() if key.startswith(prefix)]
    pairs += _vocabulary(n_vocab)
    infos, n_bytes = [], 0
    for tensor in spec.tensors:
        extents = struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        kind = struct.pack("<IQ", TRAITS[tensor.type].ggml_id, n_bytes)
        infos.append(_text(tensor.name) + struct.pack("<I", len(tensor.shape)) + extents + kind)
        n_bytes += pad(tensor.n_bytes, _ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    size = pad(len(head), _ALIGNMENT) + n_bytes
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(size)
    return size


def _vocabulary(n_vocab: int) -> Iterator[bytes]:
    """Yield the keys of a tokenizer of ``n_vocab`` words: three special ones, every byte, then words of usual length."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))][:n_vocab]
    words = [*special, *(f"\u2581w{idx:x}" for idx in range(n_vocab - len(special)))]
    kinds = ([_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * 256)[:n_vocab]
    kinds += [_NORMAL] * (n_vocab - len(kinds))
    yield _pair("tokenizer.ggml.model", "llama")
    yield _pair("tokenizer.ggml.pre", "default")
    yield _array("tokenizer.ggml.tokens", _STRING, n_vocab, b"".join(map(_text, words)))
    yield _array("tokenizer.ggml.scores", _FLOAT32, n_vocab, bytes(4 * n_vocab))
    yield _array("tokenizer.ggml.token_type", _INT32, n_vocab, struct.pack(f"<{n_vocab}i", *kinds))
    for idx, name in enumerate(("unknown", "bos", "eos")):
        yield _pair(f"tokenizer.ggml.{name}_token_id", idx)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: MetadataValue) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, tuple):
        kind = _kind(value[0])
        return _array(key, kind, len(value), b"".join(struct.pack(_SCALARS[kind], item) for item in value))
    return _text(key) + struct.pack("<I", _kind(value)) + struct.pack(_SCALARS[_kind(value)], value)


def _kind(value: bool | float | str) -> int:  # noqa: FBT001 - any scalar of a header
    if isinstance(value, bool):
        return _BOOL
    return _FLOAT32 if isinstance(value, float) else _UINT32


def _array(key: str, kind: int, n: int, data: bytes) -> bytes:
    return _text(key) + struct.pack("<IIQ", _ARRAY, kind, n) + data
