"""Reads the headers of safetensors files from an open stream, joined with ``config.json`` where they lie in a Hugging Face folder.

It must not know what a model is for, nor trust a byte: lengths are compared with the file before anything is read,
a name in an index cannot lead out of the folder, and pickled weights are refused unread. Whatever is wrong is a
``MetadataError``.

The format: the README of the safetensors repository; the bound on the header is its reference implementation's.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn, Protocol, TypeGuard

from msgspec import Struct

from launcher.domain import MetadataValue, ModelSpec, TensorInfo, WeightsFormat
from launcher.errors import MetadataError, WeightsMissingError
from launcher.metadata.files import ByteStream, label, open_weights
from launcher.tensor_types import TRAITS, TensorType

MAX_HEADER_BYTES: Final = 100_000_000
"""The reference implementation's own bound."""
MAX_CONFIG_BYTES: Final = 2**24
"""Assumed: a thousand times what config.json files have."""
MAX_INDEX_BYTES: Final = 2**27
"""Assumed: ten times the index of the largest published models."""
MAX_KEPT_ELEMENTS: Final = 4096
"""A longer list in config.json is reduced to its length."""
MAX_CONFIG_DEPTH: Final = 16
"""Of objects in objects. Assumed: four times what config.json files have."""

INDEX_NAME: Final = "model.safetensors.index.json"
CONFIG_NAME: Final = "config.json"

_INT64_MAX: Final = 2**63 - 1
_HEADER_LENGTH: Final = struct.Struct("<Q")
_PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})

