"""Reads the header of a GGUF file from an open stream.

It must not know what a model is for, nor trust a byte: every length is compared with the bytes that remain before
anything is allocated or skipped, and whatever is wrong is a ``MetadataError`` that names the offset and the field.
Arrays that nobody plans with (a vocabulary) are stepped over, which is what makes it quick.

The format: docs/gguf.md in ggml's repository; the bounds are those of ``ggml/src/gguf.cpp``, llama.cpp build 11434.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from launcher.domain import MetadataValue, ModelSpec, TensorInfo, WeightsFormat
from launcher.errors import MetadataError, WeightsMissingError
from launcher.metadata.files import ByteStream, label, open_weights
from launcher.tensor_types import BY_GGML_ID
from launcher.units import pad

MAGIC: Final = b"GGUF"
SUPPORTED_VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

MAX_KEY_BYTES: Final = 2**16 - 1
"""docs/gguf.md: a key is at most 65535 bytes long."""
MAX_TENSOR_NAME_BYTES: Final = 63
"""ggml keeps a name in ``GGML_MAX_NAME`` = 64 bytes with the terminating zero."""
MAX_DIMS: Final = 4
"""ggml's ``GGML_MAX_DIMS``."""
MAX_ARRAY_ELEMENTS: Final = 2**30
"""ggml's ``GGUF_MAX_ARRAY_ELEMENTS``."""
MAX_KEYS: Final = 2**16
"""Assumed: a thousand times what files have."""
MAX_TENSORS: Final = 2**17
"""Assumed: fifty times what files have."""
MAX_TEXT_BYTES: Final = 64 * 2**20
"""Of a string that is kept. Assumed: twice the largest tokenizer.json that was seen inside a file (33 MB)."""
MAX_KEPT_BYTES: Final = 128 * 2**20
"""Of all names, strings and arrays of a file that are kept, so that a sparse giant does not fill the memory."""
MAX_STEPS: Final = 2**26
"""Elements of one file that may be stepped over one by one, about 5 s of work. Assumed: a hundred vocabularies."""
MAX_ARRAY_DEPTH: Final = 4
"""Of arrays in arrays. The format sets no bound, ggml refuses them altogether."""
MAX_KEPT_ELEMENTS: Final = 4096
"""A longer array is reduced to its length; per-layer arrays are far shorter."""

_INT64_MAX: Final = 2**63 - 1
_CHUNK_BYTES: Final = 2**20
_STEPS_PER_ARRAY: Final = 16
"""Stepping over an inner array takes about as long as over 16 strings (measured: 870 ns and 65 ns)."""
_REMOVED_TENSOR_TYPES: Final = frozenset({4, 5, 31, 32, 33, 36, 37, 38})
_SPLIT_NAME: Final = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)

_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_U64: Final = struct.Struct("<Q")
_I64: Final = struct.Struct("<q")

_UINT32: Final = 4
_BOOL: Final = 7
_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final[Mapping[int, struct.Struct]] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    _UINT32: _U32,
    5: _I32,
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    10: _U64,
    11: _I64,
    12: struct.Struct("<d"),
}

_WEB_PAGE: Final = ("a web page, not the weights", "download the file again, from the link that ends in .gguf")
_PICKLE: Final = (
    "pickled weights, which run code when they are loaded",
    "use a safetensors or GGUF release of this model",
)
_OLD_FORMAT: Final = ("a predecessor of GGUF that no engine reads any more", "use a GGUF release of this model")
_FOREIGN_MAGICS: Final[Mapping[bytes, tuple[str, str]]] = {
    b"vers": ("a git-lfs pointer, not the weights", "fetch the weights with `git lfs pull`"),
    b"<!DO": _WEB_PAGE,
    b"<!do": _WEB_PAGE,
    b"<htm": _WEB_PAGE,
    b"PK\x03\x04": _PICKLE,
    b"\x80": _PICKLE,
    b"lmgg": _OLD_FORMAT,
    b"tjgg": _OLD_FORMAT,
}
"""What else is found under a model's name, by how it begins: what it is, and what to do."""


