"""Which weights vLLM can load on which GPU, divided over how many.

The gates are data with their sources: files of vLLM 0.32.0 under ``vllm/``. Earlier releases ask for more (AWQ, GPTQ and FP8
by Marlin for compute capability 8.0). It knows no memory sizes.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from msgspec import Struct

from launcher.domain import ModelSpec, WeightsFormat
from launcher.planner.footprint.vllm_model import (
    VOCAB_PADDING,
    FullKv,
    VllmModel,
    quantization_method,
    read_model,
    stored_dtype,
)
from launcher.tensor_types import TensorType
from launcher.units import pad

Capability: TypeAlias = tuple[int, int]
"""CUDA compute capability: major, minor."""

ENGINE_MINIMUM: Final[Capability] = (7, 5)
"""Of the published CUDA wheels (published: vLLM's installation page for GPUs)."""
BFLOAT16_MINIMUM: Final[Capability] = (8, 0)
"""``platforms/cuda.py``: ``supported_dtypes``. Below it the engine falls back to float16 by itself."""
FLOAT16_REFUSED: Final = ("Gemma2", "Gemma3", "Glm4")
"""Architectures whose float16 is numerically unstable (``config/model.py``: ``_FLOAT16_NOT_SUPPORTED_MODELS``): the engine
takes float32 for them where bfloat16 is missing, which doubles weights, cache and activations."""
FP8_CACHE_MINIMUM: Final[Capability] = (8, 0)
"""Published: FlashInfer serves ``fp8_e5m2`` and ``fp8_e4m3`` caches on GPUs of 8.6 (logs of RTX 3090 and A6000)."""


FP8_CACHE_PROVED: Final = frozenset({"LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"})
FP8_CACHE_PROVED_FROM: Final[Capability] = (9, 0)
FP8_CACHE_PROVED_PAIRS: Final = frozenset({2 * 64, 2 * 128})
FP8_CACHE_MENDED: Final = (0, 21)
"""Where an fp8 cache without calibrated scales was published to keep nearly all of what a model can do (vLLM's blog, "The State
of FP8 KV-Cache and Attention Quantization", 22 April 2026: Llama, Qwen3 and mixtures on Hopper and Blackwell, 94 to 99 % of the
scores). Left out is what it warns of: windows, states and latent attention, heads of 256, GPUs that were not tested, and releases
before its mending of long contexts on Hopper (91 to 13 % of the needles were found), of which 0.21 was the next."""


class Gate(Struct, frozen=True, kw_only=True):
    """From which compute capability a kind of weights runs, and from which it also computes in that type."""

    minimum: Capability
    native: Capability
    source: str


GATES: Final[Mapping[str, Gate]] = {
    "none": Gate(minimum=ENGINE_MINIMUM, native=ENGINE_MINIMUM, source="vLLM's installation page"),
    "awq": Gate(
        minimum=(7, 5), native=(7, 5), source="quantization/auto_awq.py; kernels/linear/mixed_precision/marlin.py"
    ),
    "gptq": Gate(minimum=(7, 5), native=(7, 5), source="quantization/auto_gptq.py (6.0), the wheels (7.5)"),
    "int4": Gate(minimum=(7, 5), native=(7, 5), source="compressed_tensors/schemes/compressed_tensors_wNa16.py"),
    "int8": Gate(minimum=(7, 5), native=(7, 5), source="compressed_tensors/schemes/compressed_tensors_w8a8_int8.py"),
    "fp8": Gate(
        minimum=(7, 5),
        native=(8, 9),
        source="compressed_tensors_w8a8_fp8.py (8.9); weights only: quantization/fp8.py, marlin_utils_fp8.py (7.5)",
    ),
    "mxfp4": Gate(minimum=(8, 0), native=(10, 0), source="quantization/mxfp4.py, bfloat16 only"),
    "nvfp4": Gate(minimum=(7, 5), native=(10, 0), source="quantization/utils/marlin_utils_fp4.py"),
}
_METHODS: Final[Mapping[str, str]] = {
    "awq": "awq",
    "gptq": "gptq",
    "auto-round": "int4",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "modelopt": "fp8",
    "modelopt_fp4": "nvfp4",
    "quark": "fp8",
}
"""``quant_method`` of a configuration to the kind of its weights (``quantization/__init__.py``)."""


def weights_kind(spec: ModelSpec) -> str | None:
    """Return the key in ``GATES`` of a model's weights, ``None`` where vLLM knows no such quantization."""
    method = quantization_method(spec)
    if method is None:
        return "none"
    if method != "compressed-tensors":
        return _METHODS.get(method)
    types = {tensor.type for tensor in spec.tensors}
    if any(tensor.name.endswith("weight_global_scale") for tensor in spec.tensors):
        return "nvfp4"
    for tensor_type, kind in ((TensorType.F8_E4M3, "fp8"), (TensorType.I32, "int4"), (TensorType.I8, "int8")):
        if tensor_type in types:
            return kind
    return "none"


def activation_bytes(spec: ModelSpec, compute_capability: Capability | None) -> int:
    """Return the size of an element of activations that the engine chooses on such a GPU: 4 where only float32 is left."""
    old = compute_capability is not None and compute_capability < BFLOAT16_MINIMUM
    return 4 if old and spec.architecture.startswith(FLOAT16_REFUSED) else 2


def activation_dtype(spec: ModelSpec, compute_capability: Capability | None) -> str:
    """Return the element type of activations that a plan orders: the stored one, where the GPU has it and vLLM serves it."""
    if activation_bytes(spec, compute_capability) > 2:  # noqa: PLR2004 - bytes of a half
        return "float32"
    old = compute_capability is not None and compute_capability < BFLOAT16_MINIMUM
    return "float16" if old or stored_dtype(spec) == "float16" else "bfloat16"


def activation_note(spec: ModelSpec, compute_capability: Capability | None) -> str | None:
    """Return what the engine changes of the element type by itself, if anything."""
    if compute_capability is None or compute_capability >= BFLOAT16_MINIMUM or stored_dtype(spec) != "bfloat16":
        return None
    taken = "float32" if activation_bytes(spec, compute_capability) > 2 else "float16"  # noqa: PLR2004 - bytes of a half
    return f"compute capability {format_capability(compute_capability)} has no bfloat16: the engine takes {taken}"


def format_capability(compute_capability: Capability) -> str:
    """Write a compute capability as vendors do: ``8.9``."""
    return f"{compute_capability[0]}.{compute_capability[1]}"


def check_support(
    spec: ModelSpec, compute_capability: Capability | None, tp: int, *, kv_cache_dtype: str = "auto"
) -> str | None:
    """Return why vLLM cannot load the weights on such GPUs divided over ``tp`` of them, or ``None`` where it can.

    A ``compute_capability`` of ``None`` (unknown) passes every gate.
    """
    return refuse_gpu(spec, compute_capability, kv_cache_dtype) or refuse_division(read_model(spec), tp)


def refuse_gpu(spec: ModelSpec, compute_capability: Capability | None, kv_cache_dtype: str) -> str | None:
    """Return why the weights cannot be loaded on one such GPU, whatever its memory."""
    if spec.format is not WeightsFormat.SAFETENSORS:
        return f"vLLM loads safetensors; {spec.format} needs a plugin"
    kind = weights_kind(spec)
    if kind is None:
        return f"vLLM 0.32 knows no quantization method `{quantization_method(spec)}`"
    if compute_capability is None:
        return None
    needed = max(ENGINE_MINIMUM, GATES[kind].minimum)
    have = format_capability(compute_capability)
    if compute_capability < needed:
        what = "such" if kind == "none" else kind
        return f"{what} weights need compute capability {format_capability(needed)} or more, this GPU has {have}"
    if kv_cache_dtype.startswith("fp8") and compute_capability < FP8_CACHE_MINIMUM:
        return (
            f"an fp8 cache needs compute capability {format_capability(FP8_CACHE_MINIMUM)} or more, this GPU has {have}"
        )
    return None


def proves_fp8_cache(model: VllmModel, compute_capability: Capability | None, version: str | None) -> bool:
    """Whether an fp8 cache is published to cost next to nothing; an unknown version is taken for today's."""
    plain = all(isinstance(layer, FullKv) and not layer.latent for layer in model.layers)
    release = re.match(r"(\d+)\.(\d+)", version or "")
    return (
        model.architecture in FP8_CACHE_PROVED
        and plain
        and {layer.n_per_head for layer in model.layers if isinstance(layer, FullKv)} <= FP8_CACHE_PROVED_PAIRS
        and compute_capability is not None
        and compute_capability >= FP8_CACHE_PROVED_FROM
        and (release is None or (int(release[1]), int(release[2])) >= FP8_CACHE_MENDED)
    )


def refuse_division(model: VllmModel, tp: int) -> str | None:
    """Return why a model cannot be divided over ``tp`` ranks, or at all."""
    if min(model.n_layer, model.n_embd, model.n_head, model.n_vocab) <= 0:
        return "config.json lacks layers, width, attention heads or vocabulary"
    return next(_indivisible(model, tp), None)


def _indivisible(model: VllmModel, tp: int) -> Iterator[str]:
    """Yield what cannot be divided over ``tp`` ranks (``config/model.py``, ``layers/linear.py``: ``divide``)."""
    if tp < 1:
        yield f"tensor parallel size {tp} is no count of GPUs"
        return
    counts = [("attention heads", model.n_head), ("vocabulary entries", pad(model.n_vocab, VOCAB_PADDING))]
    if model.quantization != "mxfp4":
        counts.append(("feed-forward columns", model.n_ff_expert if model.is_moe else model.n_ff))
    counts += [
        (f"linear attention {part} heads", n) for part, n in zip(("key", "value"), model.n_linear_heads, strict=True)
    ]
    for what, count in counts:
        if count % tp:
            yield f"{count} {what} cannot be divided over {tp} GPUs"
    if model.n_head_kv > 0 and model.n_head_kv % tp and tp % model.n_head_kv:
        yield f"{model.n_head_kv} KV heads can neither be divided over nor repeated on {tp} GPUs"
    group, width = model.quantization_group, model.n_ff_expert if model.is_moe else model.n_ff
    if tp > 1 and group and model.quantization != "mxfp4" and width % tp == 0 and width // tp % group:
        yield f"{width // tp} feed-forward rows per GPU are not whole quantization groups of {group}"
