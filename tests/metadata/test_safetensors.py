"""The safetensors reader and Hugging Face folders, sentence by sentence of the format, and against files that lie."""

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.domain import WeightsFormat
from launcher.errors import MetadataError, WeightsMissingError
from launcher.metadata.hyperparameters import hyperparameters
from launcher.metadata.safetensors import SafetensorsHeader, read_folder, read_safetensors
from launcher.tensor_types import TensorType


def entry(dtype: str = "F16", shape: object = (2, 3), begin: int = 0, end: int = 12) -> dict[str, object]:
    """Describe one tensor as a header does."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def document(header: object, n_data: int = 0, *, n_header: int | None = None) -> bytes:
    """Write a file with ``n_data`` bytes of weights, claiming another header length if given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if n_header is None else n_header) + text + bytes(n_data)


class BoundedStream(io.BytesIO):
    """A stream that fails the test when more is asked of it than remains of the file."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, if it is no more than remains."""
        assert size is not None
        assert 0 <= size <= len(self.getbuffer()) - self.tell()
        return super().read(size)


def read(data: bytes) -> SafetensorsHeader:
    """Read a header from bytes, through a stream that watches what is asked of it."""
    return read_safetensors(BoundedStream(data), len(data))


def read_or_fault(data: bytes) -> SafetensorsHeader | MetadataError:
    """Read a header, or return the named fault; any other exception passes."""
    try:
        return read(data)
    except MetadataError as error:
        return error


VALID = document({"__metadata__": {"format": "pt"}, "b": entry("F32", (), 12, 16), "a": entry("BF16", (2, 3))}, 16)


def test_a_whole_file_is_understood() -> None:
    """Tensors come in the order of their data, with shapes reversed into ggml's order."""
    header = read(VALID)
    assert header.metadata == {"format": "pt"}
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in header.tensors] == [
        ("a", (3, 2), TensorType.BF16),
        ("b", (), TensorType.F32),
    ]
    assert header.tensor_offsets == (0, 12)
    assert header.data_offset == len(VALID) - 16


