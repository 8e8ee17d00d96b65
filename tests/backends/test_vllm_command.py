"""The whole command line and environment of vLLM for a known plan."""

from typing import Final

import pytest
from msgspec.structs import replace

from launcher.backends import build_command, with_key
from launcher.domain import Address, Command, Engine, EngineInstall, VllmTerms
from launcher.errors import EngineMissingError, EngineTooOldError
from tests.fakes.plans import plan_for

_TERMS: Final = VllmTerms(dtype="bfloat16", kv_cache_tokens=0, visible_devices=("1", "3"))
_CPU: Final = VllmTerms(dtype="bfloat16", kv_cache_tokens=0, kv_cache_memory_bytes=1114112)
_INSTALL: Final = EngineInstall(engine=Engine.VLLM, argv=("/opt/bin/vllm", "serve"), version="0.32.0")
_PLAN: Final = replace(
    plan_for(),
    engine=Engine.VLLM,
    install=_INSTALL,
    n_parallel=4,
    n_ctx_per_request=8192,
    vllm=_TERMS,
    tensor_parallel=2,
    memory_utilization=0.874,
)


def _command(terms: VllmTerms | None = _TERMS, install: EngineInstall = _INSTALL) -> Command:
    plan = _PLAN if terms is not _CPU else replace(_PLAN, memory_utilization=None, cuda_graphs=False)
    return build_command(
        replace(plan, vllm=terms, install=install),
        weights_path="/models/m",
        address=Address(host="127.0.0.1", port=8080),
        alias="m",
        cache_path="/cache",
    )


def test_every_planned_value_is_passed() -> None:
    """Nothing that the footprint depends on is left to the engine's default, and only safetensors is loaded."""
    assert _command().argv == (
        *("/opt/bin/vllm", "serve", "/models/m", "--host", "127.0.0.1", "--port", "8080"),
        *("--served-model-name", "m", "--load-format", "safetensors"),
        *("--max-model-len", "8192", "--max-num-seqs", "4", "--max-num-batched-tokens", "2048"),
        *("--dtype", "bfloat16", "--kv-cache-dtype", "auto"),
        *("--tensor-parallel-size", "2", "--pipeline-parallel-size", "1", "--cpu-offload-gb", "0"),
        *("--no-enforce-eager", "--gpu-memory-utilization", "0.874"),
    )


def test_on_a_cpu_the_cache_has_a_size() -> None:
    """There a share of the memory means nothing that was planned."""
    argv = _command(_CPU).argv
    assert argv[argv.index("--kv-cache-memory-bytes") + 1] == "1114112"
    assert "--enforce-eager" in argv
    assert "--gpu-memory-utilization" not in argv


def test_the_servers_own_module_takes_the_model_as_an_option() -> None:
    """``vllm serve`` takes it without."""
    argv = _command(install=replace(_INSTALL, argv=("python", "-m", "vllm.entrypoints.openai.api_server"))).argv
    assert argv[3:5] == ("--model", "/models/m")


def test_code_of_a_models_folder_is_never_allowed() -> None:
    """There is no plan under which the option is given."""
    assert not any("trust" in word for terms in (_TERMS, _CPU) for word in _command(terms).argv)


def test_its_environment_keeps_it_on_this_machine() -> None:
    """Loopback between its processes, nothing looked up or reported, its cache where ours is, the planned GPUs."""
    env = _command().env
    assert env["VLLM_HOST_IP"] == "127.0.0.1"
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"]) == ("1", "1", "1")
    assert (env["VLLM_CACHE_ROOT"], env["CUDA_VISIBLE_DEVICES"]) == ("/cache", "1,3")
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["SPT_NOENV"] == "1"
    on_cpu = _command(_CPU).env
    assert on_cpu["OMP_NUM_THREADS"] == str(_PLAN.n_threads)
    assert "CUDA_VISIBLE_DEVICES" not in on_cpu


def test_its_key_is_in_its_environment_alone() -> None:
    """Everybody on the machine can read arguments."""
    command = with_key(_command(), Engine.VLLM, "k" * 40)
    assert command.env["VLLM_API_KEY"] == "k" * 40
    assert command.api_key_env == "VLLM_API_KEY"
    assert not any("k" * 40 in word for word in command.argv)


def test_a_build_that_lacks_an_option_is_refused() -> None:
    """An unknown option ends vLLM after ten seconds of imports; it is said before. What nothing depends on is left out."""
    known = frozenset(word.replace("--no-", "--") for word in _command().argv if word.startswith("--"))
    assert _command(install=replace(_INSTALL, flags=known)).argv == _command().argv
    with_log = replace(_INSTALL, flags=known | {"--disable-uvicorn-access-log"})
    assert "--disable-uvicorn-access-log" in _command(install=with_log).argv
    for option in known:
        with pytest.raises(EngineTooOldError, match=option.removeprefix("--")):
            _command(install=replace(_INSTALL, flags=known - {option}))


def test_a_version_with_a_published_fault_is_not_started() -> None:
    """Also where a plan was made by other means."""
    with pytest.raises(EngineTooOldError, match="a fault"):
        _command(install=replace(_INSTALL, holes=("a fault",)))


def test_a_plan_for_another_engine_has_no_command() -> None:
    """A plan without vLLM's terms was not made for it."""
    with pytest.raises(EngineMissingError, match="no terms"):
        _command(None)
