"""The command line and environment of vLLM's server for a plan.

Options are those of vLLM 0.32.0; a build that lacks one that the plan depends on is refused. Code of a model's folder is never run (``--trust-remote-code`` is not given, and off by
default), and nothing but safetensors is loaded: pickled weights would run code too.
"""

from typing import Final, TypeAlias

from launcher.backends.canary import CANARY_PATH, canary_body
from launcher.domain import Address, Command, EngineInstall, Plan, VllmTerms
from launcher.errors import EngineMissingError, EngineTooOldError

_Option = tuple[str, ...]
Setting: TypeAlias = bool | int | float | str

LOAD_FORMAT: Final = "safetensors"
"""The only one that is loaded."""

_SERVE: Final = "serve"
"""The subcommand that takes the model without an option; its server's own module takes ``--model``."""

CANARY_PROMPT: Final = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"
"""More than a token or two: vLLM 0.32 on a CPU with AMX asks the kernel for AMX's registers only while it computes a prompt,
and dies of an illegal instruction where a first prompt is too short for that (seen with one token, not with 17)."""

_ENVIRONMENT: Final = {
    "VLLM_HOST_IP": "127.0.0.1",  # else its processes talk over the machine's address, where others can listen
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # the files are here: nothing of them is looked up
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_ENGINE_READY_TIMEOUT_S": "86400",  # large weights on a slow disk take long; silence is what the supervisor ends
    "SPT_NOENV": "1",  # its processes rename themselves; without this that wipes the mark by which they are recognised
    "NO_COLOR": "1",
}


def engine_settings(plan: Plan, terms: VllmTerms) -> dict[str, Setting]:
    """Return what the footprint depends on, by the names of vLLM's engine arguments."""
    settings: dict[str, Setting] = {
        "max_model_len": plan.n_ctx_per_request,
        "max_num_seqs": plan.n_parallel,
        "max_num_batched_tokens": plan.n_batch,
        "dtype": terms.dtype,
        "kv_cache_dtype": terms.kv_cache_dtype,
        "tensor_parallel_size": plan.tensor_parallel,
        "pipeline_parallel_size": plan.pipeline_parallel,
        "cpu_offload_gb": 0,
        "enforce_eager": not plan.cuda_graphs,
    }
    if plan.memory_utilization is not None:
        settings["gpu_memory_utilization"] = round(plan.memory_utilization, 3)
    if terms.kv_cache_memory_bytes is not None:
        settings["kv_cache_memory_bytes"] = terms.kv_cache_memory_bytes
    return settings


def _option(name: str, value: Setting) -> _Option:
    """Return an engine argument as the command line has it."""
    words = name.replace("_", "-")
    match value:
        case bool():
            return (f"--{words}" if value else f"--no-{words}",)
        case float():
            return f"--{words}", f"{value:.3f}"
        case _:
            return f"--{words}", str(value)


def _environment(plan: Plan, terms: VllmTerms, cache_path: str | None) -> dict[str, str]:
    env = dict(_ENVIRONMENT)
    if cache_path is not None:
        env["VLLM_CACHE_ROOT"] = cache_path
        env["TORCHINDUCTOR_CACHE_DIR"] = f"{cache_path}/inductor"  # else in the temporary folder, which does not last
    if terms.visible_devices:
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of the driver's list, which numbers them
        env["CUDA_VISIBLE_DEVICES"] = ",".join(terms.visible_devices)
    else:
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # a core that another program uses too is no place to be bound to
        env["OMP_NUM_THREADS"] = str(plan.n_threads)
    return env


def build_command(
    plan: Plan, install: EngineInstall, weights_path: str, address: Address, alias: str, *, cache_path: str | None
) -> Command:
    """Return the command; ``address.port`` must be known. ``cache_path`` is where vLLM may keep what it compiles.

    Raises:
        EngineMissingError: the plan was not made for vLLM.
        EngineTooOldError: the build lacks an option that the plan depends on.
    """
    if plan.vllm is None:
        msg = f"the plan of `{plan.model}` has no terms for vllm"
        raise EngineMissingError(msg, help="plan it again with `--engine vllm`")
    version = install.version or "unknown version"
    options: list[_Option] = [
        ("--host", address.host),
        ("--port", str(address.port)),
        ("--served-model-name", alias),
        ("--load-format", LOAD_FORMAT),
        *(_option(name, value) for name, value in engine_settings(plan, plan.vllm).items()),
    ]
    if "--disable-uvicorn-access-log" in install.flags:
        options.append(("--disable-uvicorn-access-log",))  # lines with a client's words, one per request
    argv = [*install.argv, *((weights_path,) if install.argv[-1] == _SERVE else ("--model", weights_path))]
    for option in options:
        if install.flags and option[0].replace("--no-", "--", 1) not in install.flags:
            msg = f"vllm {version} has no option {option[0]}"
            raise EngineTooOldError(msg, help="install a newer vllm; `launch hardware` lists the engines found")
        argv += option
    return Command(
        argv=tuple(argv),
        env={**_environment(plan, plan.vllm, cache_path), **install.env},
        address=address,
        ready_path="/health",
        canary_path=CANARY_PATH,
        canary_body=canary_body(alias, CANARY_PROMPT),
        expected_footprint=plan.footprint,
        listed_model=alias,
        temp_env="TMPDIR",
    )
