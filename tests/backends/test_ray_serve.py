"""The whole Ray Serve application of a known plan."""

import json
import shlex
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.backends import build_command
from launcher.backends.ray_serve import (
    MARK,
    application_name,
    build_application,
    marked_model,
    route_prefix,
)
from launcher.domain import (
    Address,
    Artifact,
    Engine,
    EngineInstall,
    Footprint,
    HostUse,
    MemoryUse,
    Plan,
    VllmTerms,
    WeightsFormat,
)
from launcher.errors import EngineMissingError, WeightsMissingError
from tests.fakes.plans import plan_for

_TERMS: Final = VllmTerms(dtype="bfloat16", kv_cache_tokens=0, visible_devices=("0", "1"))
_ENV: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENGINE_READY_TIMEOUT_S": "86400",
    "NO_COLOR": "1",
}


def _plan(*hosts: str) -> Plan:
    """Return a plan with one GPU on each of ``hosts``."""
    devices = tuple(MemoryUse(name=f"{host}/gpu{idx}", host=host) for idx, host in enumerate(hosts))
    return replace(
        plan_for(),
        model="llama3.1-8b",
        engine=Engine.VLLM,
        n_parallel=4,
        n_ctx_per_request=8192,
        vllm=_TERMS if hosts else replace(_TERMS, visible_devices=(), kv_cache_memory_bytes=1114112),
        tensor_parallel=len(hosts) or 1,
        replicas=3,
        memory_utilization=0.8744 if hosts else None,
        footprint=Footprint(devices=devices, host=HostUse()),
        artifact=Artifact(format=WeightsFormat.SAFETENSORS, quantization="bf16", repository="example/llama"),
    )


def test_every_planned_value_is_in_the_application() -> None:
    """Nothing that the footprint depends on is left to a default of vLLM's or Ray's."""
    assert build_application(_plan("a", "a"), accelerator_type="L4") == {
        "name": "launcher-llama3.1-8b",
        "route_prefix": "/launcher-llama3.1-8b",
        "import_path": "ray.serve.llm:build_openai_app",
        "runtime_env": {"env_vars": {MARK: "llama3.1-8b", **_ENV}},
        "args": {
            "llm_configs": [
                {
                    "model_loading_config": {"model_id": "llama3.1-8b", "model_source": "example/llama"},
                    "engine_kwargs": {
                        "load_format": "safetensors",
                        "max_model_len": 8192,
                        "max_num_seqs": 4,
                        "max_num_batched_tokens": 2048,
                        "dtype": "bfloat16",
                        "kv_cache_dtype": "auto",
                        "tensor_parallel_size": 2,
                        "pipeline_parallel_size": 1,
                        "cpu_offload_gb": 0,
                        "enforce_eager": False,
                        "gpu_memory_utilization": 0.874,
                    },
                    "placement_group_config": {"bundle_per_worker": {"GPU": 1}, "strategy": "STRICT_PACK"},
                    "deployment_config": {"num_replicas": 3},
                    "runtime_env": {"env_vars": _ENV},
                    "accelerator_type": "L4",
                }
            ]
        },
    }


@pytest.mark.parametrize("plan", [_plan("a", "a"), _plan()])
def test_engine_arguments_are_those_of_the_command_line(plan: Plan) -> None:
    """One plan means one engine, whether it is started here or by Ray."""
    install = EngineInstall(engine=Engine.VLLM, argv=("vllm", "serve"))
    command = build_command(
        replace(plan, install=install), weights_path="/m", address=Address(port=1), alias=plan.model
    )
    line = shlex.join(command.argv)
    for name, value in build_application(plan)["args"]["llm_configs"][0]["engine_kwargs"].items():  # type: ignore[index] # plain JSON
        flag = name.replace("_", "-")
        wanted = (f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag} {value}"
        assert wanted in line


def test_what_was_planned_for_one_node_is_never_spread() -> None:
    """Tensor ranks on two nodes would exchange every layer over the network; stages may lie on several."""

    def strategy(plan: Plan) -> object:
        return build_application(plan)["args"]["llm_configs"][0]["placement_group_config"]["strategy"]  # type: ignore[index] # plain JSON

    assert strategy(_plan("a", "a")) == "STRICT_PACK"
    assert strategy(_plan("a", "b")) == "PACK"


def test_without_gpus_a_copy_takes_processors() -> None:
    """Ray tells by the bundles that vLLM is to compute on the CPU; no accelerator is named then."""
    config = build_application(_plan(), accelerator_type="L4")["args"]["llm_configs"][0]  # type: ignore[index] # plain JSON
    assert config["placement_group_config"]["bundle_per_worker"] == {"CPU": 1}
    assert config["engine_kwargs"]["kv_cache_memory_bytes"] == 1114112
    assert config["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"
    assert "accelerator_type" not in config


def test_code_of_a_models_folder_is_never_allowed() -> None:
    """There is no plan under which it is; and no key or token is in what everybody may read."""
    for plan in (_plan("a"), _plan()):
        text = json.dumps(build_application(plan, source="/shared/m")).lower()
        assert not any(word in text for word in ("trust", 'token"', "api_key", "secret"))


def test_the_source_is_the_repository_else_the_path() -> None:
    """Nodes fetch by themselves; a folder must be the same on all of them. Nowhere is said before anything is sent."""

    def source(plan: Plan, given: str | None = None) -> object:
        loading = build_application(plan, source=given)["args"]["llm_configs"][0]["model_loading_config"]  # type: ignore[index] # plain JSON
        return loading["model_source"]

    plan = _plan("a")
    local = replace(plan, artifact=replace(plan.artifact, repository=None, local_path="/shared/m"))
    assert source(plan) == "example/llama"
    assert source(local) == "/shared/m"
    assert source(plan, "s3://bucket/m") == "s3://bucket/m"
    with pytest.raises(WeightsMissingError, match="nothing says where"):
        source(replace(plan, artifact=replace(plan.artifact, repository=None)))


def test_a_plan_for_another_engine_has_no_application() -> None:
    """Ray Serve LLM knows vLLM alone."""
    with pytest.raises(EngineMissingError, match="llama-server"):
        build_application(plan_for())


@pytest.mark.parametrize(
    "application",
    [
        {},
        {"runtime_env": {}},
        {"runtime_env": {"env_vars": {"A": "b"}}},
        {"runtime_env": {"env_vars": {MARK: 1}}},
        {"runtime_env": None},
    ],
)
def test_what_bears_no_mark_is_not_ours(application: dict[str, object]) -> None:
    """Whatever is in it."""
    assert marked_model(application) is None


@given(st.text(alphabet="abzAZ09._-/:{} é", min_size=1, max_size=90))
def test_a_name_fits_a_path_and_is_one_models(model: str) -> None:
    """Ray wants no slash and no brace in a route; what had to be changed is told from what was not."""
    name = application_name(model)
    assert route_prefix(model) == f"/{name}"
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert len(name) <= 9 + 64 + 9
    if name == f"launcher-{model}":
        assert application_name(f"{model}/") != name


def test_an_application_is_known_again() -> None:
    """Its mark says of which model it is, also where the name says another one."""
    assert marked_model(build_application(_plan("a"))) == "llama3.1-8b"
    assert application_name("Org/Model") != application_name("org-model")
    assert application_name("org/model") != application_name("org_model")