class GgufHeader(Struct, frozen=True, kw_only=True):
    """All that a GGUF file says before its data.

    ``data_offset`` (bytes from the start of the stream) is where tensor data begins; ``tensor_offsets`` (bytes from
    there, one per tensor) are multiples of ``alignment``. For a split model they are those of each tensor's own file.
    ``skipped`` spans (from, to) the arrays that were stepped over: in a model's file the vocabulary.
    """

    version: int
    alignment: int
    data_offset: int
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorInfo, ...]
    tensor_offsets: tuple[int, ...]
    n_shards: int = 1
    skipped: tuple[int, int] | None = None

    @property
    def spec(self) -> ModelSpec:
        """The model of this header.

        Raises:
            MetadataError: ``general.architecture`` is not there, as in all shards but the first.
        """
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            msg = "the header does not name an architecture"
            raise MetadataError(
                msg,
                offset=0,
                field="general.architecture",
                help="give the first file of a split model, or a model file",
            )
        return ModelSpec(
            architecture=architecture, format=WeightsFormat.GGUF, metadata=self.metadata, tensors=self.tensors
        )


class _Length(NamedTuple):
    """What is kept of an array that was stepped over."""

    n: int


class _Cursor:
    """A position in the stream with a window of bytes ahead of it; every step is checked against the file's size."""

    __slots__ = ("_at", "_base", "_buffer", "_n_kept", "_n_steps", "_stream", "_window_bytes", "size_bytes", "skipped")

    def __init__(self, stream: ByteStream, size_bytes: int, window_bytes: int) -> None:
        self._stream = stream
        self._buffer = b""
        self._base = 0
        self._at = 0
        self._n_kept = 0
        self._n_steps = 0
        self._window_bytes = window_bytes
        self.size_bytes = size_bytes
        self.skipped: tuple[int, int] | None = None

    @property
    def offset(self) -> int:
        """Bytes from the start of the stream."""
        return self._base + self._at

    @property
    def n_remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size_bytes - self.offset

    def require(self, n_bytes: int, field: str) -> None:
        """Fault unless ``n_bytes`` more exist."""
        if n_bytes > self.n_remaining:
            msg = f"{n_bytes} bytes are announced where {max(self.n_remaining, 0)} remain: corrupted or incomplete download"
            raise MetadataError(msg, offset=self.offset, field=field, help="download the file again")

    def spend(self, n: int, field: str) -> None:
        """Count ``n`` elements that have to be visited one by one; a hostile file must not keep us for hours."""
        self._n_steps += n
        if self._n_steps > MAX_STEPS:
            msg = f"more than {MAX_STEPS} strings and nested arrays"
            raise MetadataError(msg, offset=self.offset, field=field)

    def unpack(self, layout: struct.Struct, field: str) -> int:
        """Read one number."""
        self._fill(layout.size, field)
        (value,) = layout.unpack_from(self._buffer, self._at)
        self._at += layout.size
        number: int = value
        return number

    def take(self, n_bytes: int, field: str) -> bytes:
        """Read ``n_bytes`` to keep."""
        self._n_kept += n_bytes
        if self._n_kept > MAX_KEPT_BYTES:
            self.require(n_bytes, field)
            msg = f"strings and short arrays of more than {MAX_KEPT_BYTES} bytes are absurd"
            raise MetadataError(msg, offset=self.offset, field=field)
        self._fill(n_bytes, field)
        start, self._at = self._at, self._at + n_bytes
        return self._buffer[start : self._at]

    def skip(self, n_bytes: int, field: str) -> None:
        """Step over ``n_bytes`` without reading them."""
        self.require(n_bytes, field)
        self._at += n_bytes
        if self._at > len(self._buffer):
            self._base, self._at, self._buffer = self._base + self._at, 0, b""
            self._stream.seek(self._base)

    def skip_strings(self, n: int, field: str) -> None:
        """Step over ``n`` strings: the hot loop, once per entry of the vocabulary.

        It reads only lengths, lets ``unpack_from`` find the end of the window, and looks at what went wrong after.
        """
        self.require(n * _U64.size, field)
        self.spend(n, field)
        length_at = _U64.unpack_from
        done = 0
        while done < n:
            self._fill(_U64.size, f"{field}[{done}]")
            buffer, at, length = self._buffer, self._at, 0
            try:
                for done in range(done, n):  # noqa: B007, B020 - continues where the last window ended
                    (length,) = length_at(buffer, at)
                    at += _U64.size + length
                done = n
            except (struct.error, OverflowError):
                pass  # `at` is behind the window: string `done` has not been read yet
            if self._base + at > self.size_bytes:
                self._at = at - length
                self.require(length, f"{field}[{done - 1}]")
            self._at = at
            self.skip(0, field)

    def _fill(self, n_bytes: int, field: str) -> None:
        """Hold at least ``n_bytes`` in the window, never asking the stream for more than the file has."""
        n_held = len(self._buffer) - self._at
        if n_bytes <= n_held:
            return
        self.require(n_bytes, field)
        n_wanted = min(max(n_bytes, self._window_bytes), self.n_remaining) - n_held
        parts = [self._buffer[self._at :]]
        while n_wanted > 0:
            part = self._stream.read(n_wanted)
            if not part:
                msg = "the stream ended before the file's size was reached"
                raise MetadataError(msg, offset=self.offset, field=field, help="read the file again: it was changed")
            parts.append(part)
            n_wanted -= len(part)
        self._base, self._at, self._buffer = self.offset, 0, b"".join(parts)


