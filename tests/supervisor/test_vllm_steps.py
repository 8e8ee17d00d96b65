"""From what vLLM says of its memory to the plan that follows."""

from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from launcher.domain import Engine, Lesson, Plan, Profile, Refusal, Request, Settings, Wishes
from launcher.inventory import load_inventory
from launcher.planner.calibration import machine_id
from launcher.planner.fit import decide
from launcher.planner.search import Alternatives
from launcher.profiles import load_profile
from launcher.store import read_calibration
from launcher.supervisor import failures
from launcher.supervisor.faults import End, Fault, classify
from launcher.supervisor.setback import Step
from launcher.supervisor.stepping import MachineStepper
from launcher.units import GIB

_LOG: Final = Path(__file__).parents[1] / "transcripts" / "vllm" / "0.32.0-cpu-cache-below-one-request.log"
_MACHINE: Final = load_inventory("rtx4090")
_PROFILE: Final[Profile] = replace(load_profile("llama3.1-8b"), wishes=Wishes(n_parallel=1, n_ctx_per_request=32768))
_REQUEST: Final = Request(profile=_PROFILE, settings=Settings(engine=Engine.VLLM))


@pytest.fixture
def plan() -> Plan:
    """What is served first."""
    outcome = decide(_REQUEST, _MACHINE)
    assert isinstance(outcome, Plan)
    return outcome


def answer_after(found: Fault, plan: Plan, request: Request = _REQUEST) -> Step | Refusal:
    """What follows the engine's end."""
    failure = failures.of_end(found, "exit code 1", plan=plan, name="m", log=())
    assert failure.setback is not None
    stepper = MachineStepper(
        request, probe=lambda: _MACHINE, argv=("serve",), alternatives=Alternatives(), settle_s=0.0
    )
    return stepper.next_plan(failure.setback)


def step_after(found: Fault, plan: Plan) -> Step:
    """The step that follows."""
    step = answer_after(found, plan)
    assert isinstance(step, Step)
    return step


@pytest.mark.usefixtures("state_dir")
def test_a_context_that_was_ordered_is_refused_with_a_way_out(plan: Plan) -> None:
    """Neither it nor the ordered weights are changed: both are in the advice."""
    settings = replace(_REQUEST.settings, quantization=plan.quantization, n_ctx_per_request=32768)
    text = _LOG.read_text().replace("maximum model length is 896", "maximum model length is 25984")
    answer = answer_after(
        classify(End(lines=tuple(text.splitlines()), code=1)), plan, replace(_REQUEST, settings=settings)
    )
    assert isinstance(answer, Refusal)
    assert "left too little for its cache" in answer.fact
    assert any("--context" in item.argv or "--quant" in item.argv for item in answer.advice)


@pytest.mark.usefixtures("state_dir")
def test_the_length_that_it_names_is_planned_next(plan: Plan) -> None:
    """Nothing was refused by a memory: the cache is what is too small, and the engine says how long a request may be."""
    text = _LOG.read_text().replace("maximum model length is 896", "maximum model length is 25984")
    found = classify(End(lines=tuple(text.splitlines()), code=1))
    assert (found.n_ctx, found.memory) == (25984, None)
    step = step_after(found, plan)
    assert step.plan.n_ctx_per_request == 25984
    assert "context per request: 32768 -> 25984" in step.story


@pytest.mark.usefixtures("state_dir")
def test_what_the_cache_lacked_is_remembered(plan: Plan) -> None:
    """The next plan of this model in this build counts it in: it asks for no more than the engine could hold."""
    text = _LOG.read_text().replace("maximum model length is 896", "maximum model length is 25984")
    step_after(classify(End(lines=tuple(text.splitlines()), code=1)), plan)
    known, _ = read_calibration(machine_id(_MACHINE))
    assert known is not None
    assert [(item.memory, item.lesson) for item in known.corrections] == [("gpu0", Lesson.MEASURED)]
    anew = decide(_REQUEST, _MACHINE, calibration=known)
    assert isinstance(anew, Plan)
    assert anew.vllm is not None
    assert anew.vllm.learnt_bytes > 0
    same = replace(_REQUEST, settings=replace(_REQUEST.settings, quantization=plan.quantization))
    fixed = replace(same, settings=replace(same.settings, n_ctx_per_request=32768))
    assert isinstance(decide(fixed, _MACHINE), Plan)
    assert isinstance(decide(fixed, _MACHINE, calibration=known), Refusal)


@pytest.mark.usefixtures("state_dir")
def test_a_cache_of_an_ordered_size_owes_nothing_to_others(plan: Plan) -> None:
    """On a CPU the cache has the size that was ordered: that others took memory meanwhile is no reason to try again."""
    assert plan.vllm is not None
    free = plan.budgets[0].free_bytes
    ordered = replace(
        plan,
        vllm=replace(plan.vllm, kv_cache_memory_bytes=4 * GIB),
        budgets=(replace(plan.budgets[0], free_bytes=free + 8 * GIB), *plan.budgets[1:]),
    )
    text = _LOG.read_text().replace("maximum model length is 896", "maximum model length is 25984")
    found = classify(End(lines=tuple(text.splitlines()), code=1))
    assert step_after(found, plan=ordered).is_retry is False
    assert step_after(found, plan=replace(ordered, vllm=plan.vllm)).is_retry


@pytest.mark.usefixtures("state_dir")
def test_a_gpu_that_ran_out_is_given_less(plan: Plan) -> None:
    """PyTorch's words name the GPU by its number among those that vLLM sees."""
    line = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 24 GiB"
    )
    found = classify(End(lines=(line,), code=1))
    step = step_after(found, plan)
    before, after = plan.footprint.devices[0], step.plan.footprint.devices[0]
    assert after.total_bytes <= before.total_bytes - 1 * GIB
    assert step.plan.memory_utilization is not None
    assert plan.memory_utilization is not None
    assert step.plan.memory_utilization < plan.memory_utilization
    known, _ = read_calibration(machine_id(_MACHINE))
    anew = decide(_REQUEST, _MACHINE, calibration=known)
    assert isinstance(anew, Plan)
    assert anew.footprint.devices[0].total_bytes <= before.total_bytes - 1 * GIB
    assert any("ran out here" in basis.text for basis in anew.basis)
