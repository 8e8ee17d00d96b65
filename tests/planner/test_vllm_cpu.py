"""What is planned for a vLLM that is built for CPUs."""

from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from launcher.domain import Engine, EngineInstall, Host, Inventory, Plan, Refusal, RefusalCode, Request, Settings
from launcher.metadata.load import read_spec
from launcher.planner.fit import decide
from launcher.profiles.local import profile_for_weights
from launcher.units import GIB, MIB
from tests.fakes.tiny_model import write_tiny_model

_VLLM: Final = EngineInstall(engine=Engine.VLLM, argv=("vllm", "serve"), version="0.32.0+cpu")
_MACHINE: Final = Inventory(
    name="here", host=Host(total_bytes=16 * GIB, available_bytes=12 * GIB, n_cpu=4), engines=(_VLLM,)
)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A request for a tiny model in a folder."""
    folder = write_tiny_model(tmp_path_factory.mktemp("weights") / "tiny")
    return Request(profile=profile_for_weights(folder, read_spec(folder)))


def plan_of(request: Request, machine: Inventory = _MACHINE) -> Plan:
    """The plan that is expected."""
    outcome = decide(request, machine)
    assert isinstance(outcome, Plan)
    return outcome


def test_the_cache_has_a_block_for_each_request_and_one_more(request_: Request) -> None:
    """2,048 tokens of 512 bytes in blocks of 128: 17 blocks, as the engine logged (2,176 tokens)."""
    plan = plan_of(request_)
    assert plan.vllm is not None
    assert plan.vllm.kv_cache_memory_bytes == 2176 * 512 == plan.footprint.host.kv_cache_bytes
    assert (plan.engine, plan.n_ctx_per_request, plan.footprint.devices) == (Engine.VLLM, 2048, ())
    assert (plan.vllm.dtype, plan.cuda_graphs, plan.memory_utilization) == ("bfloat16", False, None)
    several = plan_of(replace(request_, settings=Settings(n_parallel=3, n_ctx_per_request=1000)))
    assert several.vllm is not None
    assert several.vllm.kv_cache_memory_bytes == (3 * 8 + 1) * 128 * 512


def test_its_margin_stays_free(request_: Request) -> None:
    """What it takes is a part of the host's budget, page cache of its files aside."""
    plan = plan_of(request_)
    assert 2 * GIB < plan.footprint.host.total_bytes <= plan.budgets[-1].budget_bytes
    assert 0 < plan.footprint.host.weights_bytes < MIB


def test_a_host_with_too_little_memory_refuses(request_: Request) -> None:
    """Its processes alone take 2 GiB; the refusal names both figures."""
    host = replace(_MACHINE.host, available_bytes=3 * GIB)
    outcome = decide(request_, replace(_MACHINE, host=host))
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.EXCEEDS_HOST_MEMORY
    assert "host memory" in outcome.derivation[0]


def test_a_gpu_build_needs_a_gpu(request_: Request) -> None:
    """A vLLM whose version names no CPU does not compute on one."""
    outcome = decide(request_, replace(_MACHINE, engines=(replace(_VLLM, version="0.32.0"),)))
    assert isinstance(outcome, Refusal)
    assert "no GPU" in outcome.derivation[0]


def test_other_weights_than_plain_ones_are_not_planned(request_: Request) -> None:
    """What a CPU's kernels make of quantized weights is not modelled."""
    artifact = request_.profile.artifacts[0]
    assert artifact.spec is not None
    quantized = replace(artifact.spec, metadata={**artifact.spec.metadata, "quantization_config.quant_method": "awq"})
    profile = replace(request_.profile, artifacts=(replace(artifact, spec=quantized),))
    outcome = decide(replace(request_, profile=profile), _MACHINE)
    assert isinstance(outcome, Refusal)
    assert (outcome.code, "unquantized" in outcome.derivation[0]) == (RefusalCode.UNSUPPORTED, True)


def test_it_is_chosen_unasked_only_where_no_other_engine_is_there(request_: Request) -> None:
    """A profile of both kinds: llama-server where it is, vLLM on the CPU where that is all there is."""
    both = replace(request_.profile, engines=(Engine.LLAMA_SERVER, Engine.VLLM))
    assert plan_of(replace(request_, profile=both)).engine is Engine.VLLM
    native = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",))
    outcome = decide(replace(request_, profile=both), replace(_MACHINE, engines=(native, _VLLM)))
    assert isinstance(outcome, Refusal)


@pytest.mark.parametrize("bad", [{"holes": ("a fault",)}, {"flags": frozenset({"--model"})}])
def test_a_version_that_may_not_be_started_is_refused(request_: Request, bad: dict[str, object]) -> None:
    """By name too: the reason is told."""
    install = replace(_VLLM, **bad)
    outcome = decide(request_, replace(_MACHINE, engines=(install,)))
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.ENGINE_TOO_OLD
    assert "a fault" in outcome.derivation[0] or "--max-model-len" in outcome.derivation[0]


def test_a_tiny_model_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The helper of these tests writes what the reader reads."""
    spec = read_spec(write_tiny_model(tmp_path / "m", n_layer=3))
    assert spec.metadata["num_hidden_layers"] == 3