def read_gguf(stream: ByteStream, size_bytes: int, *, window_bytes: int = _CHUNK_BYTES) -> GgufHeader:
    """Read the header of one GGUF file of ``size_bytes`` from ``stream``, a seekable stream that stands at its start.

    ``window_bytes`` is read at once, up to one window more than the header has: a stream that is slow wants it small.

    Raises:
        MetadataError: the file is truncated, absurd or hostile, big-endian, or newer than this reader.
        OSError: the stream failed.
    """
    cursor = _Cursor(stream, size_bytes, window_bytes)
    version = _read_version(cursor)
    n_tensors = _read_count(cursor, "tensor_count", MAX_TENSORS)
    n_keys = _read_count(cursor, "metadata_kv_count", MAX_KEYS)
    metadata, alignment = _read_metadata(cursor, n_keys)
    tensors, tensor_offsets = _read_tensor_infos(cursor, n_tensors)
    data_offset = pad(cursor.offset, alignment) if n_tensors else cursor.offset
    _check_layout(tensors, tensor_offsets, alignment, data_offset, size_bytes)
    return GgufHeader(
        version=version,
        alignment=alignment,
        data_offset=data_offset,
        metadata=metadata,
        tensors=tensors,
        tensor_offsets=tensor_offsets,
        skipped=cursor.skipped,
    )


def read_gguf_file(path: Path) -> GgufHeader:
    """Read the GGUF file at ``path``; where it is one of a split model's files, read all of them and join their tensors.

    Raises:
        MetadataError: a file is wrong, or the files do not belong together.
        WeightsMissingError: there is no such file, or one of the split model's files is missing.
    """
    header = _read_path(path)
    n_shards = count_shards(header)
    if n_shards <= 1:
        return header
    paths = shard_paths(path, n_shards)
    missing = [shard for shard in paths if not shard.is_file()]
    if missing:
        msg = f"{len(missing)} of the {n_shards} files of a split model are missing: `{label(missing[0].name)}` is the first"
        raise WeightsMissingError(
            msg, help=f"download all {n_shards} files into one folder", details=(f"looked in {paths[0].parent}",)
        )
    return join_shards([header if shard == path else _read_path(shard) for shard in paths], [p.name for p in paths])


def count_shards(header: GgufHeader) -> int:
    """Return of how many files the model consists that this is the header of one of.

    Raises:
        MetadataError: what the header says of it is no number.
    """
    return _count_of(header, "split.count", default=1)


def shard_paths(path: Path, n_shards: int) -> tuple[Path, ...]:
    """Return the paths of all files of the split model that ``path`` is one of (``X-00001-of-00003.gguf``).

    Raises:
        MetadataError: the file's name does not say which one it is, or speaks of another number of files.
    """
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != n_shards or not 1 <= int(match["number"]) <= n_shards:
        msg = f"the header says that this is one of {n_shards} files, the name `{label(path.name)}` does not"
        raise MetadataError(
            msg,
            offset=0,
            field="split.count",
            help=f"give the file its published name, NAME-00001-of-{n_shards:05d}.gguf",
        )
    return tuple(
        path.with_name(f"{match['prefix']}-{idx:05d}-of-{n_shards:05d}.gguf") for idx in range(1, n_shards + 1)
    )


def _read_path(path: Path) -> GgufHeader:
    with open_weights(path) as (stream, size_bytes):
        return read_gguf(stream, size_bytes)


