"""Hostile weights: headers of GGUF files and folders of safetensors, read and shown as `launch inspect` does.

It must not know how inputs are changed.
"""

import io
import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from launcher.domain import ModelSpec, WeightsFormat
from launcher.errors import LauncherError, MetadataError, WeightsMissingError
from launcher.metadata.files import ByteStream
from launcher.metadata.gguf import count_shards, join_shards, read_gguf
from launcher.metadata.hyperparameters import hyperparameters
from launcher.metadata.safetensors import read_files
from launcher.profiles import load_profile, name_quantization
from launcher.render.inspect import render_spec, render_spec_json
from launcher.tensor_types import BY_GGML_ID, TensorType
from tests.fuzz.target import Target, WrongError, check_printable
from tests.fuzz.trees import Tree

MODELS: Final = ("gemma2-9b", "llama3.1-8b", "qwen3-30b-a3b", "qwen3.6-27b", "gpt-oss-20b", "gemma3-270m")
"""Profiles whose models are the seeds, cut to their first blocks: with experts, windows, and states among them."""
_MAX_TENSORS_PER_BLOCK: Final = 15
_GGML_IDS: Final = {kind: number for number, kind in BY_GGML_ID.items()}
_CODES: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_SIZE: Final = struct.Struct("<Q")


# --- GGUF -------------------------------------------------------------------------------------------------------


