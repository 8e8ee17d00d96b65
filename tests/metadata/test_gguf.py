"""The GGUF reader, sentence by sentence of the format, and against files that lie."""

import io
import os
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.errors import MetadataError, WeightsMissingError
from launcher.metadata import gguf
from launcher.metadata.gguf import GgufHeader, read_gguf, read_gguf_file
from launcher.tensor_types import BY_GGML_ID, TRAITS, TensorType

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
LAYOUTS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
VALUES: dict[int, st.SearchStrategy[float]] = {
    0: st.integers(0, 2**8 - 1),
    1: st.integers(-(2**7), 2**7 - 1),
    2: st.integers(0, 2**16 - 1),
    3: st.integers(-(2**15), 2**15 - 1),
    4: st.integers(0, 2**32 - 1),
    5: st.integers(-(2**31), 2**31 - 1),
    6: st.floats(width=32, allow_nan=False),
    7: st.booleans(),
    10: st.integers(0, 2**64 - 1),
    11: st.integers(-(2**63), 2**63 - 1),
    12: st.floats(allow_nan=False),
}


def text(value: str | bytes) -> bytes:
    """Write a string: its length, then its bytes."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def array(element_type: int, elements: Sequence[bytes], n: int | None = None) -> bytes:
    """Write an array, claiming ``n`` elements if given."""
    return struct.pack("<iQ", element_type, len(elements) if n is None else n) + b"".join(elements)


def scalar(value_type: int, value: float) -> bytes:
    """Write a number or truth value."""
    return struct.pack(f"<{LAYOUTS[value_type]}", value)


def pair(key: str | bytes, value_type: int, payload: bytes) -> bytes:
    """Write a key with its value."""
    return text(key) + struct.pack("<i", value_type) + payload


def info(name: str | bytes, shape: Sequence[int], ggml_id: int = 0, offset: int = 0) -> bytes:
    """Write what is said of one tensor."""
    return text(name) + struct.pack(f"<I{len(shape)}qiQ", len(shape), *shape, ggml_id, offset)


def document(
    pairs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    n_data: int = 0,
    *,
    version: int = 3,
    alignment: int = 32,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    """Write a file with ``n_data`` bytes of weights, claiming other numbers of tensors and keys if given."""
    head = b"GGUF" + struct.pack(
        "<IQQ", version, len(infos) if n_tensors is None else n_tensors, len(pairs) if n_keys is None else n_keys
    )
    head += b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + bytes(n_data)


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))
VALID = document(
    [
        ARCHITECTURE,
        pair("general.alignment", UINT32, scalar(UINT32, 64)),
        pair("llama.rope.scaling", FLOAT32, scalar(FLOAT32, 0.5)),
        pair("llama.use_it", BOOL, b"\x01"),
        pair("llama.head_count_kv", ARRAY, array(INT32, [scalar(INT32, n) for n in (1, 2, 4)])),
        pair("general.tags", ARRAY, array(STRING, [text("a"), text("ü")])),
        pair("llama.nested", ARRAY, array(ARRAY, [array(STRING, [text("x")]), array(UINT64, [bytes(8)])])),
        pair("tokenizer.ggml.tokens", ARRAY, array(STRING, [text(word) for word in ("<s>", "", "hello")])),
        pair("tokenizer.ggml.scores", ARRAY, array(FLOAT32, [bytes(4)] * 3)),
    ],
    [info("token_embd.weight", (256, 3), 12, 0), info("output_norm.weight", (5,), 0, 448)],
    448 + 64,
    alignment=64,
)


class BoundedStream(io.BytesIO):
    """A stream that fails the test when more is asked of it than remains of the file."""

    def __init__(self, data: bytes, size_bytes: int) -> None:
        """Hold the data of a file that claims ``size_bytes``."""
        super().__init__(data)
        self.size_bytes = size_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, if it is no more than remains."""
        assert size is not None
        assert 0 <= size <= self.size_bytes - self.tell()
        return super().read(size)