def join_shards(headers: Sequence[GgufHeader], file_names: Sequence[str]) -> GgufHeader:
    """Put the tensors of all shards of a split model, in order, behind the metadata of the first.

    Raises:
        MetadataError: the files do not belong together.
    """
    n_shards = len(headers)
    names: set[str] = set()
    for idx, (header, file_name) in enumerate(zip(headers, file_names, strict=True)):
        number, count = _count_of(header, "split.no", default=-1), _count_of(header, "split.count", default=-1)
        if (number, count) != (idx, n_shards):
            msg = f"`{label(file_name)}` says that it is file {number + 1} of {count}"
            raise MetadataError(
                msg, offset=0, field="split.no", help="the files were renamed or mixed: download them again"
            )
        for tensor in header.tensors:
            if tensor.name in names:
                msg = f"tensor `{label(tensor.name)}` of `{label(file_name)}` is in an earlier file too"
                raise MetadataError(msg, offset=0, field="tensor name")
            names.add(tensor.name)
    n_tensors = _count_of(headers[0], "split.tensors.count", default=len(names))
    if n_tensors != len(names):
        msg = f"the files hold {len(names)} tensors, the header announces {n_tensors}"
        raise MetadataError(msg, offset=0, field="split.tensors.count", help="download all files again")
    first = headers[0]
    return GgufHeader(
        version=first.version,
        alignment=first.alignment,
        data_offset=first.data_offset,
        metadata=first.metadata,
        tensors=tuple(tensor for header in headers for tensor in header.tensors),
        tensor_offsets=tuple(offset for header in headers for offset in header.tensor_offsets),
        n_shards=n_shards,
        skipped=first.skipped,
    )


def _count_of(header: GgufHeader, key: str, *, default: int) -> int:
    value = header.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"`{key}` is not a whole number"
        raise MetadataError(msg, offset=0, field=key)
    return value


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.take(len(MAGIC), "magic")
    if magic != MAGIC:
        known = (found for begin, found in _FOREIGN_MAGICS.items() if magic.startswith(begin))
        what, way_out = next(known, (f"not a GGUF file: it begins with {magic!r}", None))
        msg = f"this is {what}"
        raise MetadataError(msg, offset=0, field="magic", help=way_out)
    version = cursor.unpack(_U32, "version")
    if version in SUPPORTED_VERSIONS:
        return version
    if version & 0xFFFF == 0 and version:
        msg = "this is a big-endian GGUF file"
        raise MetadataError(msg, offset=4, field="version", help="convert it to little endian with gguf-convert-endian")
    if version <= 1:
        msg = f"GGUF version {version} is no longer read by any engine"
        raise MetadataError(msg, offset=4, field="version", help="use a current GGUF release of this model")
    msg = f"GGUF version {version} is newer than this reader, which knows {SUPPORTED_VERSIONS[-1]}"
    raise MetadataError(msg, offset=4, field="version", help="update the launcher")


def _read_count(cursor: _Cursor, field: str, limit: int) -> int:
    offset = cursor.offset
    count = cursor.unpack(_U64, field)
    if count > limit:
        msg = f"a count of {count} is absurd; at most {limit} are read"
        raise MetadataError(msg, offset=offset, field=field)
    return count


def _read_metadata(cursor: _Cursor, n_keys: int) -> tuple[dict[str, MetadataValue], int]:
    """Read the key-value pairs; return them with the alignment."""
    metadata: dict[str, MetadataValue] = {}
    seen: set[str] = set()
    alignment = DEFAULT_ALIGNMENT
    for idx in range(n_keys):
        offset = cursor.offset
        key = _read_text(cursor, f"metadata key {idx}", MAX_KEY_BYTES)
        if not key or key in seen:
            msg = f"duplicate key `{label(key)}`" if key else "a key is empty"
            raise MetadataError(msg, offset=offset, field=f"metadata key {idx}")
        value_type = cursor.unpack(_I32, f"type of {label(key)}")
        value_offset = cursor.offset
        value = _read_value(cursor, key, value_type)
        if key == "general.alignment":
            alignment = _checked_alignment(value, value_type, value_offset)
        name = f"{key}.length" if isinstance(value, _Length) else key
        if name in seen or name in metadata:
            msg = f"duplicate key `{label(name)}`"
            raise MetadataError(msg, offset=offset, field=f"metadata key {idx}")
        seen.add(key)
        metadata[name] = value.n if isinstance(value, _Length) else value
    return metadata, alignment