class SparseStream(io.RawIOBase):
    """A header, and behind it zeros up to the size of the file: weights that nobody wrote."""

    def __init__(self, header: bytes, size_bytes: int) -> None:
        """Stand at the start."""
        self._header, self._size, self._at = header, size_bytes, 0
        self.most = 0

    def read(self, n_bytes: int = -1, /) -> bytes:
        """Read; more than remains may not be asked for."""
        if not 0 <= n_bytes <= self._size - self._at:
            msg = f"asked for {n_bytes} bytes at {self._at} of {self._size}"
            raise WrongError(msg)
        self.most = max(self.most, n_bytes)
        part = self._header[self._at : self._at + n_bytes]
        part += b"\0" * min(n_bytes - len(part), 1 << 20)
        self._at += len(part)
        return part

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, which has to be in the file."""
        if whence or not 0 <= offset <= self._size:
            msg = f"sought {offset} of {self._size}"
            raise WrongError(msg)
        self._at = offset
        return offset


def _type_of(value: object) -> list[Any]:
    """Return the GGUF type of a value of a header, of an array that of its elements too."""
    match value:
        case bool():
            return [7]
        case int():
            return [4 if 0 <= value < 2**32 else 11]
        case float():
            return [12]
        case tuple() | list():
            return [_ARRAY, *(_type_of(value[0]) if value else [4])]
        case _:
            return [_STRING]


@cache
def small_specs(n_block: int = 4) -> tuple[ModelSpec, ...]:
    """Return the shapes of real models, each with its first blocks alone."""
    found = []
    for name in MODELS:
        profile = load_profile(name)
        specs = [artifact.spec for artifact in profile.artifacts if artifact.spec is not None]
        for kind in WeightsFormat:
            of_kind = [spec for spec in specs if spec.format is kind]
            found += [_cut(spec, n_block) for spec in of_kind[:: max(1, len(of_kind) // 2)]]
    return tuple(found)


def _cut(spec: ModelSpec, n_block: int) -> ModelSpec:
    blocks = tuple(f"{prefix}{idx}." for idx in range(n_block) for prefix in ("blk.", "layers."))
    kept = [
        tensor
        for tensor in spec.tensors
        if ("blk." not in tensor.name and "layers." not in tensor.name) or any(part in tensor.name for part in blocks)
    ]
    metadata = {
        key: min(value, n_block) if key.endswith((".block_count", "num_hidden_layers")) else value
        for key, value in spec.metadata.items()
    }
    return ModelSpec(
        architecture=spec.architecture,
        format=spec.format,
        metadata=metadata,
        tensors=tuple(kept[: n_block * _MAX_TENSORS_PER_BLOCK]),
    )


def gguf_tree(spec: ModelSpec) -> Tree:
    """Return a GGUF file as a tree: all that ``encode_gguf`` writes, lengths and offsets left to it."""
    metadata = {"general.architecture": spec.architecture, **spec.metadata}
    pairs = [
        [key, *_type_of(value), list(value) if isinstance(value, tuple) else value]
        for key, value in metadata.items()
        if not key.endswith(".length")
    ]
    pairs.append(["tokenizer.ggml.tokens", _ARRAY, _STRING, ["<s>", "</s>", "a", "é"]])
    pairs.append(["tokenizer.ggml.scores", _ARRAY, 6, [0.0, -1.0, 2.5]])
    pairs.append(["tokenizer.chat_template", _STRING, "{% for m in messages %}\n{{ m }}{% endfor %}"])
    tensors = [[tensor.name, list(tensor.shape), _GGML_IDS[tensor.type], None] for tensor in spec.tensors]
    return {
        "magic": b"GGUF",
        "version": 3,
        "n_tensors": None,
        "n_pairs": None,
        "pairs": pairs,
        "tensors": tensors,
        "size": None,
        "cut": None,
        "patch": b"",
        "patch_at": 0,
    }


def _gguf_seeds() -> list[Tree]:
    seeds = [gguf_tree(spec) for spec in small_specs(1) if spec.format is WeightsFormat.GGUF]
    shard = gguf_tree(next(spec for spec in small_specs(1) if spec.format is WeightsFormat.GGUF))
    split = [["split.no", 2, 0], ["split.count", 2, 2], ["split.tensors.count", 5, len(shard["tensors"])]]
    seeds.append({**shard, "pairs": [*shard["pairs"], *split]})
    for kind in (4, _STRING, _ARRAY, 7):
        nested = [[kind, [1, 2]], [kind, [3]]] if kind != _ARRAY else [[_ARRAY, [[4, [1]], [_STRING, ["x"]]]]]
        seeds.append({**shard, "pairs": [["x.nested", _ARRAY, _ARRAY, nested], *shard["pairs"]]})
    seeds.append({**shard, "pairs": [["general.alignment", 4, 64], *shard["pairs"]]})
    return seeds


def number(value: Tree, default: int = 0) -> int:
    """Return what stands where a number should, as one."""
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else default
    return int(value) if isinstance(value, int) else default


def octets(value: Tree) -> bytes:
    """Return what stands where a text should, as bytes; what is no Unicode is written all the same."""
    if isinstance(value, bytes):
        return value
    try:
        text = value if isinstance(value, str) else str(value)[:10_000]
    except RecursionError:
        text = "[" * 3000
    return text.encode("utf-8", "surrogatepass")


def items(value: Tree) -> list[Tree]:
    """Return what stands where a list should, as one."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _text(value: Tree) -> bytes:
    data = octets(value)
    return _SIZE.pack(len(data)) + data


def _scalar(kind: int, value: Tree) -> bytes:
    code = _CODES.get(kind, "I")
    if code in "fd":
        real = (
            float(min(max(value, -3e38), 3e38))
            if isinstance(value, int | float) and not math.isnan(value)
            else math.nan
        )
        real = value if isinstance(value, float) and math.isinf(value) else real
        return struct.pack(f"<{code}", real)
    size = struct.calcsize(code)
    mask: int = 2 ** (8 * size) - 1
    return (number(value) & mask).to_bytes(size, "little")


def _value(kinds: list[Tree], value: Tree, depth: int = 0) -> bytes:
    kind = number(kinds[0], 4) if kinds else 4
    if kind == _STRING:
        return _text(value)
    if kind != _ARRAY or depth > 6:
        return _scalar(kind, value)
    inner = kinds[1:] or [4]
    values = items(value)[:5000]
    head = struct.pack("<iQ", number(inner[0], 4) & 0x7FFFFFFF, len(values))
    if number(inner[0], 4) == _ARRAY:
        parts = []
        for each in values:
            pair = items(each)
            parts.append(_value([_ARRAY, *pair[:1]], pair[1] if len(pair) > 1 else [], depth + 1))
        return head + b"".join(parts)
    return head + b"".join(_value(inner, each, depth + 1) for each in values)