def read(data: bytes, size_bytes: int | None = None) -> GgufHeader:
    """Read a header from bytes, through a stream that watches what is asked of it."""
    size_bytes = len(data) if size_bytes is None else size_bytes
    return read_gguf(BoundedStream(data, size_bytes), size_bytes)


def read_or_fault(data: bytes) -> GgufHeader | MetadataError:
    """Read a header, or return the named fault; any other exception passes."""
    try:
        return read(data)
    except MetadataError as error:
        return error


@pytest.mark.parametrize("version", [2, 3])
def test_a_whole_file_is_understood(version: int) -> None:
    """Keys, values, shapes, types, offsets and the place of the data are as written; both versions are laid out alike."""
    header = read(VALID[:4] + struct.pack("<I", version) + VALID[8:])
    assert header.version == version
    assert header.alignment == 64
    assert header.metadata == {
        "general.architecture": "llama",
        "general.alignment": 64,
        "llama.rope.scaling": 0.5,
        "llama.use_it": True,
        "llama.head_count_kv": (1, 2, 4),
        "general.tags": ("a", "ü"),
        "llama.nested.length": 2,
        "tokenizer.ggml.tokens.length": 3,
        "tokenizer.ggml.scores.length": 3,
    }
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in header.tensors] == [
        ("token_embd.weight", (256, 3), TensorType.Q4_K),
        ("output_norm.weight", (5,), TensorType.F32),
    ]
    assert header.tensor_offsets == (0, 448)
    assert header.data_offset == len(VALID) - 512
    assert header.spec.architecture == "llama"
    assert header.spec.weights_bytes == 3 * 144 + 20


@pytest.mark.parametrize("value_type", LAYOUTS)
@given(st.data())
@settings(max_examples=30)
def test_scalars_are_read_as_written(value_type: int, data: st.DataObject) -> None:
    """Every scalar type gives back its value, alone and in a short array, with its own Python type."""
    values = data.draw(st.lists(VALUES[value_type], min_size=1, max_size=5))
    elements = [scalar(value_type, value) for value in values]
    header = read(document([pair("one", value_type, elements[0]), pair("many", ARRAY, array(value_type, elements))]))
    assert header.metadata == {"one": values[0], "many": tuple(values)}
    assert type(header.metadata["one"]) is type(values[0])


@given(st.text(), st.lists(st.text(), max_size=5))
def test_strings_are_read_as_written(one: str, many: list[str]) -> None:
    """A string is its length and its bytes in UTF-8, whatever characters these are."""
    header = read(document([pair("one", STRING, text(one)), pair("many", ARRAY, array(STRING, [*map(text, many)]))]))
    assert header.metadata == {"one": one, "many": tuple(many)}


@given(st.lists(st.binary(max_size=40), max_size=60), st.integers(1, 64), st.booleans())
def test_a_vocabulary_is_stepped_over_whatever_the_window(words: list[bytes], chunk: int, nested: bool) -> None:  # noqa: FBT001
    """Behind an array of strings that is not kept, the next key is found, wherever the window ends; bytes need not be UTF-8."""
    words_array = array(STRING, [*map(text, words)])
    if nested:
        value, n = array(ARRAY, [words_array, words_array]), 2
    else:
        value, n = words_array, len(words)
    data = document([pair("tokenizer.ggml.tokens", ARRAY, value), ARCHITECTURE])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "_CHUNK_BYTES", chunk)
        header = read(data)
    assert header.metadata == {"tokenizer.ggml.tokens.length": n, "general.architecture": "llama"}