def _checked_alignment(value: MetadataValue | _Length, value_type: int, offset: int) -> int:
    if value_type == _UINT32 and isinstance(value, int) and value > 0 and value & (value - 1) == 0:
        return value
    msg = f"the alignment is not a power of two in a uint32: {label(str(value))}"
    raise MetadataError(msg, offset=offset, field="general.alignment")


def _read_value(cursor: _Cursor, key: str, value_type: int) -> MetadataValue | _Length:
    field, offset = label(key), cursor.offset
    if value_type == _STRING:
        return _read_text(cursor, field, MAX_TEXT_BYTES)
    if value_type == _ARRAY:
        return _read_array(cursor, key, field)
    layout = _SCALARS.get(value_type)
    if layout is None:
        raise _unknown_type(value_type, offset, field)
    value = cursor.unpack(layout, field)
    return _checked_bools((value,), offset, field)[0] if value_type == _BOOL else value


def _read_array(cursor: _Cursor, key: str, field: str) -> MetadataValue | _Length:
    """Keep a small array of numbers, truth values or strings; step over nested ones, long ones and the tokenizer's."""
    element_type, n, offset = _read_array_head(cursor, field)
    kept = n <= MAX_KEPT_ELEMENTS and not key.startswith("tokenizer.")
    layout = _SCALARS.get(element_type)
    if kept and element_type == _STRING:
        cursor.require(n * _U64.size, field)
        return tuple(_read_text(cursor, f"{field}[{idx}]", MAX_TEXT_BYTES) for idx in range(n))
    if kept and layout is not None:
        values: tuple[int, ...] = struct.unpack(f"<{n}{layout.format[1]}", cursor.take(n * layout.size, field))
        return _checked_bools(values, offset, field) if element_type == _BOOL else values
    _skip_elements(cursor, element_type, n, field, depth=1)
    cursor.skipped = (offset if cursor.skipped is None else cursor.skipped[0], cursor.offset)
    return _Length(n)


def _read_array_head(cursor: _Cursor, field: str) -> tuple[int, int, int]:
    """Read what precedes the elements of an array; return their type, their number and the offset of the first."""
    offset = cursor.offset
    element_type = cursor.unpack(_I32, f"element type of {field}")
    n = cursor.unpack(_U64, f"length of {field}")
    if element_type not in _SCALARS and element_type not in (_STRING, _ARRAY):
        raise _unknown_type(element_type, offset, field)
    if n > MAX_ARRAY_ELEMENTS:
        msg = f"an array of {n} elements is absurd; at most {MAX_ARRAY_ELEMENTS} are read"
        raise MetadataError(msg, offset=offset, field=f"length of {field}")
    return element_type, n, cursor.offset


def _skip_elements(cursor: _Cursor, element_type: int, n: int, field: str, *, depth: int) -> None:
    if element_type == _STRING:
        cursor.skip_strings(n, field)
    elif element_type == _ARRAY:
        if depth >= MAX_ARRAY_DEPTH:
            msg = f"arrays are nested deeper than {MAX_ARRAY_DEPTH}"
            raise MetadataError(msg, offset=cursor.offset, field=field)
        cursor.spend(n * _STEPS_PER_ARRAY, field)
        for _ in range(n):
            inner_type, inner_n, _offset = _read_array_head(cursor, field)
            _skip_elements(cursor, inner_type, inner_n, field, depth=depth + 1)
    else:
        cursor.skip(n * _SCALARS[element_type].size, field)


def _read_text(cursor: _Cursor, field: str, limit: int) -> str:
    offset = cursor.offset
    n_bytes = cursor.unpack(_U64, f"length of {field}")
    if n_bytes > limit:
        cursor.require(n_bytes, field)
        msg = f"a string of {n_bytes} bytes is absurd here; at most {limit} are read"
        raise MetadataError(msg, offset=offset, field=field)
    try:
        return cursor.take(n_bytes, field).decode()
    except UnicodeDecodeError as error:
        msg = f"not valid UTF-8 at byte {error.start} of the string"
        raise MetadataError(msg, offset=offset, field=field) from None


def _checked_bools(values: tuple[int, ...], offset: int, field: str) -> tuple[bool, ...]:
    for idx, value in enumerate(values):
        if value > 1:
            msg = f"a truth value is {value}, neither 0 nor 1"
            raise MetadataError(msg, offset=offset + idx, field=field)
    return tuple(map(bool, values))


def _unknown_type(value_type: int, offset: int, field: str) -> MetadataError:
    return MetadataError(f"unknown value type {value_type}", offset=offset, field=f"type of {field}")


