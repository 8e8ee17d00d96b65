"""One Ray Serve LLM application for a plan of vLLM's, as the plain value that Ray's REST API takes.

Fields are those of ``ServeApplicationSchema`` (``ray/serve/schema.py``) and of ``LLMConfig``
(``ray/llm/_internal/serve/core/configs/llm_config.py``), Ray 2.60.0. No secret is ever in it: whoever may ask the dashboard
reads it all. Code of a model's folder is never run. It must not know how a cluster is asked.
"""

import hashlib
import re
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from launcher.backends.vllm import LOAD_FORMAT, engine_settings
from launcher.domain import Engine, Plan
from launcher.errors import EngineMissingError, WeightsMissingError

Value: TypeAlias = dict[str, object]
"""What JSON calls an object."""

BUILDER: Final = "ray.serve.llm:build_openai_app"
MARK: Final = "LAUNCHER_APPLICATION"
"""The variable in an application's environment that says that it is ours, and of which model."""
_PREFIX: Final = "launcher-"
_MAX_NAME: Final = 64

_ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENGINE_READY_TIMEOUT_S": "86400",  # large weights take long to come to a node
    "NO_COLOR": "1",
}
_GPU: Final = {"GPU": 1}
"""What vLLM's executor on Ray wants of each worker's bundle: one GPU, never more."""


def application_name(model: str) -> str:
    """Return the name of the application that serves a model; two models never share one.

    Whatever has no place in a path is replaced, and then eight hex digits of the model's hash follow.
    """
    safe = re.sub(r"[^a-z0-9._-]+", "-", model.lower()).strip(".-_")[:_MAX_NAME]
    if safe != model:
        digest = hashlib.sha256(model.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        safe = f"{safe or 'model'}-{digest}"
    return _PREFIX + safe


def route_prefix(model: str) -> str:
    """Return the path below which a model's application answers."""
    return f"/{application_name(model)}"


def build_application(plan: Plan, *, source: str | None = None, accelerator_type: str | None = None) -> Value:
    """Return the application that serves the plan in all its copies; JSON can hold all of it.

    ``source`` is where each node finds the model: a repository of the Hugging Face hub, or a path that is the same on all of
    them; ``None`` takes it from the plan's artifact. ``accelerator_type`` is Ray's name of the planned GPUs: no other is
    taken then. The planned share of a GPU's memory holds for those only.

    Raises:
        EngineMissingError: the plan was not made for vLLM.
        WeightsMissingError: the nodes could find the weights nowhere.
    """
    if plan.engine is not Engine.VLLM or plan.vllm is None:
        msg = f"the plan of `{plan.model}` is for {plan.engine}; Ray Serve LLM serves with vllm"
        raise EngineMissingError(msg, help="plan it again with `--engine vllm`")
    env = _environment(plan)
    config: Value = {
        "model_loading_config": {"model_id": plan.model, "model_source": source or model_source(plan)},
        "engine_kwargs": {"load_format": LOAD_FORMAT, **engine_settings(plan, plan.vllm)},
        "placement_group_config": _placement(plan),
        "deployment_config": {"num_replicas": plan.replicas},
        "runtime_env": {"env_vars": env},
    }
    if accelerator_type is not None and plan.footprint.devices:
        config["accelerator_type"] = accelerator_type
    return {
        "name": application_name(plan.model),
        "route_prefix": route_prefix(plan.model),
        "import_path": BUILDER,
        "runtime_env": {"env_vars": {MARK: plan.model, **env}},
        "args": {"llm_configs": [config]},
    }


def model_source(plan: Plan) -> str:
    """Return where a node of a cluster finds the plan's weights.

    Raises:
        WeightsMissingError: they are published nowhere, and have no path.
    """
    artifact = plan.artifact
    source = artifact.repository or artifact.local_path
    if source is None:
        msg = f"nothing says where the nodes of a cluster find the weights of `{plan.model}` at {plan.quantization}"
        raise WeightsMissingError(
            msg, help="give the profile's artifact a `repository`, or serve a folder that all nodes share"
        )
    return source


def marked_model(application: Value) -> str | None:
    """Return of which model an application is ours; ``None`` where it is somebody else's."""
    env = application.get("runtime_env")
    variables = env.get("env_vars") if isinstance(env, dict) else None
    mark = variables.get(MARK) if isinstance(variables, dict) else None
    return mark if isinstance(mark, str) else None


class Bundles(Struct, frozen=True):
    """What one copy takes: ``together`` tells whether all of it is on one node."""

    gpus: float
    cpus: float
    together: bool


def read_bundles(application: Value) -> Bundles | None:
    """Return what a copy of such an application takes; ``None`` where it is no Ray Serve LLM application of one model.

    Serve tells of a replica only what its first process takes; its workers' bundles are told nowhere but in what was declared.
    """
    try:
        config = msgspec.convert(application, _Application).args.llm_configs[0]
    except (msgspec.ValidationError, IndexError):
        return None
    n_worker = config.engine_kwargs.tensor_parallel_size * config.engine_kwargs.pipeline_parallel_size
    worker = config.placement_group_config.bundle_per_worker
    return Bundles(
        gpus=n_worker * worker.get("GPU", 0.0),
        cpus=n_worker * worker.get("CPU", 0.0) + 1.0,
        together=config.placement_group_config.strategy == "STRICT_PACK",
    )


class _EngineArguments(Struct, frozen=True):
    tensor_parallel_size: int
    pipeline_parallel_size: int


class _Placement(Struct, frozen=True):
    bundle_per_worker: dict[str, float]
    strategy: str


class _Config(Struct, frozen=True):
    engine_kwargs: _EngineArguments
    placement_group_config: _Placement


class _Arguments(Struct, frozen=True):
    llm_configs: list[_Config]


class _Application(Struct, frozen=True):
    args: _Arguments


def _environment(plan: Plan) -> dict[str, str]:
    if plan.footprint.devices:
        return dict(_ENVIRONMENT)
    return {**_ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(plan.n_threads)}


def _placement(plan: Plan) -> Value:
    """Return what each worker takes, and how near they must be to each other.

    Tensor ranks of one stage belong on one node, so what was planned for one is never spread. Over several nodes Ray packs as
    well as it can: on idle nodes as planned.
    """
    if not plan.footprint.devices:
        n_cpu = max(1, plan.n_threads - 1)  # the replica itself takes one more
        return {"bundle_per_worker": {"CPU": n_cpu}, "strategy": "STRICT_PACK"}
    hosts = {use.host for use in plan.footprint.devices}
    return {"bundle_per_worker": dict(_GPU), "strategy": "STRICT_PACK" if len(hosts) == 1 else "PACK"}
