"""The whole command line of each engine for a known plan: what is passed is what was planned."""

from typing import Final

import pytest
from msgspec.structs import replace

from launcher.backends import build_command, tell_before_load, with_key
from launcher.backends.rpc_server import build_worker_argv
from launcher.domain import (
    Address,
    Artifact,
    CacheType,
    Engine,
    EngineDevice,
    EngineInstall,
    Footprint,
    HostUse,
    Plan,
    VllmTerms,
    WeightsFormat,
)
from launcher.errors import EngineMissingError, EngineTooOldError
from launcher.units import GIB

_ADDRESS: Final = Address(host="127.0.0.1", port=8080)
_PLAN: Final = Plan(
    model="gemma2-27b",
    engine=Engine.LLAMA_SERVER,
    format=WeightsFormat.GGUF,
    quantization="q5_k_m",
    n_ctx=16384,
    n_ctx_per_request=8192,
    n_parallel=2,
    kv_unified=False,
    n_batch=2048,
    n_ubatch=512,
    n_layer=46,
    n_gpu_layers=40,
    n_cpu_moe=3,
    cache_type_k=CacheType.F16,
    cache_type_v=CacheType.Q8_0,
    flash_attn=True,
    n_threads=8,
    n_threads_batch=8,
    address=_ADDRESS,
    footprint=Footprint(devices=(), host=HostUse()),
    budgets=(),
    artifact=Artifact(format=WeightsFormat.GGUF, quantization="q5_k_m"),
    install=EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/opt/llama-server",), env={"GGML_X": "1"}),
    engine_devices=("CUDA0", "CUDA1"),
    tensor_split=(21.0, 7.0),
    cache_ram_bytes=2 * GIB,
    n_ctx_checkpoints=4,
)


def _build(plan: Plan) -> tuple[str, ...]:
    return build_command(plan, weights_path="/models/w.gguf", address=_ADDRESS, alias="gemma2-27b").argv


def test_llama_server_gets_every_planned_value() -> None:
    """Nothing that the footprint depends on is left to the engine's default."""
    assert _build(_PLAN) == (
        "/opt/llama-server",
        *("--model", "/models/w.gguf", "--alias", "gemma2-27b", "--host", "127.0.0.1", "--port", "8080"),
        *("--ctx-size", "16384", "--parallel", "2", "--no-kv-unified", "--batch-size", "2048", "--ubatch-size", "512"),
        *("--n-gpu-layers", "40", "--cache-type-k", "f16", "--cache-type-v", "q8_0", "--flash-attn", "on"),
        *("--device", "CUDA0,CUDA1", "--cache-ram", "2048", "--ctx-checkpoints", "4", "--op-offload", "--fit", "off"),
        *("--n-cpu-moe", "3", "--split-mode", "layer", "--tensor-split", "21,7"),
        *("--threads", "8", "--threads-batch", "8", "--log-verbosity", "4", "--log-colors", "off"),
        *("--metrics", "--offline"),
    )


def test_a_plan_without_devices_forbids_them() -> None:
    """A CPU plan says so: a GPU build must not take a device by itself."""
    argv = _build(replace(_PLAN, engine_devices=(), tensor_split=(), n_gpu_layers=0, n_cpu_moe=0))
    assert argv[argv.index("--device") + 1] == "none"
    assert argv[argv.index("--n-gpu-layers") + 1] == "0"
    assert "--tensor-split" not in argv
    assert "--n-cpu-moe" not in argv


@pytest.mark.parametrize(
    ("flags", "mmap", "expected"),
    [
        ({"--load-mode"}, True, ("--load-mode", "mmap")),
        ({"--load-mode"}, False, ("--load-mode", "none")),
        ({"--no-mmap"}, False, ("--no-mmap",)),
    ],
)
def test_how_weights_are_read_follows_the_build(flags: set[str], mmap: bool, expected: tuple[str, ...]) -> None:  # noqa: FBT001
    """Newer builds have ``--load-mode`` where older ones had ``--no-mmap``."""
    known = frozenset(word for word in _build(_PLAN) if word.startswith("--")) | flags
    install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("s",), flags=frozenset(known))
    argv = _build(replace(_PLAN, install=install, mmap=mmap))
    assert argv[argv.index(expected[0]) : argv.index(expected[0]) + len(expected)] == expected


def test_a_build_without_a_planned_option_is_refused() -> None:
    """A build that cannot bound its prompt cache would use memory that was not planned."""
    known = frozenset(word for word in _build(_PLAN) if word.startswith("--")) - {"--cache-ram"}
    install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("old-server",), version="b4000", flags=known)
    with pytest.raises(EngineTooOldError, match=r"old-server \(b4000\) has no option --cache-ram"):
        _build(replace(_PLAN, install=install))


def test_options_that_a_build_does_by_itself_are_left_out() -> None:
    """A build older than unified caches keeps one cache per slot anyway."""
    known = frozenset(word for word in _build(_PLAN) if word.startswith("--")) - {"--no-kv-unified", "--offline"}
    install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("s",), flags=known)
    argv = _build(replace(_PLAN, install=install))
    assert "--no-kv-unified" not in argv
    assert "--offline" not in argv


