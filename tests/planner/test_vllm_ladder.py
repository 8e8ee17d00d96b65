"""Stepping down with vLLM: each rung by itself, and that the ladder ends."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import (
    HOST_MEMORY,
    Engine,
    EngineDevice,
    EngineInstall,
    Fallback,
    Inventory,
    Limits,
    Outcome,
    Plan,
    Profile,
    Refusal,
    Request,
    Rung,
    Settings,
    Wishes,
)
from launcher.inventory import load_inventory
from launcher.metadata.load import read_spec
from launcher.planner.corrections import planned_bytes
from launcher.planner.fit import decide
from launcher.planner.forms import prepare_forms
from launcher.planner.vllm_ladder import Shortness, step_down_vllm
from launcher.profiles import load_profile
from launcher.profiles.local import profile_for_weights
from launcher.units import GIB, MIB
from tests.fakes.tiny_model import write_tiny_model

_LLAMA = load_profile("llama3.1-8b")
_FORMS = prepare_forms(_LLAMA)
_RTX4090 = load_inventory("rtx4090")
_GPU = Shortness(memory="gpu0")


def _request(fixed: Settings | None = None, **profile: object) -> Request:
    changed: Profile = replace(_LLAMA, **{"engines": (Engine.VLLM,), "wishes": Wishes(n_parallel=4), **profile})
    return Request(profile=changed, settings=fixed or Settings())


def _plan(request: Request, machine: Inventory = _RTX4090) -> Plan:
    outcome = decide(request, machine, forms=_FORMS)
    assert isinstance(outcome, Plan)
    return outcome


def _step(plan: Plan, request: Request, short: Shortness, machine: Inventory = _RTX4090) -> Outcome:
    return step_down_vllm(plan, short, request=request, inventory=machine, forms=_FORMS)


def _down(plan: Plan, request: Request, short: Shortness, machine: Inventory = _RTX4090) -> Plan:
    outcome = _step(plan, request, short, machine)
    assert isinstance(outcome, Plan)
    return outcome


def test_a_smaller_share_of_the_gpu_comes_first() -> None:
    """What the cache can spare costs nothing that was asked for: a lower utilization, the same requests."""
    request = _request()
    plan = _plan(request)
    smaller = _down(plan, request, replace(_GPU, failed_bytes=500 * MIB))
    assert smaller.memory_utilization is not None
    assert plan.memory_utilization is not None
    assert smaller.memory_utilization < plan.memory_utilization
    assert planned_bytes(smaller, "gpu0") <= planned_bytes(plan, "gpu0") - 500 * MIB
    assert (smaller.n_ctx_per_request, smaller.n_parallel, smaller.quantization) == (8192, 4, plan.quantization)


RUNGS: list[tuple[Rung, Callable[[Plan], bool]]] = [
    (Rung.PARALLEL, lambda plan: plan.n_parallel < 54 and plan.n_ctx_per_request == 8192),
    (Rung.CONTEXT, lambda plan: plan.n_parallel == 54 and plan.n_ctx_per_request < 8192),
    (Rung.QUANTIZATION, lambda plan: plan.quantization != "bf16"),
]


@pytest.mark.parametrize(("rung", "holds"), RUNGS)
def test_each_rung_moves_its_own(rung: Rung, holds: Callable[[Plan], bool]) -> None:
    """On a ladder of one rung nothing else is given up: each finds room where the share alone does not."""
    request = _request(wishes=Wishes(n_parallel=54, n_ctx_per_request=8192), fallback=Fallback(ladder=(rung,)))
    machine = load_inventory("a100-80g")
    plan = _plan(replace(request, settings=Settings(quantization="bf16")), machine)
    smaller = _down(plan, request, replace(_GPU, failed_bytes=8 * GIB), machine)
    assert holds(smaller)
    assert planned_bytes(smaller, "gpu0") < planned_bytes(plan, "gpu0")


def test_the_cache_is_halved_where_that_is_published_to_be_harmless() -> None:
    """On an H100 in 8 bits, before any request is given up; as many tokens at twice the length that the engine named."""
    request = _request(
        wishes=Wishes(n_parallel=1, n_ctx_per_request=131072),
        fallback=Fallback(ladder=(Rung.CACHE_TYPE, Rung.PARALLEL)),
    )
    request = replace(request, settings=Settings(quantization="bf16"))
    machine = load_inventory("h100")
    plan = _plan(request, machine)
    short = Shortness(memory="gpu0", is_cache=True, n_ctx=100_000)
    smaller = _down(plan, request, short, machine)
    assert smaller.vllm is not None
    assert smaller.vllm.kv_cache_dtype == "fp8"
    assert (smaller.n_ctx_per_request, smaller.n_parallel) == (131072, 1)
    assert any("8 bits" in fact for fact in smaller.given_up)
    again = _step(smaller, request, replace(short, n_ctx=120_000), machine)
    assert isinstance(again, Refusal)  # it is not halved twice
    assert isinstance(
        _step(plan, request, replace(short, n_ctx=60_000), machine), Refusal
    )  # twice as many do not suffice


@pytest.mark.parametrize(("machine", "version"), [("rtx4090", "0.32.0"), ("a100-80g", "0.32.0"), ("h100", "0.20.1")])
def test_an_unproved_cache_is_left_alone(machine: str, version: str) -> None:
    """On GPUs and in releases of which nobody published that."""
    request = _request(fallback=Fallback(ladder=(Rung.CACHE_TYPE,)))
    install = EngineInstall(engine=Engine.VLLM, argv=("vllm", "serve"), version=version)
    there = replace(load_inventory(machine), engines=(install,))
    plan = _plan(request, there)
    assert isinstance(_step(plan, request, Shortness(memory="gpu0", is_cache=True), there), Refusal)


def test_more_gpus_take_part_where_there_are_some() -> None:
    """Tensor parallel over two: each holds half of every layer."""
    request = _request(Settings(quantization="bf16"), fallback=Fallback(ladder=(Rung.OFFLOAD,)))
    machine = load_inventory("2xrtx3090")
    first = replace(machine, devices=machine.devices[:1])
    plan = _plan(request, first)
    assert len(plan.footprint.devices) == 1
    smaller = _down(plan, request, replace(_GPU, failed_bytes=6 * GIB), machine)
    assert len(smaller.footprint.devices) == 2
    assert smaller.tensor_parallel == 2


def test_the_length_that_the_engine_named_is_taken() -> None:
    """A cache too small for one request: the longest that it could hold, before any halving."""
    request = _request(wishes=Wishes(n_parallel=1, n_ctx_per_request=32768), fallback=Fallback(ladder=(Rung.CONTEXT,)))
    plan = _plan(request)
    smaller = _down(plan, request, Shortness(memory="gpu0", is_cache=True, n_ctx=25984))
    assert smaller.n_ctx_per_request == 25984
    assert "the cache did not hold a request" in smaller.given_up[0]
    unnamed = _down(plan, request, Shortness(memory="gpu0", is_cache=True))
    assert unnamed.n_ctx_per_request == 16384


def test_what_the_user_fixed_is_not_moved() -> None:
    """With all of it ordered there is nothing to give up: the ladder's foot, with the reason."""
    fixed = Settings(n_parallel=4, n_ctx_per_request=8192, quantization="bf16")
    request = _request(fixed)
    plan = _plan(request)
    outcome = _step(plan, request, Shortness(memory="gpu0", is_cache=True, n_ctx=100))
    assert isinstance(outcome, Refusal)
    assert "left too little for its cache" in outcome.fact