@pytest.mark.parametrize("value_type", [*LAYOUTS, STRING])
def test_only_short_arrays_are_kept(value_type: int) -> None:
    """4096 elements are kept and one more is reduced to its length; of the tokenizer's arrays none is kept."""
    element = text("") if value_type == STRING else scalar(value_type, 0)
    short, long = (array(value_type, [element] * n) for n in (4096, 4097))
    header = read(document([pair("a", ARRAY, short), pair("b", ARRAY, long), pair("tokenizer.c", ARRAY, short)]))
    kept = header.metadata["a"]
    assert isinstance(kept, tuple)
    assert len(kept) == 4096
    assert header.metadata == {"a": kept, "b.length": 4097, "tokenizer.c.length": 4096}


@pytest.mark.parametrize("tensor_type", BY_GGML_ID.values())
def test_a_tensor_takes_the_bytes_of_its_type(tensor_type: TensorType) -> None:
    """A file that has exactly the bytes of one row of blocks is complete, and with one byte less it is not."""
    traits = TRAITS[tensor_type]
    assert traits.ggml_id is not None
    data = document([ARCHITECTURE], [info("t", (2 * traits.block_size,), traits.ggml_id)], 2 * traits.block_bytes)
    assert read(data).tensors[0].n_bytes == 2 * traits.block_bytes
    with pytest.raises(MetadataError, match="corrupted or incomplete download"):
        read(data[:-1])


def test_a_file_without_tensors_ends_with_its_metadata() -> None:
    """A vocabulary-only file has no data, hence no padding either."""
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + ARCHITECTURE
    assert read(data).data_offset == len(data)


def test_a_scalar_tensor_has_no_extents() -> None:
    """No dimensions mean one element, as in ggml."""
    assert read(document([], [info("t", ())], 4)).tensors[0].n_elements == 1


def test_the_padding_behind_the_last_tensor_may_be_missing() -> None:
    """Engines do not need the last tensor's padding, so a file without it is complete."""
    assert read(VALID[: len(VALID) - 44]).tensors[1].n_bytes == 20


def nested_arrays(depth: int) -> bytes:
    """Write arrays in arrays, ``depth`` of them, the innermost empty."""
    value = array(UINT32, [])
    for _ in range(depth - 1):
        value = array(ARRAY, [value])
    return value


def nearly_int64(shape: Sequence[int]) -> bytes:
    """Write a file whose one tensor has this shape."""
    return document([ARCHITECTURE], [info("t", shape)])