def encode_gguf(tree: Tree) -> bytes:
    """Write a GGUF header, and before it the size that its file has."""
    if not isinstance(tree, dict):
        return _SIZE.pack(64) + octets(tree)
    pairs, tensors = items(tree.get("pairs", [])), items(tree.get("tensors", []))
    n_tensors, n_pairs = tree.get("n_tensors"), tree.get("n_pairs")
    parts = [
        octets(tree.get("magic", b"GGUF")),
        (number(tree.get("version"), 3) & 0xFFFFFFFF).to_bytes(4, "little"),
        (len(tensors) if n_tensors is None else number(n_tensors) & (2**64 - 1)).to_bytes(8, "little"),
        (len(pairs) if n_pairs is None else number(n_pairs) & (2**64 - 1)).to_bytes(8, "little"),
    ]
    alignment = 32
    for pair in pairs:
        key, *kinds, value = items(pair) if len(items(pair)) > 2 else ["x.key", 4, 1]
        kinds = _type_of(value) if kinds == [None] else kinds
        kind = number(kinds[0], 4)
        if key == "general.alignment" and kind == 4 and 0 < number(value) < 2**20:
            alignment = number(value)
        parts += [_text(key), (kind & 0xFFFFFFFF).to_bytes(4, "little"), _value(kinds, value)]
    end = 0
    for tensor in tensors:
        name, shape, kind, offset = (items(tensor) + [None] * 4)[:4]
        extents = [number(extent) for extent in items(shape if shape is not None else [])]
        parts += [_text(name), len(extents).to_bytes(4, "little")]
        parts += [(extent & (2**64 - 1)).to_bytes(8, "little") for extent in extents]
        parts.append((number(kind) & 0xFFFFFFFF).to_bytes(4, "little"))
        parts.append(((end if offset is None else number(offset)) & (2**64 - 1)).to_bytes(8, "little"))
        end += -(-_n_bytes(number(kind), extents) // alignment) * alignment
    header = b"".join(parts)
    patch, at = octets(tree.get("patch", b"")), abs(number(tree.get("patch_at"))) % (len(header) + 1)
    if patch:
        header = header[:at] + patch + header[at + len(patch) :]
    if tree.get("cut") is not None:
        header = header[: abs(number(tree["cut"])) % (len(header) + 1)]
        end = 0
    size = tree.get("size")
    whole = len(header) + alignment + end if size is None else number(size)
    return _SIZE.pack(max(0, min(whole, 2**63 - 1))) + header


def _n_bytes(kind: int, extents: list[int]) -> int:
    from launcher.tensor_types import tensor_bytes  # noqa: PLC0415 - read as one place

    tensor_type = BY_GGML_ID.get(kind)
    try:
        return max(0, tensor_bytes(tensor_type, tuple(extents))) if tensor_type is not None else 0
    except ValueError:
        return 0


def open_gguf(data: bytes) -> tuple[SparseStream, int]:
    """Return the file that an input stands for, and its size."""
    size_bytes = max(_SIZE.unpack(data[:8].ljust(8, b"\0"))[0], len(data) - 8)
    return SparseStream(data[8:], size_bytes), size_bytes


def show_spec(spec: ModelSpec) -> None:
    """Show a model in every way that there is; nothing of it may steer a terminal."""
    figures = hyperparameters(spec)
    check_printable(render_spec(spec, figures, with_tensors=True), "inspect", lines=True)
    json.loads(render_spec_json(spec, figures))
    check_printable(name_quantization(spec), "the quantization's name")


def _take_gguf(data: bytes) -> str:
    stream, size_bytes = open_gguf(data)
    header = read_gguf(stream, size_bytes)
    if header.tensors and header.data_offset + sum(tensor.n_bytes for tensor in header.tensors) > size_bytes:
        msg = "tensors lie outside of the file"
        raise WrongError(msg)
    n_shards = count_shards(header)
    if n_shards > 1:
        join_shards([header] * min(n_shards, 3), ["x-00001-of-00002.gguf"] * min(n_shards, 3))
    show_spec(header.spec)
    return f"accepted with {'no' if not header.tensors else 'some'} tensors"


def _depth_gguf(error: LauncherError) -> str:
    """Say in which part of the header the reader stood."""
    if not isinstance(error, MetadataError):
        return type(error).__name__
    field = error.field
    for begin, part in (
        (("magic", "version"), "1 magic, version"),
        (("tensor_count", "metadata_kv_count"), "2 counts"),
        (("shape of", "type of tensor", "tensor name", "length of tensor name"), "4 tensors"),
        (("offset of", "data of"), "5 layout of the data"),
        (("split.", "general.architecture"), "6 what the header means"),
    ):
        if field.startswith(begin):
            return f"MetadataError in {part}"
    return "MetadataError in 3 keys and values"


# --- Safetensors ------------------------------------------------------------------------------------------------


class _MemoryFolder:
    """A Hugging Face folder of a few files in memory, the weights' data left out."""

    title = "folder"

    def __init__(self, files: dict[str, bytes], sizes: dict[str, int]) -> None:
        self._files, self._sizes = files, sizes

    def names(self) -> list[str]:
        """Return the names, sorted."""
        return sorted(self._files)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[ByteStream, int]]:
        """Open one."""
        if name not in self._files:
            msg = "there is no such file"
            raise WeightsMissingError(msg)
        size_bytes = self._sizes[name]
        yield SparseStream(self._files[name], size_bytes), size_bytes