def test_a_header_may_be_padded_with_spaces() -> None:
    """Writers pad the header so that the data is aligned."""
    assert read(document(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}   ', 1)).tensors[0].n_bytes == 1


@pytest.mark.parametrize(
    ("dtype", "n_bytes"),
    [
        *(("BOOL", 1), ("U8", 1), ("I8", 1), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("I16", 2), ("U16", 2)),
        *(("F16", 2), ("BF16", 2), ("I32", 4), ("U32", 4), ("F32", 4), ("I64", 8), ("U64", 8), ("F64", 8)),
    ],
)
def test_an_element_takes_the_bytes_of_its_type(dtype: str, n_bytes: int) -> None:
    """All published element types of whole bytes are known, each with its size."""
    header = read(document({"t": entry(dtype, (5,), 0, 5 * n_bytes)}, 5 * n_bytes))
    assert header.tensors[0].n_bytes == 5 * n_bytes


FAULTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "incomplete"),
    "header larger than the file": (document({}, n_header=3000), "3000 bytes are announced"),
    "header larger than allowed": (document({}, n_header=2**63), "absurd"),
    "no brace": (document(b"[]"), "brace"),
    "space before the brace": (document(b" {}"), "brace"),
    "no JSON": (document(b"{nope}"), "not valid JSON"),
    "not UTF-8": (document(b'{"\xff": 1}'), "not valid JSON"),
    "deep nest": (document(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "huge number": (document(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "not a number": (document(b'{"a": NaN}'), "NaN"),
    "lone surrogate": (document(b'{"\\ud800": 1}'), "not valid JSON"),
    "duplicate name": (document(b'{"a": 1, "a": 2}'), "duplicate key `a`"),
    "metadata of numbers": (document({"__metadata__": {"a": 1}}), "not an object of strings"),
    "tensor of nothing": (document({"a": None}), "not an object of dtype"),
    "tensor with more": (document({"a": entry() | {"more": 1}}, 12), "not an object of dtype"),
    "future type": (document({"a": entry("F4")}, 12), "newer than this reader"),
    "type of no name": (document({"a": entry([])}, 12), "newer than this reader"),  # type: ignore[arg-type]  # the lie
    "negative extent": (document({"a": entry(shape=[-1])}, 12), "not a list of extents"),
    "extent that is no number": (document({"a": entry(shape=[True])}, 12), "not a list of extents"),
    "product overflows": (document({"a": entry(shape=[2**40, 2**40])}, 12), "too large"),
    "long product": (document({"a": entry(shape=[2] * 10_000)}, 12), "too large"),
    "one offset": (document({"a": entry() | {"data_offsets": [0]}}, 12), "not a begin and an end"),
    "other size": (document({"a": entry(end=13)}, 13), "13 bytes, its shape and type 12"),
    "backwards": (document({"a": entry(begin=12, end=0)}, 12), "-12 bytes"),
    "hole": (document({"a": entry(begin=2, end=14)}, 14), "begins at 2"),
    "overlap": (document({"a": entry(), "b": entry(begin=6, end=18)}, 18), "begins at 6"),
    "missing data": (document({"a": entry()}, 11), "corrupted or incomplete download"),
    "spare data": (document({"a": entry()}, 13), "belong to none"),
}


@pytest.mark.parametrize(("data", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named(data: bytes, message: str) -> None:
    """What is wrong is one kind of error that says what, at an offset within the file."""
    with pytest.raises(MetadataError) as caught:
        read(data)
    assert message in caught.value.message
    assert caught.value.message.isprintable()
    assert 0 <= caught.value.offset <= max(len(data), 8)


@pytest.mark.parametrize("size", range(len(VALID)))
def test_a_truncated_file_is_told(size: int) -> None:
    """Wherever a file is cut, this is seen."""
    with pytest.raises(MetadataError):
        read(VALID[:size])


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
@settings(max_examples=500)
def test_a_mutated_file_is_read_or_refused(edits: list[tuple[int, bytes]]) -> None:
    """Whatever is changed, nothing but ``MetadataError`` is raised, and no more is asked for than remains."""
    data = bytearray(VALID)
    for at, patch in edits:
        data[at : at + len(patch)] = patch
    outcome = read_or_fault(bytes(data))
    if isinstance(outcome, SafetensorsHeader):
        assert outcome.data_offset + sum(tensor.n_bytes for tensor in outcome.tensors) == len(data)


CONFIG: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 1000,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "sliding_window": None,
    "eos_token_id": [1, 2],
    "rope_scaling": {"factor": 8, "rope_type": "llama3"},
    "mixed": [1, "a"],
    "empty": [],
}


def write_folder(folder: Path, config: Mapping[str, object] = CONFIG, **shards: bytes) -> Path:
    """Write ``config.json`` and, under their names, safetensors files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, data in shards.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    """Write which tensor is in which file."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


ONE = document({"a": entry()}, 12)
OTHER = document({"b": entry()}, 12)


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    """The configuration's own keys are the metadata, those of inner objects behind their name; ``null`` leaves nothing."""
    spec = read_folder(write_folder(tmp_path, model=ONE))
    assert spec.format is WeightsFormat.SAFETENSORS
    assert spec.architecture == "LlamaForCausalLM"
    assert spec.metadata == {
        "architectures": ("LlamaForCausalLM",),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "vocab_size": 1000,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "eos_token_id": (1, 2),
        "rope_scaling.factor": 8,
        "rope_scaling.rope_type": "llama3",
        "mixed.length": 2,
        "empty": (),
    }
    assert [(tensor.name, tensor.shape) for tensor in spec.tensors] == [("a", (3, 2))]


def test_hyperparameters_are_translated(tmp_path: Path) -> None:
    """Hugging Face's words become llama.cpp's, also where the language model is an inner object of the configuration."""
    expected = {"n_ctx_train": 2048, "n_layer": 2, "n_embd": 64, "n_head": 8, "n_head_kv": 2, "n_vocab": 1000}
    assert hyperparameters(read_folder(write_folder(tmp_path / "plain", model=ONE))) == expected
    inner = {"model_type": "gemma3", "text_config": {**CONFIG, "num_experts": 4}}
    assert hyperparameters(read_folder(write_folder(tmp_path / "inner", inner, model=ONE))) == expected | {
        "n_expert": 4
    }


def test_all_files_of_the_index_are_joined(tmp_path: Path) -> None:
    """The index says which files belong to the model; others in the folder do not."""
    write_folder(tmp_path, model_1=ONE, model_2=OTHER, consolidated=ONE)
    write_index(tmp_path, {"a": "model_1.safetensors", "b": "model_2.safetensors"})
    assert [tensor.name for tensor in read_folder(tmp_path).tensors] == ["a", "b"]


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    """In Hugging Face's cache a snapshot's files are links to blobs beside it; that is no escape."""
    blob = tmp_path / "models--x" / "blobs" / "0123"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(ONE)
    snapshot = write_folder(tmp_path / "models--x" / "snapshots" / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert read_folder(snapshot).tensors[0].name == "a"


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/out.safetensors", "sub/x.safetensors", "./../out.safetensors"]
)
def test_a_name_cannot_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    """An index is a stranger's text: it names files of its folder, or it is refused."""
    (tmp_path / "out.safetensors").write_bytes(ONE)
    folder = write_folder(tmp_path / "model")
    write_index(folder, {"a": name})
    with pytest.raises(MetadataError, match="leads out of the folder"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_cannot_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    """A link to elsewhere is refused, whichever file of the folder it is."""
    folder = write_folder(tmp_path / "model", model=ONE)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(MetadataError, match="leads out of the folder"):
        read_folder(folder)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    """A link to itself leads nowhere."""
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(MetadataError):
        read_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(name: str, tmp_path: Path) -> None:
    """A folder that has only pickled weights is refused with the reason, and nothing of them is read."""
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(MetadataError, match="pickled weights") as caught:
        read_folder(tmp_path)
    assert caught.value.help is not None


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    """Without weights, without a configuration, without a file of the index: each is named."""
    with pytest.raises(WeightsMissingError, match="no safetensors file"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(ONE)
    with pytest.raises(WeightsMissingError, match=r"config\.json"):
        read_folder(tmp_path)
    write_folder(tmp_path)
    write_index(tmp_path, {"a": "gone.safetensors"})
    with pytest.raises(WeightsMissingError, match=r"gone\.safetensors"):
        read_folder(tmp_path)


def test_several_files_need_an_index(tmp_path: Path) -> None:
    """Which of several files are the model is not guessed."""
    with pytest.raises(MetadataError, match="2 safetensors files without"):
        read_folder(write_folder(tmp_path, x=ONE, y=OTHER))


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        {},
        {"a": 1},
        {"a": "model.bin"},
        {"a": "x.safetensors", "z": "x.safetensors"},
        {"b": "x.safetensors", "a": "y.safetensors"},
        {"b": "x.safetensors", "c": "y.safetensors"},
    ],
)
def test_an_index_that_lies_is_refused(weight_map: object, tmp_path: Path) -> None:
    """An index names a safetensors file for every tensor, and the tensor is there."""
    write_folder(tmp_path, x=ONE, y=OTHER)
    write_index(tmp_path, weight_map)
    with pytest.raises(MetadataError):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        b"[]",
        b"{}",
        b'{"model_type": 3}',
        b'{"architectures": [], "model_type": ""}',
        b'{"model_type": "x", "n": 99999999999999999999}',
        b'{"model_type": "x", "n": 1e999}',
        b'{"model_type": "x", "n": ["\\ud800"]}',
        b'{"model_type": "x", "a": {"b": 1}, "a.b": 2}',
        b'{"model_type": "x", "a": ' + b'{"a":' * 20 + b"1" + b"}" * 21,
    ],
)
def test_a_configuration_that_lies_is_refused(config: bytes, tmp_path: Path) -> None:
    """A configuration is an object that names an architecture and holds what a snapshot can hold."""
    write_folder(tmp_path, model=ONE)
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(MetadataError) as caught:
        read_folder(tmp_path)
    assert caught.value.field == "config.json"
