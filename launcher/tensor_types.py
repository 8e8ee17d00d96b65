"""How many bytes the elements of a tensor take, for every element type of GGUF and of safetensors.

A ggml type packs ``block_size`` consecutive elements of a row into ``block_bytes`` bytes. The table restates the
type traits of ggml (``ggml/src/ggml.c``, llama.cpp build 11434); the test suite compares it with the ``gguf`` package.
It knows nothing of files, models or plans.
"""

from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple


class TensorTypeTraits(NamedTuple):
    """The packing of one element type: ``block_size`` elements in ``block_bytes`` bytes."""

    block_size: int
    block_bytes: int
    ggml_id: int | None
    """The number that a GGUF file stores for this type; ``None`` for a type that only safetensors has."""


class TensorType(StrEnum):
    """Element types, by ggml's names; the float formats of safetensors that ggml lacks come last."""

    F32 = "F32"
    F16 = "F16"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q8_1 = "Q8_1"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    Q8_K = "Q8_K"
    IQ2_XXS = "IQ2_XXS"
    IQ2_XS = "IQ2_XS"
    IQ3_XXS = "IQ3_XXS"
    IQ1_S = "IQ1_S"
    IQ4_NL = "IQ4_NL"
    IQ3_S = "IQ3_S"
    IQ2_S = "IQ2_S"
    IQ4_XS = "IQ4_XS"
    I8 = "I8"
    I16 = "I16"
    I32 = "I32"
    I64 = "I64"
    F64 = "F64"
    IQ1_M = "IQ1_M"
    BF16 = "BF16"
    TQ1_0 = "TQ1_0"
    TQ2_0 = "TQ2_0"
    MXFP4 = "MXFP4"
    NVFP4 = "NVFP4"
    Q1_0 = "Q1_0"
    Q2_0 = "Q2_0"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F8_E8M0 = "F8_E8M0"
    U8 = "U8"
    U16 = "U16"
    U32 = "U32"
    U64 = "U64"
    BOOL = "BOOL"


TRAITS: Final[dict[TensorType, TensorTypeTraits]] = {
    TensorType(name): TensorTypeTraits(block_size, block_bytes, ggml_id)
    for name, block_size, block_bytes, ggml_id in (
        ("F32", 1, 4, 0),
        ("F16", 1, 2, 1),
        ("Q4_0", 32, 18, 2),
        ("Q4_1", 32, 20, 3),
        ("Q5_0", 32, 22, 6),
        ("Q5_1", 32, 24, 7),
        ("Q8_0", 32, 34, 8),
        ("Q8_1", 32, 36, 9),
        ("Q2_K", 256, 84, 10),
        ("Q3_K", 256, 110, 11),
        ("Q4_K", 256, 144, 12),
        ("Q5_K", 256, 176, 13),
        ("Q6_K", 256, 210, 14),
        ("Q8_K", 256, 292, 15),
        ("IQ2_XXS", 256, 66, 16),
        ("IQ2_XS", 256, 74, 17),
        ("IQ3_XXS", 256, 98, 18),
        ("IQ1_S", 256, 50, 19),
        ("IQ4_NL", 32, 18, 20),
        ("IQ3_S", 256, 110, 21),
        ("IQ2_S", 256, 82, 22),
        ("IQ4_XS", 256, 136, 23),
        ("I8", 1, 1, 24),
        ("I16", 1, 2, 25),
        ("I32", 1, 4, 26),
        ("I64", 1, 8, 27),
        ("F64", 1, 8, 28),
        ("IQ1_M", 256, 56, 29),
        ("BF16", 1, 2, 30),
        ("TQ1_0", 256, 54, 34),
        ("TQ2_0", 256, 66, 35),
        ("MXFP4", 32, 17, 39),
        ("NVFP4", 64, 36, 40),
        ("Q1_0", 128, 18, 41),
        ("Q2_0", 64, 18, 42),
        ("F8_E4M3", 1, 1, None),
        ("F8_E5M2", 1, 1, None),
        ("F8_E8M0", 1, 1, None),
        ("U8", 1, 1, None),
        ("U16", 1, 2, None),
        ("U32", 1, 4, None),
        ("U64", 1, 8, None),
        ("BOOL", 1, 1, None),
    )
}

BY_GGML_ID: Final[dict[int, TensorType]] = {
    traits.ggml_id: tensor_type for tensor_type, traits in TRAITS.items() if traits.ggml_id is not None
}


@lru_cache(maxsize=4096)  # the tensors of a model's blocks repeat
def tensor_bytes(tensor_type: TensorType, shape: tuple[int, ...]) -> int:
    """Return the bytes of a contiguous tensor (ggml's ``ggml_nbytes``).

    ``shape`` counts elements per dimension, in ggml's order: the first dimension is the row and is contiguous.

    Raises:
        ValueError: the row is not a whole number of blocks, so no such tensor can exist.
    """
    traits = TRAITS[tensor_type]
    row = shape[0] if shape else 1
    if row % traits.block_size:
        msg = f"a row of {row} elements is not a whole number of {tensor_type} blocks of {traits.block_size}"
        raise ValueError(msg)
    n_bytes = row // traits.block_size * traits.block_bytes
    for extent in shape[1:]:
        n_bytes *= extent
    return n_bytes