def safetensors_tree(spec: ModelSpec) -> Tree:
    """Return a folder as a tree: its configuration, and its tensors in one file or two."""
    config: Tree = {"architectures": [spec.architecture]}
    for key, value in spec.metadata.items():
        node = config
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        if isinstance(node, dict):
            node[last] = list(value) if isinstance(value, tuple) else value
    tensors = [[tensor.name, tensor.type.value, list(reversed(tensor.shape)), None] for tensor in spec.tensors]
    return {
        "config": config,
        "files": [tensors],
        "index": None,
        "metadata": {"format": "pt"},
        "patch": b"",
        "patch_at": 0,
    }


def _safetensors_seeds() -> list[Tree]:
    seeds = [safetensors_tree(spec) for spec in small_specs(2) if spec.format is WeightsFormat.SAFETENSORS]
    first = seeds[0]
    tensors = first["files"][0]
    halves = [tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]]
    index = {entry[0]: f"model-{n + 1:05}-of-00002.safetensors" for n, half in enumerate(halves) for entry in half}
    return [*seeds, {**first, "files": halves, "index": {"weight_map": index}}]


def to_json(tree: Tree) -> bytes:
    """Write a tree as JSON, whatever it holds."""
    try:
        return json.dumps(tree, default=lambda value: octets(value).decode("latin-1")).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        return b"[" * 100_000


def encode_safetensors(tree: Tree) -> bytes:
    """Write a folder: each file's name, its size, how much of it is there, and that."""
    if not isinstance(tree, dict):
        tree = {"config": tree}
    files = {"config.json": (to_json(tree.get("config", {})), 0)}
    shards = items(tree.get("files", []))
    for n, tensors in enumerate(shards[:4]):
        name = "model.safetensors" if len(shards) == 1 else f"model-{n + 1:05}-of-{len(shards):05}.safetensors"
        files[name] = _encode_shard(tensors, tree.get("metadata"))
    if tree.get("index") is not None:
        files["model.safetensors.index.json"] = (to_json(tree["index"]), 0)
    patch, at = octets(tree.get("patch", b"")), abs(number(tree.get("patch_at")))
    parts = []
    for name, (content, n_more) in files.items():
        if patch and name.startswith("model"):
            begin = at % (len(content) + 1)
            content = content[:begin] + patch + content[begin + len(patch) :]  # noqa: PLW2901 - patched
        parts.append(struct.pack("<64sQI", name.encode(), len(content) + n_more, len(content)) + content)
    return b"".join(parts)