def _read_tensor_infos(cursor: _Cursor, n_tensors: int) -> tuple[tuple[TensorInfo, ...], tuple[int, ...]]:
    tensors: list[TensorInfo] = []
    offsets: list[int] = []
    names: set[str] = set()
    for idx in range(n_tensors):
        offset = cursor.offset
        name = _read_text(cursor, f"tensor name {idx}", MAX_TENSOR_NAME_BYTES)
        if name in names:
            msg = f"duplicate tensor name `{label(name)}`"
            raise MetadataError(msg, offset=offset, field=f"tensor name {idx}")
        names.add(name)
        tensors.append(_read_tensor_info(cursor, name))
        offsets.append(cursor.unpack(_U64, f"offset of tensor {label(name)}"))
    return tuple(tensors), tuple(offsets)


def _read_tensor_info(cursor: _Cursor, name: str) -> TensorInfo:
    field, offset = f"shape of tensor {label(name)}", cursor.offset
    n_dims = cursor.unpack(_U32, field)
    if n_dims > MAX_DIMS:
        msg = f"a tensor of {n_dims} dimensions is absurd; at most {MAX_DIMS} are read"
        raise MetadataError(msg, offset=offset, field=field)
    shape = tuple(cursor.unpack(_I64, field) for _ in range(n_dims))
    if any(extent < 0 for extent in shape) or _overflows_int64(shape):
        msg = f"the extents {shape} are negative or too large"
        raise MetadataError(msg, offset=offset, field=field)
    field, offset = f"type of tensor {label(name)}", cursor.offset
    ggml_id = cursor.unpack(_I32, field)
    tensor_type = BY_GGML_ID.get(ggml_id)
    if tensor_type is None:
        raise _unknown_tensor_type(ggml_id, offset, field)
    tensor = TensorInfo(name=name, shape=shape, type=tensor_type)
    try:
        n_bytes = tensor.n_bytes
    except ValueError as error:
        raise MetadataError(str(error), offset=offset, field=field) from None
    if n_bytes > _INT64_MAX:
        msg = f"a tensor of {n_bytes} bytes is too large"
        raise MetadataError(msg, offset=offset, field=field)
    return tensor


def _unknown_tensor_type(ggml_id: int, offset: int, field: str) -> MetadataError:
    if ggml_id in _REMOVED_TENSOR_TYPES:
        msg = f"ggml type {ggml_id} was withdrawn from ggml"
        return MetadataError(msg, offset=offset, field=field, help="use a current GGUF release of this model")
    msg = f"ggml type {ggml_id} is unknown: the file is newer than this reader, or corrupted"
    return MetadataError(msg, offset=offset, field=field, help="update the launcher, or download the file again")


def _overflows_int64(shape: tuple[int, ...]) -> bool:
    """Tell whether the product of the extents exceeds int64; an extent of zero does not hide the others."""
    n = 1
    for extent in shape:
        n *= max(extent, 1)
    return n > _INT64_MAX


def _check_layout(
    tensors: tuple[TensorInfo, ...], offsets: tuple[int, ...], alignment: int, data_offset: int, size_bytes: int
) -> None:
    """Fault unless the tensors lie one behind the other, each padded to the alignment, all within the file.

    ggml insists on exactly this order, so whatever is faulted here no engine would load.
    """
    if data_offset > size_bytes:
        msg = (
            f"its data begins at byte {data_offset}, the file has {size_bytes} bytes: corrupted or incomplete download"
        )
        raise MetadataError(msg, offset=size_bytes, field="data of the tensors", help="download the file again")
    expected = 0
    for tensor, offset in zip(tensors, offsets, strict=True):
        field = f"offset of tensor {label(tensor.name)}"
        if offset % alignment:
            msg = f"the data offset {offset} is not a multiple of the alignment {alignment}"
            raise MetadataError(msg, offset=data_offset, field=field)
        if offset != expected:
            msg = f"the data offset is {offset} where the tensors before it end at {expected}"
            raise MetadataError(msg, offset=data_offset, field=field)
        end = data_offset + offset + tensor.n_bytes
        if end > size_bytes:
            msg = f"its data ends at byte {end}, the file has {size_bytes} bytes: corrupted or incomplete download"
            raise MetadataError(
                msg, offset=size_bytes, field=f"data of tensor {label(tensor.name)}", help="download the file again"
            )
        expected = offset + pad(tensor.n_bytes, alignment)