FAULTS: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "incomplete", "magic"),
    "foreign": (b"hello world", "not a GGUF file", "magic"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs", "magic"),
    "web page": (b"<!DOCTYPE html><html>", "web page", "magic"),
    "zipped pickle": (b"PK\x03\x04" + bytes(50), "pickle", "magic"),
    "pickle": (b"\x80\x04K\x01.", "pickle", "magic"),
    "version 1": (document(version=1), "version 1 is no longer read", "version"),
    "version 4": (document(version=4), "newer than this reader", "version"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian", "version"),
    "too many tensors": (document(n_tensors=2**40), "absurd", "tensor_count"),
    "too many keys": (document(n_keys=2**63), "absurd", "metadata_kv_count"),
    "fewer keys than announced": (document([ARCHITECTURE], n_keys=3), "", "metadata key 1"),
    "empty key": (document([pair("", BOOL, b"\0")]), "empty", "metadata key 0"),
    "long key": (document([pair("k" * 65536, BOOL, b"\0")]), "absurd", "metadata key 0"),
    "key not UTF-8": (document([pair(b"\xff", BOOL, b"\0")]), "UTF-8", "metadata key 0"),
    "value not UTF-8": (document([pair("k", STRING, text(b"\xff"))]), "UTF-8", "k"),
    "duplicate key": (document([ARCHITECTURE, ARCHITECTURE]), "duplicate key", "metadata key 1"),
    "duplicate length": (
        document([pair("k.length", BOOL, b"\0"), pair("k", ARRAY, array(ARRAY, []))]),
        "duplicate key `k.length`",
        "metadata key 1",
    ),
    "truth value 2": (document([pair("k", BOOL, b"\x02")]), "neither 0 nor 1", "k"),
    "truth value 2 in an array": (document([pair("k", ARRAY, array(BOOL, [b"\1", b"\2"]))]), "neither 0 nor 1", "k"),
    "unknown value type": (document([pair("k", 13, bytes(8))]), "unknown value type 13", "type of k"),
    "negative value type": (document([pair("k", -1, bytes(8))]), "unknown value type -1", "type of k"),
    "unknown element type": (document([pair("k", ARRAY, array(99, []))]), "unknown value type 99", "type of k"),
    "array larger than the file": (
        document([pair("k", ARRAY, array(UINT32, [], n=2**20))]),
        "4194304 bytes are announced",
        "k",
    ),
    "array larger than any": (document([pair("k", ARRAY, array(UINT32, [], n=2**62))]), "absurd", "length of k"),
    "strings larger than the file": (document([pair("k", ARRAY, array(STRING, [], n=2**29))]), "announced", "k"),
    "string larger than the file": (document([pair("k", STRING, struct.pack("<Q", 2**63))]), "announced", "k"),
    "one long word in a vocabulary": (
        document([pair("tokenizer.t", ARRAY, array(STRING, [text("a"), struct.pack("<Q", 2**64 - 1), text("b")]))]),
        "18446744073709551615 bytes are announced",
        "tokenizer.t[1]",
    ),
    "nested too deep": (document([pair("k", ARRAY, nested_arrays(9))]), "nested deeper", "k"),
    "alignment 0": (document([pair("general.alignment", UINT32, bytes(4))]), "power of two", "general.alignment"),
    "alignment 48": (
        document([pair("general.alignment", UINT32, scalar(UINT32, 48))]),
        "power of two",
        "general.alignment",
    ),
    "alignment of another type": (
        document([pair("general.alignment", UINT64, scalar(UINT64, 32))]),
        "power of two",
        "general.alignment",
    ),
    "long tensor name": (document([], [info("t" * 64, (1,))], 4), "absurd", "tensor name 0"),
    "duplicate tensor name": (
        document([], [info("t", (8,)), info("t", (8,), offset=32)], 64),
        "duplicate tensor name",
        "tensor name 1",
    ),
    "five dimensions": (document([], [info("t", (1,) * 5)], 4), "dimensions", "shape of tensor t"),
    "negative extent": (nearly_int64((-1,)), "negative", "shape of tensor t"),
    "product overflows": (nearly_int64((2**32, 2**31)), "too large", "shape of tensor t"),
    "product overflows behind a zero": (nearly_int64((0, 2**62, 2**62)), "too large", "shape of tensor t"),
    "bytes overflow": (nearly_int64((2**62,)), "too large", "type of tensor t"),
    "withdrawn type": (document([], [info("t", (32,), 4)], 32), "withdrawn", "type of tensor t"),
    "future type": (document([], [info("t", (32,), 1000)], 32), "newer than this reader", "type of tensor t"),
    "broken row": (document([], [info("t", (100,), 12)], 999), "not a whole number", "type of tensor t"),
    "unaligned offset": (document([], [info("t", (1,), 0, 4)], 64), "not a multiple", "offset of tensor t"),
    "hole": (document([], [info("t", (1,), 0, 32)], 64), "end at 0", "offset of tensor t"),
    "overlap": (document([], [info("t", (9,)), info("u", (1,), 0, 32)], 96), "end at 64", "offset of tensor u"),
    "missing data": (document([], [info("t", (8,)), info("u", (8,), 0, 32)], 40), "incomplete", "data of tensor u"),
}


@pytest.mark.parametrize(("data", "message", "field"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named(data: bytes, message: str, field: str) -> None:
    """What is wrong is one kind of error that says what, in which field, and at an offset within the file."""
    with pytest.raises(MetadataError) as caught:
        read(data)
    assert message in caught.value.message
    assert caught.value.field == field
    assert 0 <= caught.value.offset <= len(data)


def test_control_characters_of_a_file_do_not_reach_a_terminal() -> None:
    """A message quotes names from the file without what could steer a terminal."""
    data = document([pair("\x1b[2J", 13, b"")])
    with pytest.raises(MetadataError) as caught:
        read(data)
    assert caught.value.message.isprintable()


def test_a_header_without_an_architecture_is_no_model() -> None:
    """A later file of a split model can be read, and says only when asked that it is no model by itself."""
    header = read(document([pair("split.no", UINT32, scalar(UINT32, 1))]))
    with pytest.raises(MetadataError, match="architecture"):
        _ = header.spec


@pytest.mark.parametrize("size", range(len(VALID) - 44))
def test_a_truncated_file_is_told(size: int) -> None:
    """Wherever a file is cut before the end of its last tensor, this is seen, whether or not the size tells it."""
    with pytest.raises(MetadataError):
        read(VALID[:size])
    if size < len(VALID) - 512:
        with pytest.raises(MetadataError):
            read(VALID[:size], len(VALID))


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
    st.integers(0, len(VALID)),
    st.integers(1, 200),
)
@example(
    [(531, b"\x01")], 589, 1
)  # an offset that is none, in a file that ends before the padding after its header does
@settings(max_examples=1500)
def test_a_mutated_file_is_read_or_refused(edits: list[tuple[int, bytes]], size: int, chunk: int) -> None:
    """Whatever is changed or cut off, nothing but ``MetadataError`` is raised, and no more is asked for than remains."""
    data = bytearray(VALID)
    for at, patch in edits:
        data[at : at + len(patch)] = patch
    data = data[: size or len(data)]
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(gguf, "_CHUNK_BYTES", chunk)
        outcome = read_or_fault(bytes(data))
    if isinstance(outcome, MetadataError):
        assert 0 <= outcome.offset <= len(data)
    else:
        assert outcome.data_offset + sum(tensor.n_bytes for tensor in outcome.tensors) <= len(data)


@given(st.binary(max_size=400))
@settings(max_examples=500)
def test_noise_behind_the_magic_is_read_or_refused(noise: bytes) -> None:
    """Random bytes where the keys should be end in ``MetadataError``, if not in an unlikely but valid file."""
    data = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + noise
    with pytest.raises(MetadataError):
        read(data)


def huge_vocabulary() -> bytes:
    """Write the start of a file that announces more words than anyone waits for."""
    return document([pair("tokenizer.t", ARRAY, array(STRING, [], n=2**29))])


def huge_nest() -> bytes:
    """Write the start of a file that announces more arrays in an array than anyone waits for."""
    return document([pair("tokenizer.t", ARRAY, array(ARRAY, [], n=2**29))])


@pytest.mark.parametrize("build", [huge_vocabulary, huge_nest])
def test_a_sparse_giant_does_not_keep_the_reader_busy(build: Callable[[], bytes], tmp_path: Path) -> None:
    """A terabyte of zeros that pretends to be a vocabulary is refused before it is walked."""
    path = tmp_path / "giant.gguf"
    with path.open("wb") as stream:
        stream.write(build())
        stream.truncate(2**40)
    started = time.monotonic()
    with pytest.raises(MetadataError, match="strings and nested arrays"):
        read_gguf_file(path)
    assert time.monotonic() - started < 5


def test_a_sparse_giant_does_not_fill_the_memory(tmp_path: Path) -> None:
    """What is kept of one file is bounded, however many strings of lawful length it has."""
    path = tmp_path / "giant.gguf"
    with path.open("wb") as stream:
        stream.write(document(n_keys=9, alignment=8))
        for idx in range(9):
            stream.write(text(f"k{idx}") + struct.pack("<iQ", STRING, 2**25))
            stream.seek(2**25, os.SEEK_CUR)
        stream.truncate()
    with pytest.raises(MetadataError, match="strings and short arrays") as caught:
        read_gguf_file(path)
    assert caught.value.field == "k3"


def write_split(folder: Path, n_shards: int, **wrong: int) -> list[Path]:
    """Write a split model with one tensor per file; ``wrong`` replaces what a key says, in the last file."""
    paths = []
    for idx in range(n_shards):
        says = {"split.no": idx, "split.count": n_shards, "split.tensors.count": n_shards}
        says |= {key.replace("_", "."): value for key, value in wrong.items()} if idx == n_shards - 1 else {}
        pairs = [pair(key, UINT32, scalar(UINT32, value)) for key, value in says.items()]
        path = folder / f"m-{idx + 1:05d}-of-{n_shards:05d}.gguf"
        path.write_bytes(document([ARCHITECTURE, *pairs] if idx == 0 else pairs, [info(f"t{idx}", (8,))], 32))
        paths.append(path)
    return paths


@pytest.mark.parametrize("given_idx", [0, 1, 2])
def test_a_split_model_is_read_from_any_of_its_files(given_idx: int, tmp_path: Path) -> None:
    """The tensors of all files are joined in order behind the first file's metadata."""
    header = read_gguf_file(write_split(tmp_path, 3)[given_idx])
    assert [tensor.name for tensor in header.tensors] == ["t0", "t1", "t2"]
    assert header.n_shards == 3
    assert header.spec.architecture == "llama"


def test_a_missing_file_of_a_split_model_is_named(tmp_path: Path) -> None:
    """The message has the name of the file to fetch."""
    paths = write_split(tmp_path, 3)
    paths[1].unlink()
    with pytest.raises(WeightsMissingError, match=r"`m-00002-of-00003\.gguf`"):
        read_gguf_file(paths[0])


@pytest.mark.parametrize("wrong", [{"split_no": 0}, {"split_count": 2}])
def test_a_file_that_says_another_number_is_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    """Files that were renamed or mixed are told from the number that each carries."""
    with pytest.raises(MetadataError, match="says that it is file"):
        read_gguf_file(write_split(tmp_path, 3, **wrong)[0])


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    """No tensor can be in two files of one model."""
    paths = write_split(tmp_path, 2)
    paths[1].write_bytes(paths[1].read_bytes().replace(b"t1", b"t0"))
    with pytest.raises(MetadataError, match="`t0`"):
        read_gguf_file(paths[0])


def test_the_announced_number_of_tensors_is_checked(tmp_path: Path) -> None:
    """The files together must hold as many tensors as the first one announces."""
    paths = write_split(tmp_path, 2)
    announced = pair("split.tensors.count", UINT32, scalar(UINT32, 2))
    paths[0].write_bytes(paths[0].read_bytes().replace(announced, announced[:-4] + scalar(UINT32, 9)))
    with pytest.raises(MetadataError, match="announces 9"):
        read_gguf_file(paths[0])


def test_a_renamed_file_of_a_split_model_is_refused(tmp_path: Path) -> None:
    """Without its published name a file does not lead to the others."""
    renamed = write_split(tmp_path, 2)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(MetadataError, match=r"one of 2 files"):
        read_gguf_file(renamed)


def test_a_file_beyond_its_own_number_is_refused(tmp_path: Path) -> None:
    """There is no third file of two."""
    renamed = write_split(tmp_path, 2)[1].rename(tmp_path / "m-00003-of-00002.gguf")
    with pytest.raises(MetadataError, match=r"one of 2 files"):
        read_gguf_file(renamed)


def test_a_fault_tells_its_file(tmp_path: Path) -> None:
    """Read by path, a fault names the path; that is what tells the bad file among many."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(MetadataError) as caught:
        read_gguf_file(path)
    assert caught.value.details == (f"in {path}",)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """Nothing, a folder, a pipe that nobody writes to, and an impossible name end at once in a named fault."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsMissingError):
        read_gguf_file(tmp_path / "nothing")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "null\0"):
        with pytest.raises(MetadataError):
            read_gguf_file(path)