def test_another_engine_is_the_last_resort() -> None:
    """Where no form of vLLM's fits any more, llama-server's plan of the same profile does, unless vLLM was ordered."""
    seen = EngineDevice(name="CUDA0", description="NVIDIA GeForce RTX 4090", device="gpu0")
    native = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",), devices=(seen,))
    vllm = EngineInstall(engine=Engine.VLLM, argv=("vllm", "serve"), version="0.32.0")
    request = replace(_request(), profile=_LLAMA)
    machine = replace(_RTX4090, engines=(native, vllm))
    plan = _plan(replace(request, settings=Settings(engine=Engine.VLLM)), machine)
    gpu = replace(machine.devices[0], free_bytes=4 * GIB)
    full = replace(machine, devices=(gpu,))
    assert _down(plan, request, _GPU, full).engine is Engine.LLAMA_SERVER
    ordered = replace(request, settings=Settings(engine=Engine.VLLM))
    assert isinstance(_step(plan, ordered, _GPU, full), Refusal)


def test_on_a_cpu_the_hosts_memory_is_relieved(tmp_path_factory: pytest.TempPathFactory) -> None:
    """There the cache has the size of the requests: fewer of them are what makes it smaller."""
    folder = write_tiny_model(tmp_path_factory.mktemp("weights") / "tiny")
    spec = read_spec(folder)
    profile = replace(profile_for_weights(folder, spec), wishes=Wishes(n_parallel=64, n_ctx_per_request=2048))
    install = EngineInstall(engine=Engine.VLLM, argv=("vllm", "serve"), version="0.32.0+cpu")
    machine = replace(_RTX4090, devices=(), engines=(install,))
    request = Request(profile=profile)
    plan = decide(request, machine)
    assert isinstance(plan, Plan)
    short = Shortness(memory=HOST_MEMORY, failed_bytes=16 * MIB)
    smaller = step_down_vllm(plan, short, request=request, inventory=machine)
    assert isinstance(smaller, Plan)
    assert smaller.n_parallel < 64
    assert planned_bytes(smaller, HOST_MEMORY) <= planned_bytes(plan, HOST_MEMORY) - 16 * MIB


def test_a_floor_is_kept() -> None:
    """The profile's least context ends the ladder above it."""
    request = _request(
        wishes=Wishes(n_parallel=1, n_ctx_per_request=16384),
        limits=Limits(min_n_ctx_per_request=12000),
        fallback=Fallback(ladder=(Rung.CONTEXT,)),
    )
    plan = _plan(request)
    short = Shortness(memory="gpu0", is_cache=True)
    lower = _down(plan, request, short)
    assert lower.n_ctx_per_request == 12000
    assert isinstance(_step(lower, request, short), Refusal)


@settings(max_examples=25)
@given(
    is_cache=st.booleans(),
    failed_mib=st.sampled_from([None, 100, 5000]),
    n_parallel=st.sampled_from([1, 4, 16]),
    free_gib=st.integers(8, 23),
)
def test_the_ladder_ends(*, is_cache: bool, failed_mib: int | None, n_parallel: int, free_gib: int) -> None:
    """Step after step each plan takes less of what did not suffice, and after some dozens there is a refusal."""
    request = _request(wishes=Wishes(n_parallel=n_parallel))
    gpu = replace(_RTX4090.devices[0], free_bytes=free_gib * GIB)
    machine = replace(_RTX4090, devices=(gpu,))
    outcome = decide(request, machine, forms=_FORMS)
    short = Shortness(memory="gpu0", is_cache=is_cache, failed_bytes=failed_mib and failed_mib * MIB)
    for _ in range(200):
        if isinstance(outcome, Refusal):
            return
        before = outcome
        outcome = _step(before, request, short, machine)
        if isinstance(outcome, Plan) and not is_cache:
            assert planned_bytes(outcome, "gpu0") < planned_bytes(before, "gpu0")
    pytest.fail("no end within 200 steps")
