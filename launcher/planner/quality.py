"""What a quantization costs in quality, and how small one may become before another model is the better choice.

Loss is the mean Kullback-Leibler divergence from the 16-bit model's next-token distribution, on Wikitext-2 for
Llama 3 8B (llama.cpp ``tools/perplexity/README.md``, revision f364eb6f, with importance matrix where published),
scaled to the size of the model at hand. It orders the quantizations of one model; that a smaller model knows less to
begin with it does not say.
"""

import re
from collections.abc import Mapping
from typing import Final

from launcher.domain import CacheType

DEFAULT_MAX_KL: Final = 0.15
"""Default floor: worse than this a smaller model at a better quantization is worth more. Of an 8B model that leaves what
has more than 3.3 bits per weight, of a 70B model what has about 3."""

REFERENCE_PARAMETERS: Final = 8.03e9
"""Of Llama 3 8B, which the table is of."""
SIZE_EXPONENT: Final = 0.3
"""Loss falls with this power of the parameters. Fitted to perplexities of one family at one quantization each, published
for Qwen2 of 1.5B, 7.6B and 72.7B (``Qwen/Qwen2-72B-Instruct-GGUF``, README.md): between 1.5B and 72.7B ``ln(PPL / PPL of
f16)`` falls with 0.30 at q4_k_m, 0.32 at q3_k_m and 0.35 at q2_k. Single steps lie between -0.2 and 0.7."""
MEASURED_PARAMETERS: Final = (1.5e9, 72.7e9)
"""Smallest and largest of these models: beyond them the loss is that of the nearest."""

KL_DIVERGENCE: Final[Mapping[str, float]] = {
    "f32": 0.0,
    "bf16": 0.0,
    "f16": 0.0006,
    "mxfp4": 0.0,  # the form that such models are released in
    "q8_0": 0.0014,
    "fp8": 0.003,  # assumed, as are the next six: near q8_0 and q4_k_m
    "int8": 0.003,
    "gptq-int8": 0.003,
    "awq-int4": 0.03,
    "gptq-int4": 0.035,
    "int4": 0.035,
    "nvfp4": 0.04,
    "q6_k": 0.0055,
    "q5_k_m": 0.0108,
    "q5_k_s": 0.0166,
    "q5_1": 0.0180,
    "q5_0": 0.0222,
    "q4_k_m": 0.0282,
    "q4_k_s": 0.0320,
    "iq4_nl": 0.0357,
    "iq4_xs": 0.0363,
    "q4_1": 0.0717,
    "q4_0": 0.0719,
    "q3_k_l": 0.0731,
    "q3_k_m": 0.0844,
    "iq3_m": 0.1025,
    "iq3_s": 0.1113,
    "iq3_xs": 0.1387,
    "iq3_xxs": 0.1836,
    "q3_k_s": 0.1998,
    "iq2_m": 0.3260,
    "q2_k": 0.3322,
    "iq2_xxs": 0.81,
    "iq1_m": 1.39,
}

_UNKNOWN: Final = 1.0
"""Of a quantization that nobody measured: not chosen by itself, but honoured when asked for."""


def size_factor(n_parameters: float | None) -> float:
    """Return how much of the 8B model's loss a model of ``n_parameters`` has: 1 where they are unknown.

    Of a mixture of experts the parameters that a token passes through count: the one published beside the dense models
    (Qwen2 57B-A14B) loses more than the dense 7B at 3 and 4 bits, so the others bring it nothing.
    """
    if not n_parameters:
        return 1.0
    smallest, largest = MEASURED_PARAMETERS
    return float((REFERENCE_PARAMETERS / min(largest, max(smallest, n_parameters))) ** SIZE_EXPONENT)


def kl_divergence(quantization: str, n_parameters: float | None = None) -> float:
    """Return the loss of a quantization by its written name, in nats; a pessimistic figure where none is known.

    ``n_parameters`` are those that a token passes through (``parameters.py``); without them it is the loss of an 8B model.
    A publisher's variant that spends more bits on some tensors (``ud-q4_k_xl``, ``q6_k_l``) counts as what it varies.
    """
    return _of_8b(quantization) * size_factor(n_parameters)


def _of_8b(quantization: str) -> float:
    name = quantization.lower()
    if name in KL_DIVERGENCE:
        return KL_DIVERGENCE[name]
    name = name.removeprefix("ud-")
    stem = re.sub(r"_(?:l|xl|xxl)$", "", name)
    varied = (name, f"{stem}_m", stem, f"{stem.removesuffix('_k')}_0")
    return next((KL_DIVERGENCE[known] for known in varied if known in KL_DIVERGENCE), _UNKNOWN)


def meets_floor(quantization: str, min_quantization: str | None, n_parameters: float | None = None) -> bool:
    """Tell whether a quantization loses no more than the floor allows; a floor that is named holds for any size."""
    if min_quantization is not None:
        return kl_divergence(quantization) <= kl_divergence(min_quantization)
    return kl_divergence(quantization, n_parameters) <= DEFAULT_MAX_KL


_HARMLESS_CACHES: Final[Mapping[str, Mapping[CacheType, float]]] = {"llama": {CacheType.Q8_0: 0.001}}
"""Cache types that are known to cost next to nothing, by architecture, with their loss.

Measured on Llama 3 8B (published); the same type ruins gpt-oss-20b, so no architecture is taken for another."""

_UNKNOWN_CACHE: Final = 0.1
"""Assumed: enough to rank such a cache below any better quantization of the weights."""


def cache_types_worth_trying(architecture: str) -> tuple[CacheType, ...]:
    """Return what may replace f16 without being asked for, best first."""
    return tuple(_HARMLESS_CACHES.get(architecture, {}))


def cache_kl(architecture: str, cache_type_k: CacheType, cache_type_v: CacheType) -> float:
    """Return the loss of a cache's element types; pessimistic where nobody measured them."""
    wide = {CacheType.F32, CacheType.F16, CacheType.BF16}
    known = _HARMLESS_CACHES.get(architecture, {})
    return max(0.0 if kind in wide else known.get(kind, _UNKNOWN_CACHE) for kind in (cache_type_k, cache_type_v))