_DTYPES: Final[Mapping[str, TensorType]] = {
    name: TensorType(name)
    for name in (
        *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"),
        *("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
    )
}


class SafetensorsHeader(Struct, frozen=True, kw_only=True):
    """All that a safetensors file says before its data.

    ``data_offset`` (bytes from the start of the stream) is where tensor data begins; ``tensor_offsets`` (bytes from
    there) are in the order of ``tensors``, which is the order of their data.
    """

    data_offset: int
    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    tensor_offsets: tuple[int, ...]


def read_safetensors(stream: ByteStream, size_bytes: int) -> SafetensorsHeader:
    """Read the header of one safetensors file of ``size_bytes`` from ``stream``, which stands at its start.

    Raises:
        MetadataError: the file is truncated, absurd or hostile, or newer than this reader.
        OSError: the stream failed.
    """
    (n_header,) = _HEADER_LENGTH.unpack(_take(stream, _HEADER_LENGTH.size, size_bytes, 0, "header length"))
    n_left = size_bytes - _HEADER_LENGTH.size
    if n_header > MAX_HEADER_BYTES:
        msg = (
            f"a header of {n_header} bytes is absurd, this is no safetensors file; at most {MAX_HEADER_BYTES} are read"
        )
        raise MetadataError(msg, offset=0, field="header length")
    document = _parse_object(
        _take(stream, n_header, n_left, _HEADER_LENGTH.size, "header"), "header", _HEADER_LENGTH.size
    )
    metadata = _checked_metadata(document.pop("__metadata__", {}))
    entries = sorted(
        (_read_entry(name, entry) for name, entry in document.items()), key=lambda entry: (entry[1], entry[2])
    )
    _check_layout(entries, n_left - n_header, size_bytes)
    return SafetensorsHeader(
        data_offset=_HEADER_LENGTH.size + n_header,
        metadata=metadata,
        tensors=tuple(tensor for tensor, _begin, _end in entries),
        tensor_offsets=tuple(begin for _tensor, begin, _end in entries),
    )


class Folder(Protocol):
    """Files that belong together, wherever they are."""

    @property
    def title(self) -> str:
        """What faults call the folder."""

    def names(self) -> list[str]:
        """Return the names of the files in it, sorted."""

    def open(self, name: str) -> AbstractContextManager[tuple[ByteStream, int]]:
        """Open one of its files; give the stream and its size in bytes. A fault inside is told with the file."""


def read_folder(path: Path) -> ModelSpec:
    """Read the Hugging Face folder at ``path``, as ``read_files`` does."""
    return read_files(_LocalFolder(path))


def read_files(folder: Folder) -> ModelSpec:
    """Read a Hugging Face folder: ``config.json`` and the headers of its safetensors files, never a weight.

    ``metadata`` holds the configuration's own keys, those of inner objects behind their object's name
    (``text_config.hidden_size``); ``null`` and lists of anything but scalars of one kind leave no value, the latter
    their length. Shapes are in ggml's order, which is the reverse of the file's.

    Raises:
        MetadataError: a file is wrong, the files do not belong together, or the weights are pickled.
        WeightsMissingError: the folder has no configuration or no weights, or a file of the index is missing.
    """
    contents = folder.names()
    weight_map = _read_index(folder) if INDEX_NAME in contents else {}
    names = sorted(set(weight_map.values())) if weight_map else [_only_weights(contents, folder.title)]
    config = _read_json(folder, CONFIG_NAME, MAX_CONFIG_BYTES)
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        with folder.open(name) as (stream, size_bytes):
            for tensor in read_safetensors(stream, size_bytes).tensors:
                if tensor.name in tensors or weight_map.get(tensor.name, name) != name:
                    msg = f"tensor `{label(tensor.name)}` is in more than one file, or not where the index says"
                    raise MetadataError(msg, offset=0, field=INDEX_NAME)
                tensors[tensor.name] = tensor
    for name in weight_map:
        if name not in tensors:
            msg = f"tensor `{label(name)}` is not in `{label(weight_map[name])}`, where the index says"
            raise MetadataError(msg, offset=0, field=INDEX_NAME, help="download the folder again")
    return ModelSpec(
        architecture=_architecture_of(config),
        format=WeightsFormat.SAFETENSORS,
        metadata=_metadata_of(config),
        tensors=tuple(tensors.values()),
    )


def _take(stream: ByteStream, n_bytes: int, n_left: int, offset: int, field: str) -> bytes:
    if n_bytes > n_left:
        msg = f"{n_bytes} bytes are announced where {n_left} remain: corrupted or incomplete download"
        raise MetadataError(msg, offset=offset, field=field, help="download the file again")
    parts: list[bytes] = []
    while n_bytes > 0:
        part = stream.read(n_bytes)
        if not part:
            msg = "the stream ended before the file's size was reached"
            raise MetadataError(msg, offset=offset, field=field, help="read the file again: it was changed")
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _parse_object(data: bytes, field: str, offset: int) -> dict[str, object]:
    """Parse a JSON object strictly: UTF-8, no key twice, no ``NaN``, no text that could not be written again."""
    if not data.startswith(b"{") and field == "header":
        msg = "the header does not begin with an opening brace"
        raise MetadataError(msg, offset=offset, field=field)
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        msg = f"not valid JSON: {label(str(error)) if isinstance(error, ValueError) else 'nested too deeply'}"
        raise MetadataError(msg, offset=offset, field=field) from None
    if not isinstance(document, dict):
        msg = "the JSON is not an object"
        raise MetadataError(msg, offset=offset, field=field)
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document: dict[str, object] = {}
    for key, value in pairs:
        if key in document:
            msg = f"duplicate key `{label(key)}`"
            raise ValueError(msg)
        for text in (key, value):
            if isinstance(text, str):
                text.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
        document[key] = value
    return document


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _checked_metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        msg = "not an object of strings"
        raise MetadataError(msg, offset=_HEADER_LENGTH.size, field="__metadata__")
    return value


def _read_entry(name: str, entry: object) -> tuple[TensorInfo, int, int]:
    """Return the tensor, and where its data begins and ends, in bytes from the start of the data."""
    field = f"tensor {label(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad_entry(field, "not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    tensor_type = _DTYPES.get(dtype) if isinstance(dtype, str) else None
    if tensor_type is None:
        raise _bad_entry(
            field, f"element type {label(repr(dtype))} is unknown: the file is newer than this reader, or corrupted"
        )
    if not _is_counts(shape) or _product(shape) > _INT64_MAX // TRAITS[tensor_type].block_bytes:
        raise _bad_entry(field, f"the shape {label(repr(shape))} is not a list of extents, or too large")
    if not _is_counts(offsets) or len(offsets) != 2:  # noqa: PLR2004 - begin and end
        raise _bad_entry(field, f"the data offsets {label(repr(offsets))} are not a begin and an end")
    tensor = TensorInfo(name=name, shape=tuple(reversed(shape)), type=tensor_type)
    begin, end = offsets
    if end - begin != tensor.n_bytes:
        raise _bad_entry(field, f"its data takes {end - begin} bytes, its shape and type {tensor.n_bytes}")
    return tensor, begin, end


def _bad_entry(field: str, msg: str) -> MetadataError:
    return MetadataError(msg, offset=_HEADER_LENGTH.size, field=field)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(count) is int and 0 <= count <= _INT64_MAX for count in value)


def _product(extents: list[int]) -> int:
    """Multiply, stopping where the result is too large for a tensor anyway: a hostile shape may have a million extents."""
    n = 1
    for extent in extents:
        n *= max(extent, 1)
        if n > _INT64_MAX:
            return n
    return n


def _check_layout(entries: list[tuple[TensorInfo, int, int]], n_data: int, size_bytes: int) -> None:
    """Fault unless the data lies without holes or overlaps, and fills the rest of the file."""
    expected = 0
    for tensor, begin, end in entries:
        if begin != expected:
            msg = f"its data begins at {begin}, the data before it ends at {expected}"
            raise MetadataError(msg, offset=_HEADER_LENGTH.size, field=f"tensor {label(tensor.name)}")
        expected = end
    if expected > n_data:
        msg = f"the tensors take {expected} bytes, the file has {n_data} for them: corrupted or incomplete download"
        raise MetadataError(msg, offset=size_bytes, field="data", help="download the file again")
    if expected < n_data:
        msg = f"{n_data - expected} bytes behind the last tensor belong to none"
        raise MetadataError(msg, offset=size_bytes - n_data + expected, field="data")


