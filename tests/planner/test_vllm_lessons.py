"""What runs of vLLM teach, and what the next plan makes of it."""

from typing import Final

import pytest
from msgspec.structs import replace

from launcher.domain import (
    HOST_MEMORY,
    Calibration,
    Correction,
    Engine,
    EngineInstall,
    Inventory,
    Lesson,
    Plan,
    Profile,
    Refusal,
    Request,
    Settings,
    VllmTerms,
    Wishes,
)
from launcher.inventory import load_inventory
from launcher.planner.corrections import remember
from launcher.planner.fit import decide
from launcher.planner.forms import prepare_forms
from launcher.planner.vllm_lessons import lacking_bytes, learn_vllm
from launcher.profiles import load_profile
from launcher.units import GIB, MIB

_PROFILE: Final[Profile] = replace(load_profile("llama3.1-8b"), wishes=Wishes(n_ctx_per_request=16384))
_REQUEST: Final = Request(profile=_PROFILE, settings=Settings(engine=Engine.VLLM, quantization="bf16"))
_FORMS: Final = prepare_forms(_PROFILE)
_FORM: Final = next(form for form in _FORMS if form.artifact.quantization == "bf16")
_INSTALL: Final = EngineInstall(engine=Engine.VLLM, argv=("vllm", "serve"), version="0.32.0", build="0.32.0")
_MACHINE: Final[Inventory] = replace(load_inventory("rtx4090"), engines=(_INSTALL,))


def _plan(known: Calibration | None = None, machine: Inventory = _MACHINE) -> Plan:
    outcome = decide(_REQUEST, machine, calibration=known, forms=_FORMS)
    assert isinstance(outcome, Plan)
    return outcome


def _terms(plan: Plan) -> VllmTerms:
    assert plan.vllm is not None
    return plan.vllm


def _lesson(plan: Plan, n_bytes: int, lesson: Lesson = Lesson.MEASURED, memory: str = "gpu0") -> Correction:
    return learn_vllm(plan, _FORM, memory=memory, unaccounted_bytes=n_bytes, lesson=lesson, at=1.0)


def _known(*corrections: Correction) -> Calibration:
    return Calibration(machine="m", corrections=corrections)


def test_a_smaller_cache_than_planned_is_counted_in() -> None:
    """Told of 10 % fewer tokens, the next plan predicts the very number, at the same share of the GPU."""
    plan = _plan()
    told = int(_terms(plan).kv_cache_tokens * 0.9)
    (n_bytes,) = lacking_bytes(plan, told).values()
    anew = _plan(_known(_lesson(plan, n_bytes)))
    assert anew.memory_utilization == plan.memory_utilization
    assert _terms(anew).kv_cache_tokens == pytest.approx(told, abs=32)
    assert anew.footprint.devices[0].total_bytes == pytest.approx(plan.footprint.devices[0].total_bytes, abs=4 * MIB)


def test_what_is_lacking_beyond_what_was_counted_in_adds_up() -> None:
    """Else the larger of two parts would be kept for the whole; the same told again teaches the same."""
    plan = _plan()
    first = lacking_bytes(plan, _terms(plan).kv_cache_tokens - 2000)["gpu0"]
    assert lacking_bytes(plan, _terms(plan).kv_cache_tokens - 2000)["gpu0"] == first
    anew = _plan(_known(_lesson(plan, first)))
    second = lacking_bytes(anew, _terms(anew).kv_cache_tokens - 1000)["gpu0"]
    assert second == pytest.approx(first * 1.5, rel=0.01)
    kept = remember((_lesson(plan, first),), _lesson(anew, second))
    assert [item.unaccounted_bytes for item in kept] == [second]


def test_a_cache_as_large_as_planned_teaches_nothing() -> None:
    """Neither does a larger one, nor one that was ordered in bytes."""
    plan = _plan()
    assert lacking_bytes(plan, _terms(plan).kv_cache_tokens) == {}
    assert lacking_bytes(plan, _terms(plan).kv_cache_tokens + 1) == {}
    assert lacking_bytes(replace(plan, vllm=replace(_terms(plan), kv_cache_memory_bytes=GIB)), 1) == {}
    assert lacking_bytes(replace(plan, vllm=None), 1) == {}


def test_it_counts_for_this_build_model_and_number_of_gpus_alone() -> None:
    """Other libraries, other shapes, the buffers of several GPUs: each is learnt by itself."""
    plan = _plan()
    item = _lesson(plan, GIB)
    assert _terms(_plan(_known(item))).learnt_bytes == GIB
    for other in (
        replace(item, build="0.33.0"),
        replace(item, model="LlamaForCausalLM-80x8192"),
        replace(item, configuration="vllm, several GPUs"),
        replace(item, memory="gpu1"),
    ):
        assert _terms(_plan(_known(other))).learnt_bytes == 0


def test_after_running_out_less_of_the_gpu_is_taken() -> None:
    """What has to stay free stays free beside the margin; the context, which the engine does not count, is part of it."""
    plan = _plan()
    known = _known(_lesson(plan, 3 * GIB, Lesson.OUT_OF_MEMORY))
    anew, budget = _plan(known), plan.budgets[0]
    assert anew.footprint.devices[0].total_bytes <= budget.free_bytes - budget.margin_bytes - 3 * GIB
    assert _terms(anew).learnt_bytes == 0


def test_running_out_under_a_limit_that_is_higher_now_counts_no_longer() -> None:
    """The limit was the cause."""
    plan = _plan()
    total = _MACHINE.devices[0].total_bytes
    item = _lesson(plan, 3 * GIB, Lesson.OUT_OF_MEMORY)
    under = replace(item, limit_bytes=total - 2 * GIB, missing_bytes=GIB)
    assert _plan(_known(under)).memory_utilization == plan.memory_utilization
    assert _plan(_known(replace(under, missing_bytes=3 * GIB))).memory_utilization != plan.memory_utilization


def test_the_hosts_memory_is_learnt_too() -> None:
    """Where its processes ran out of it, they are not planned into as little again."""
    plan = _plan()
    free = _MACHINE.host.free_bytes
    known = _known(_lesson(plan, free - 2 * GIB, Lesson.OUT_OF_MEMORY, HOST_MEMORY))
    assert isinstance(decide(_REQUEST, _MACHINE, calibration=known, forms=_FORMS), Refusal)
