"""The GGUF reader beside the reference implementation, the ``gguf`` package, on files that either of them or llama.cpp wrote."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFValueType

from launcher.domain import MetadataValue
from launcher.errors import MetadataError
from launcher.metadata.gguf import MAX_KEPT_ELEMENTS, GgufHeader, read_gguf_file
from launcher.tensor_types import BY_GGML_ID, TRAITS

NEWER_THAN_THE_PACKAGE = {"Q2_0"}
WRONG_IN_THE_PACKAGE = {"Q8_1": (9, 32, 40)}
"""ggml's own ``block_q8_1`` (ggml-common.h, build 11434) has two half floats, not two floats: 36 bytes. No file stores it."""


def test_every_element_type_is_packed_as_the_reference_says() -> None:
    """Numbers, block sizes and bytes of ggml's types agree with the reference, and none of its types is missing."""
    reference = {kind.name: (int(kind), *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    ours = {
        name.value: (ggml_id, TRAITS[name].block_size, TRAITS[name].block_bytes) for ggml_id, name in BY_GGML_ID.items()
    }
    assert ours["Q8_1"] == (9, 32, 36)
    assert {name: ours[name] for name in reference} | WRONG_IN_THE_PACKAGE == reference
    assert ours.keys() - reference.keys() == NEWER_THAN_THE_PACKAGE


def expected_metadata(reader: gguf.GGUFReader) -> dict[str, MetadataValue]:
    """Reduce what the reference read as our reader is to reduce it."""
    metadata: dict[str, MetadataValue] = {}
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        if field.types[0] is not GGUFValueType.ARRAY:
            metadata[key] = field.contents()
        elif (
            key.startswith("tokenizer.") or len(field.data) > MAX_KEPT_ELEMENTS or field.types[1] is GGUFValueType.ARRAY
        ):
            metadata[f"{key}.length"] = len(field.data)
        else:
            metadata[key] = tuple(field.contents())
    return metadata


def assert_same(header: GgufHeader, path: Path) -> None:
    """Compare all that both readers tell of one file."""
    reader = gguf.GGUFReader(path)
    assert header.metadata == expected_metadata(reader)
    assert header.alignment == reader.alignment
    assert header.data_offset == reader.data_offset
    assert [
        (
            tensor.name,
            list(tensor.shape),
            tensor.type.value,
            tensor.n_elements,
            tensor.n_bytes,
            header.data_offset + offset,
        )
        for tensor, offset in zip(header.tensors, header.tensor_offsets, strict=True)
    ] == [
        (
            tensor.name,
            tensor.shape.tolist(),
            tensor.tensor_type.name,
            tensor.n_elements,
            tensor.n_bytes,
            tensor.data_offset,
        )
        for tensor in reader.tensors
    ]


@pytest.mark.heavy
def test_the_real_model_reads_alike(real_model: Path) -> None:
    """Every key and every tensor of a real file is what the reference reads."""
    assert_same(read_gguf_file(real_model), real_model)


SCALARS: dict[GGUFValueType, list[Any]] = {
    GGUFValueType.UINT8: [0, 255],
    GGUFValueType.INT8: [-128, 127],
    GGUFValueType.UINT16: [0, 65535],
    GGUFValueType.INT16: [-32768, 32767],
    GGUFValueType.UINT32: [0, 2**32 - 1],
    GGUFValueType.INT32: [-(2**31), 2**31 - 1],
    GGUFValueType.FLOAT32: [0.1, -3.5e38 / 2],
    GGUFValueType.BOOL: [True, False],
    GGUFValueType.STRING: ["", "grüße"],
    GGUFValueType.UINT64: [0, 2**64 - 1],
    GGUFValueType.INT64: [-(2**63), 2**63 - 1],
    GGUFValueType.FLOAT64: [0.1, -1e300],
}


def write(
    path: Path, *, alignment: int | None = None, endianess: GGUFEndian = GGUFEndian.LITTLE, split_max_tensors: int = 0
) -> None:
    """Let the reference write a file with every value type and every element type."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess, split_max_tensors=split_max_tensors)
    if alignment:
        writer.add_custom_alignment(alignment)
    for kind, values in SCALARS.items():
        for idx, value in enumerate(values):
            writer.add_key_value(f"scalar.{kind.name}.{idx}", value, kind)
        writer.add_key_value(f"array.{kind.name}", values, GGUFValueType.ARRAY, kind)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "", "wörd"] * 1000)
    writer.add_array("tokenizer.ggml.scores", [0.5] * 5000)
    writer.add_array("long.array", list(range(5000)))
    for packing in GGMLQuantizationType:
        if packing.name not in WRONG_IN_THE_PACKAGE:
            _block_size, block_bytes = GGML_QUANT_SIZES[packing]
            rows = np.zeros((3, 2 * block_bytes), dtype=np.uint8)
            writer.add_tensor(f"blk.0.{packing.name}", rows, raw_dtype=packing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_all_value_types_read_alike(version: int, alignment: int | None, tmp_path: Path) -> None:
    """A file of every value type and every element type, written by the reference, is read as the reference reads it."""
    path = tmp_path / "all.gguf"
    write(path, alignment=alignment)
    with path.open("r+b") as stream:
        stream.seek(4)
        stream.write(struct.pack("<I", version))
    assert_same(read_gguf_file(path), path)


def test_a_model_split_by_the_reference_is_joined(tmp_path: Path) -> None:
    """The files of a split are together what the whole file is."""
    write(tmp_path / "whole.gguf")
    write(tmp_path / "split.gguf", split_max_tensors=10)
    shards = sorted(tmp_path.glob("split-*.gguf"))
    assert len(shards) == 4
    whole, joined = read_gguf_file(tmp_path / "whole.gguf"), read_gguf_file(shards[0])
    assert joined.tensors == whole.tensors
    assert joined.n_shards == 4
    split_keys = {"split.no", "split.count", "split.tensors.count"}
    assert {key: value for key, value in joined.metadata.items() if key not in split_keys} == whole.metadata


def test_a_big_endian_file_is_named_as_such(tmp_path: Path) -> None:
    """A file for the opposite byte order is told from a broken one."""
    path = tmp_path / "big.gguf"
    write(path, endianess=GGUFEndian.BIG)
    with pytest.raises(MetadataError, match="big-endian"):
        read_gguf_file(path)
