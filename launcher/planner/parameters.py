"""How many parameters each token passes through: all of a dense model's, the routed share of a mixture's experts.

It must not know what a quantization costs, nor any machine.
"""

from collections.abc import Mapping
from typing import Final

from launcher.domain import MetadataValue, ModelSpec, WeightsFormat
from launcher.tensor_types import TensorType

_N_EXPERT: Final[tuple[str, ...]] = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_N_EXPERT_USED: Final[tuple[str, ...]] = ("num_experts_per_tok", "top_k_experts", "moe_topk")
_DEFAULT_BITS: Final = 4
"""Of weights packed into integers, where a configuration does not say: what AWQ, GPTQ and MXFP4 releases have."""


def count_active(spec: ModelSpec) -> float:
    """Return about how many weights a token is multiplied with or looked up in; scales of quantized ones count too."""
    share = expert_share(spec)
    total = 0.0
    sizes: dict[tuple[int, int], int] = {}
    for tensor in spec.tensors:
        key = id(tensor.type), id(tensor.shape)  # one description's tensors share their shapes
        n = sizes.get(key)
        if n is None:
            n = sizes[key] = tensor.n_elements * _packed(tensor.type, spec.metadata)
        total += n * share if is_expert(tensor.name) else n
    return total


def is_expert(name: str) -> bool:
    """Tell whether a tensor belongs to routed experts, by the names of GGUF files and of Hugging Face's."""
    return "_exps." in name or ".experts." in name


def expert_share(spec: ModelSpec) -> float:
    """Return the part of the routed experts that each token uses; 1 where there are none or the file does not tell."""
    all_keys, used_keys = _N_EXPERT, _N_EXPERT_USED
    if spec.format is WeightsFormat.GGUF:
        all_keys, used_keys = (f"{spec.architecture}.expert_count",), (f"{spec.architecture}.expert_used_count",)
    n_expert, n_used = find_number(spec.metadata, all_keys), find_number(spec.metadata, used_keys)
    return min(1.0, n_used / n_expert) if n_expert and n_used else 1.0


def find_number(metadata: Mapping[str, MetadataValue], keys: tuple[str, ...]) -> int:
    """Return the first positive number under any of the keys, a text model's within a larger one counted; else 0."""
    for key in keys:
        for name in (key, f"text_config.{key}"):
            value = metadata.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0


def _packed(tensor_type: TensorType, metadata: Mapping[str, MetadataValue]) -> int:
    """Return the weights per element: quantized safetensors pack several into an integer."""
    width = {TensorType.I32: 32, TensorType.U8: 8}.get(tensor_type)
    if width is None:
        return 1
    bits = metadata.get("quantization_config.bits")
    return width // (bits if isinstance(bits, int) and 0 < bits <= width else _DEFAULT_BITS)