def _encode_shard(tensors: Tree, metadata: Tree) -> tuple[bytes, int]:
    header: dict[str, Tree] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for entry in items(tensors):
        name, dtype, shape, offsets = (items(entry) + [None] * 4)[:4]
        n_bytes = _safetensors_bytes(dtype, shape)
        header[name if isinstance(name, str) else octets(name).decode("latin-1")] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [end, end + n_bytes] if offsets is None else offsets,
        }
        end += n_bytes
    text = to_json(header)
    return _SIZE.pack(len(text)) + text, min(end, 2**62)


def _safetensors_bytes(dtype: Tree, shape: Tree) -> int:
    extents = shape if isinstance(shape, list) else []
    if not all(type(extent) is int and 0 <= extent < 2**40 for extent in extents) or not isinstance(dtype, str):
        return 0
    try:
        kind = TensorType(dtype)
    except ValueError:
        return 0
    from launcher.tensor_types import tensor_bytes  # noqa: PLC0415 - read as one place

    try:
        return tensor_bytes(kind, tuple(reversed(extents)))
    except ValueError:
        return 0


_FILE: Final = struct.Struct("<64sQI")


def open_safetensors(data: bytes) -> _MemoryFolder:
    """Return the folder that an input stands for."""
    files: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    while len(data) >= _FILE.size:
        name, size_bytes, n_held = _FILE.unpack(data[: _FILE.size])
        content, data = data[_FILE.size : _FILE.size + n_held], data[_FILE.size + n_held :]
        shown = name.rstrip(b"\0").decode("ascii", "replace")
        files[shown], sizes[shown] = content, max(size_bytes, len(content))
    return _MemoryFolder(files, sizes)


def _take_safetensors(data: bytes) -> str:
    spec = read_files(open_safetensors(data))
    show_spec(spec)
    return "accepted"


def _depth_safetensors(error: LauncherError) -> str:
    if not isinstance(error, MetadataError):
        return type(error).__name__
    if error.field.startswith("tensor"):
        return "MetadataError in 2 tensors"
    return {
        "config.json": "MetadataError in 3 config.json",
        "model.safetensors.index.json": "MetadataError in 4 index",
    }.get(error.field, "MetadataError in 1 header")


_WORDS: Final = (
    *("general.architecture", "general.alignment", "split.count", "split.no", "general.file_type", "__metadata__"),
    *("dtype", "shape", "data_offsets", "F16", "BF16", "F8_E4M3", "text_config", "quantization_config", "quant_method"),
    *("num_hidden_layers", "hidden_size", "architectures", "model_type", "awq", "compressed-tensors", "weight_map"),
    *(2**30, 2**30 + 1, 4096, 4097, 63, 64, 65535),
)

GGUF: Final = Target(
    name="gguf",
    modules=("launcher.metadata.gguf", "launcher.metadata.hyperparameters", "launcher.render.inspect"),
    seeds=_gguf_seeds,
    encode=encode_gguf,
    take=_take_gguf,
    refusals=(MetadataError,),
    words=_WORDS,
    share=18,
    depth=_depth_gguf,
)

SAFETENSORS: Final = Target(
    name="safetensors",
    modules=("launcher.metadata.safetensors", "launcher.metadata.hyperparameters", "launcher.render.inspect"),
    seeds=_safetensors_seeds,
    encode=encode_safetensors,
    take=_take_safetensors,
    refusals=(MetadataError, WeightsMissingError),
    words=_WORDS,
    share=12,
    depth=_depth_safetensors,
)
