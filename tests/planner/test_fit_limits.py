"""What the engine would not start with, or not do on the GPU, is planned around or refused."""

import pytest
from msgspec.structs import replace

from launcher.domain import CacheType, Plan, Refusal, RefusalCode, Request, Settings
from launcher.inventory import load_inventory
from launcher.planner.architecture import FullAttention
from launcher.planner.fit import decide
from launcher.planner.sizing import Candidate, prepare
from launcher.profiles import load_profile

_RTX4090 = load_inventory("rtx4090")
_GEMMA = load_profile("gemma2-9b")


def _with_heads(head_k: int, head_v: int, *, is_latent: bool = False) -> tuple[Candidate, ...]:
    """The same weights, with other attention."""
    return tuple(
        replace(
            candidate,
            architecture=replace(
                candidate.architecture,
                heads=tuple(
                    replace(head, head_k=head_k, head_v=head_v, n_head_kv=1) for head in candidate.architecture.heads
                ),
                layers=tuple(
                    FullAttention(n_embd_k=head_k, n_embd_v=0 if is_latent else head_v)
                    for _ in candidate.architecture.layers
                ),
                sliding=(False,) * candidate.architecture.n_layer,
            ),
        )
        for candidate in prepare(_GEMMA)
    )


def test_heads_without_a_kernel_are_planned_without_flash_attention() -> None:
    """Left on, it would run on the CPU; the plan says why it is off."""
    odd = _with_heads(100, 100)
    outcome = decide(Request(profile=_GEMMA), _RTX4090, odd)
    assert isinstance(outcome, Plan)
    assert outcome.flash_attn is False
    assert any("no GPU has flash attention" in note for note in outcome.notes)
    usual = decide(Request(profile=_GEMMA), _RTX4090)
    assert isinstance(usual, Plan)
    assert usual.flash_attn is True


def test_a_packed_v_cache_is_not_planned_without_flash_attention() -> None:
    """The engine refuses the two together: who fixed such a cache has flash attention, even if it is on the CPU."""
    odd = _with_heads(160, 160)
    for kind, flash_attn in ((CacheType.Q8_0, True), (CacheType.F16, False), (None, False)):
        outcome = decide(Request(profile=_GEMMA, settings=Settings(cache_type_v=kind)), _RTX4090, odd)
        assert isinstance(outcome, Plan)
        assert outcome.flash_attn is flash_attn


def test_one_cache_for_both_takes_the_type_that_was_asked_for() -> None:
    """Only the K type was fixed: the planner chooses the V type that goes with it."""
    request = Request(profile=_GEMMA, settings=Settings(cache_type_k=CacheType.Q8_0))
    outcome = decide(request, _RTX4090, _with_heads(576, 512, is_latent=True))
    assert isinstance(outcome, Plan)
    assert (outcome.cache_type_k, outcome.cache_type_v) == (CacheType.Q8_0, CacheType.Q8_0)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        (Settings(cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.F16), "which cannot be q8_0 and f16"),
        (Settings(n_parallel=8, n_batch=4), "cannot give each of 8 slots its token"),
    ],
)
def test_what_the_engine_would_not_start_with_is_refused(settings: Settings, fact: str) -> None:
    """The refusal names the contradiction."""
    outcome = decide(Request(profile=_GEMMA, settings=settings), _RTX4090, _with_heads(576, 512, is_latent=True))
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.UNSUPPORTED
    assert fact in outcome.derivation[0]


def test_a_context_beyond_the_training_is_lowered_where_it_is_a_wish_and_refused_where_it_is_an_order() -> None:
    """Gemma 2 was trained for 8192 tokens; by either name the user's own number is never changed."""
    wish = replace(_GEMMA, wishes=replace(_GEMMA.wishes, n_ctx_per_request=16384))
    lowered = decide(Request(profile=wish), _RTX4090)
    assert isinstance(lowered, Plan)
    assert lowered.n_ctx_per_request == 8192
    assert any("trained for no more" in fact for fact in lowered.given_up)
    for fixed in (Settings(n_ctx=16384, n_parallel=1), Settings(n_ctx_per_request=16384)):
        refused = decide(Request(profile=wish, settings=fixed), _RTX4090)
        assert isinstance(refused, Refusal)