def _read_json(folder: Folder, name: str, limit: int) -> dict[str, object]:
    with folder.open(name) as (stream, size_bytes):
        if size_bytes > limit:
            msg = f"{size_bytes} bytes are absurd; at most {limit} are read"
            raise MetadataError(msg, offset=0, field=name)
        return _parse_object(_take(stream, size_bytes, size_bytes, 0, name), name, 0)


def _read_index(folder: Folder) -> dict[str, str]:
    """Return which tensor is in which file."""
    weight_map = _read_json(folder, INDEX_NAME, MAX_INDEX_BYTES).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        msg = "weight_map does not give a file for every tensor"
        raise MetadataError(msg, offset=0, field=INDEX_NAME)
    for name in set(weight_map.values()):
        if not name.endswith(".safetensors"):
            msg = f"`{label(name)}` is no safetensors file"
            raise MetadataError(msg, offset=0, field=INDEX_NAME)
    return weight_map


def _only_weights(contents: list[str], title: str) -> str:
    """Return the name of the one weights file of a folder without an index."""
    names = [name for name in contents if name.endswith(".safetensors")]
    if "model.safetensors" in names:
        return "model.safetensors"
    if len(names) == 1:
        return names[0]
    if names:
        msg = f"{len(names)} safetensors files without `{INDEX_NAME}`"
        raise MetadataError(msg, offset=0, field=INDEX_NAME, help=f"download `{INDEX_NAME}` into the folder too")
    pickled = [name for name in contents if PurePosixPath(name).suffix in _PICKLE_SUFFIXES]
    if pickled:
        msg = f"`{label(pickled[0])}` holds pickled weights, which run code when they are loaded; they are refused"
        raise MetadataError(msg, offset=0, field="file", help="use a safetensors or GGUF release of this model")
    msg = f"the folder `{label(title)}` has no safetensors file"
    raise WeightsMissingError(msg, help="give a folder with config.json and *.safetensors, or a GGUF file")


class _LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.title = str(path)

    def names(self) -> list[str]:
        """Return what is in the folder, or a fault that names it."""
        try:
            return sorted(path.name for path in self._path.iterdir())
        except OSError as error:
            msg = f"the folder `{label(self.title)}` cannot be read: {error.strerror}"
            raise MetadataError(msg, offset=0, field="folder") from error

    def open(self, name: str) -> AbstractContextManager[tuple[ByteStream, int]]:
        """Open a file of the folder, unless its name leads elsewhere."""
        return open_weights(_inside(self._path, name))


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a folder's file, unless that lies elsewhere.

    Hugging Face's cache stores files in ``blobs`` and links to them from ``snapshots/REVISION``: that is inside too.
    """
    path = folder / name
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError):
        target, home = Path("/"), folder  # a loop of links, or a name that no file can have
    roots = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if PurePosixPath(name).name != name or target.parent not in roots:
        msg = f"the file name `{label(name)}` leads out of the folder"
        raise MetadataError(msg, offset=0, field="file", help="the folder is hostile or broken: do not use it")
    return path


def _architecture_of(config: Mapping[str, object]) -> str:
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
    if not isinstance(first, str) or not first:
        msg = "neither architectures nor model_type names an architecture"
        raise MetadataError(msg, offset=0, field=CONFIG_NAME)
    return first


def _metadata_of(config: Mapping[str, object]) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for name, value in _flatten(config, "", 1):
        if name in metadata:
            msg = f"duplicate key `{label(name)}`"
            raise MetadataError(msg, offset=0, field=CONFIG_NAME)
        metadata[name] = value
    return metadata


def _flatten(config: Mapping[str, object], prefix: str, depth: int) -> Iterator[tuple[str, MetadataValue]]:
    if depth > MAX_CONFIG_DEPTH:
        msg = f"objects are nested deeper than {MAX_CONFIG_DEPTH}"
        raise MetadataError(msg, offset=0, field=CONFIG_NAME)
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.", depth + 1)
        elif isinstance(value, list):
            yield _kept_list(name, value)
        elif isinstance(value, bool | int | float | str):
            yield name, _checked_scalar(name, value)


def _kept_list(name: str, values: list[object]) -> tuple[str, MetadataValue]:
    """Keep a short list of scalars of one kind (whole numbers count as numbers); of any other the length."""
    kinds = {type(value) for value in values}
    if len(values) <= MAX_KEPT_ELEMENTS and (kinds <= {int, float} or kinds in ({bool}, {str})):
        return name, tuple(_checked_scalar(name, value) for value in values)  # type: ignore[arg-type]  # kinds were compared
    return f"{name}.length", len(values)


def _checked_scalar(name: str, value: bool | float | str) -> bool | int | float | str:  # noqa: FBT001 - any value
    """Fault on what no snapshot could hold: integers beyond 64 bits, infinities, and text that is not Unicode."""
    if (
        (isinstance(value, int) and not -_INT64_MAX <= value <= _INT64_MAX)
        or (isinstance(value, float) and not math.isfinite(value))
        or (isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value))
    ):
        msg = f"the value of `{label(name)}` is out of range"
        raise MetadataError(msg, offset=0, field=CONFIG_NAME)
    return value