def test_llama_cpp_python_gets_every_planned_value() -> None:
    """Its options take values where llama-server's are switches; cache types are ggml's numbers."""
    install = EngineInstall(engine=Engine.LLAMA_CPP_PYTHON, argv=("python", "-m", "llama_cpp.server"))
    plan = replace(_PLAN, engine=Engine.LLAMA_CPP_PYTHON, install=install, n_parallel=1, n_ctx=8192)
    assert _build(plan) == (
        *("python", "-m", "llama_cpp.server", "--model", "/models/w.gguf", "--model_alias", "gemma2-27b"),
        *("--host", "127.0.0.1", "--port", "8080", "--n_ctx", "8192", "--n_batch", "2048", "--n_ubatch", "512"),
        *("--n_gpu_layers", "40", "--split_mode", "1", "--type_k", "1", "--type_v", "8", "--flash_attn", "True"),
        *("--use_mmap", "True", "--use_mlock", "False", "--offload_kqv", "True", "--logits_all", "False"),
        *("--cache", "False", "--n_threads", "8", "--n_threads_batch", "8", "--interrupt_requests", "False"),
        *("--verbose", "True"),
        *("--tensor_split", "21", "7"),
    )


def test_llama_cpp_python_serves_one_request_at_a_time() -> None:
    """A plan with more is refused before anything starts."""
    install = EngineInstall(engine=Engine.LLAMA_CPP_PYTHON, argv=("python",))
    with pytest.raises(EngineMissingError, match="one request at a time"):
        _build(replace(_PLAN, engine=Engine.LLAMA_CPP_PYTHON, install=install))


def test_a_plan_for_another_machine_cannot_be_started() -> None:
    """A plan made for a reference machine names no installed engine."""
    with pytest.raises(EngineMissingError, match="not installed"):
        _build(replace(_PLAN, install=None))


def test_the_environment_is_the_installs() -> None:
    """What the engine needs in its environment travels with its command; an abort is not delayed by a debugger."""
    command = build_command(_PLAN, weights_path="w", address=_ADDRESS, alias="m")
    assert command.env == {"GGML_X": "1", "GGML_NO_BACKTRACE": "1"}
    assert command.expected_gpu_layers == 40


def test_an_engine_that_tells_its_memory_first() -> None:
    """Only the one option differs; a build without it, and an engine of another kind, cannot."""
    command = build_command(_PLAN, weights_path="w", address=_ADDRESS, alias="m")
    telling = tell_before_load(command, Engine.LLAMA_SERVER)
    assert telling is not None
    differing = [(old, new) for old, new in zip(command.argv, telling.argv, strict=True) if old != new]
    assert differing == [("off", "on")]
    assert telling.argv[telling.argv.index("on", telling.argv.index("--fit")) - 1] == "--fit"
    assert replace(telling, argv=command.argv, tells_memory=False) == command
    assert tell_before_load(command, Engine.LLAMA_CPP_PYTHON) is None
    old = replace(command, argv=tuple(word for word in command.argv if word not in {"--fit", "off"}))
    assert tell_before_load(old, Engine.LLAMA_SERVER) is None


def test_workers_are_named_where_the_plan_uses_any() -> None:
    """All of them: their order numbers the devices. A plan that uses none needs none."""
    listed = tuple(
        EngineDevice(name=f"RPC{idx}", description=f"10.0.0.{idx}:50052", device=f"10.0.0.{idx}:50052")
        for idx in range(3)
    )
    install = EngineInstall(
        engine=Engine.LLAMA_SERVER,
        argv=("/opt/llama-server",),
        devices=listed,
        workers=tuple(entry.description for entry in listed),
    )
    plan = replace(_PLAN, install=install, engine_devices=("RPC1", "RPC2"))
    assert plan.workers == ("10.0.0.1:50052", "10.0.0.2:50052")
    argv = _build(plan)
    assert argv[argv.index("--rpc") + 1] == "10.0.0.0:50052,10.0.0.1:50052,10.0.0.2:50052"
    assert argv[argv.index("--device") + 1] == "RPC1,RPC2"
    assert argv.index("--rpc") < argv.index("--device"), "a device has to be known when it is named"
    assert "--rpc" not in _build(replace(plan, engine_devices=()))


def test_a_workers_command_line() -> None:
    """Address, threads, and devices where some are named."""
    address = Address(host="10.0.0.7", port=50052)
    argv = ("/opt/ggml-rpc-server", "--host", "10.0.0.7", "--port", "50052", "--threads", "4")
    assert build_worker_argv("/opt/ggml-rpc-server", address, n_threads=4) == argv
    named = build_worker_argv("/opt/ggml-rpc-server", address, n_threads=4, devices=("CUDA0", "CUDA1"))
    assert named == (*argv, "--device", "CUDA0,CUDA1")


@pytest.mark.parametrize("engine", Engine)
def test_an_engines_key_is_in_its_environment_alone(engine: Engine) -> None:
    """Everybody on the machine can read arguments."""
    install = EngineInstall(engine=engine, argv=("/opt/engine",), flags=frozenset())
    plan = replace(
        _PLAN, engine=engine, install=install, n_parallel=1, vllm=VllmTerms(dtype="bfloat16", kv_cache_tokens=0)
    )
    command = with_key(build_command(plan, weights_path="w", address=_ADDRESS, alias="m"), engine, "k" * 40)
    assert command.api_key_env is not None
    assert command.env[command.api_key_env] == "k" * 40
    assert not any("k" * 40 in word for word in command.argv)
