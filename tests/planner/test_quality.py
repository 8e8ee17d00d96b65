"""What a quantization costs, at which size of model."""

import math
from itertools import pairwise

import pytest

from launcher.planner.parameters import count_active
from launcher.planner.quality import (
    KL_DIVERGENCE,
    MEASURED_PARAMETERS,
    SIZE_EXPONENT,
    kl_divergence,
    meets_floor,
    size_factor,
)
from launcher.profiles import load_profile

_QWEN2 = {
    1.54e9: {"f16": 10.43, "q4_k_m": 10.61, "q3_k_m": 11.08, "q2_k": 13.04},
    72.7e9: {"f16": 5.58, "q4_k_m": 5.61, "q3_k_m": 5.68, "q2_k": 5.91},
}
"""Perplexity on Wikitext by parameters and quantization: README.md of ``Qwen/Qwen2-72B-Instruct-GGUF``."""


@pytest.mark.parametrize("quantization", ["q4_k_m", "q3_k_m", "q2_k"])
def test_the_exponent_is_what_one_family_shows(quantization: str) -> None:
    """Between its smallest and largest dense model the loss falls as fast as stated, within a fifth."""
    small, large = ((n, math.log(ppl[quantization] / ppl["f16"])) for n, ppl in _QWEN2.items())
    exponent = math.log(small[1] / large[1]) / math.log(large[0] / small[0])
    assert exponent == pytest.approx(SIZE_EXPONENT, rel=0.2)


def test_larger_models_lose_less() -> None:
    """Strictly within what was measured; beyond it the loss stays that of the nearest."""
    low, high = MEASURED_PARAMETERS
    losses = [kl_divergence("q4_k_m", n) for n in (low, 8.03e9, 27e9, high)]
    assert all(smaller > larger for smaller, larger in pairwise(losses))
    assert kl_divergence("q4_k_m", 8.03e9) == KL_DIVERGENCE["q4_k_m"] == kl_divergence("q4_k_m")
    assert size_factor(405e9) == size_factor(high)
    assert size_factor(0.27e9) == size_factor(low)


@pytest.mark.parametrize("n_parameters", [None, 1e9, 27e9, 405e9])
def test_size_never_reorders_the_quantizations_of_a_model(n_parameters: float | None) -> None:
    """What is better at one size is better at every other."""
    losses = [kl_divergence(name, n_parameters) for name in sorted(KL_DIVERGENCE, key=kl_divergence)]
    assert losses == sorted(losses)


def test_the_default_floor_keeps_about_3_bits() -> None:
    """A larger model may go down to 3.1 bits per weight (IQ3_XXS), an 8B model not; below 3 bits none may."""
    assert meets_floor("q3_k_m", None, 8.03e9)
    assert not meets_floor("iq3_xxs", None, 8.03e9)
    assert meets_floor("iq3_xxs", None, 70e9)
    assert not any(meets_floor(name, None, 405e9) for name in ("iq2_m", "q2_k", "iq2_xxs", "iq1_m", "unheard_of"))


@pytest.mark.parametrize("n_parameters", [1e9, 70e9])
def test_a_named_floor_holds_at_any_size(n_parameters: float) -> None:
    """``--min-quant q4_k_m`` lets exactly that and what is better through."""
    assert meets_floor("q4_k_m", "q4_k_m", n_parameters)
    assert not meets_floor("q4_k_s", "q4_k_m", n_parameters)


@pytest.mark.parametrize(
    ("profile", "active"),
    [("gemma2-27b", 27.2e9), ("llama3.1-70b", 70.6e9), ("qwen3-30b-a3b", 3.35e9), ("gpt-oss-120b", 5.7e9)],
)
def test_active_parameters_are_the_published_ones(profile: str, active: float) -> None:
    """Every form of a model says the same, whether packed or not, and of experts only those in use count."""
    for artifact in load_profile(profile).artifacts:
        if artifact.spec is not None:
            assert count_active(artifact.spec) == pytest.approx(active, rel=0.06), artifact.quantization
