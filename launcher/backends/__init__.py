"""Plan to command, one module per engine: every planned value is passed explicitly. Pure."""

from typing import Final

from msgspec.structs import replace

from launcher.backends import llama_cpp_python, llama_server, vllm
from launcher.domain import Address, Command, Engine, EngineInstall, Plan
from launcher.errors import EngineMissingError, EngineTooOldError

_NO_BACKTRACE: Final = {"GGML_NO_BACKTRACE": "1"}
"""An aborting llama.cpp starts gdb on itself where it is installed: 2 s on a busy machine in which nobody is served
(0.03 s without), measured with build 11434."""


_KEY_VARIABLES: Final = {
    Engine.LLAMA_SERVER: "LLAMA_API_KEY",
    Engine.LLAMA_CPP_PYTHON: "API_KEY",
    Engine.VLLM: "VLLM_API_KEY",
}
"""Environment variables in which engines take the key that their requests must bear."""


def key_variable(engine: Engine) -> str:
    """Return the name of the environment variable in which an engine takes the key that its requests must bear."""
    return _KEY_VARIABLES[engine]


def with_key(command: Command, engine: Engine, key: str) -> Command:
    """Return the command with a key that every request to the engine must bear; never in its arguments."""
    variable = _KEY_VARIABLES[engine]
    return replace(command, env={**command.env, variable: key}, api_key_env=variable)


def build_command(
    plan: Plan, *, weights_path: str, address: Address, alias: str, cache_path: str | None = None
) -> Command:
    """Return how to start the planned engine on ``address``, serving the model under the name ``alias``.

    ``cache_path`` is a folder in which an engine may keep what it compiles; ``None`` leaves that to the engine.

    Raises:
        EngineMissingError: the plan names no installed engine, or one that this release cannot start.
        EngineTooOldError: the installed build lacks an option that the plan depends on, or has a published fault.
    """
    if plan.install is None:
        msg = f"{plan.engine} is not installed on this machine"
        raise EngineMissingError(msg, help="`launch hardware` lists the engines found; README.md says how to get one")
    if plan.install.holes:
        msg = f"{plan.engine} {plan.install.version or 'of unknown version'} is not started: {plan.install.holes[0]}"
        raise EngineTooOldError(msg, help="install a newer one; `launch hardware` lists the engines found")
    command = _build(plan, plan.install, weights_path, address, alias, cache_path=cache_path)
    return replace(command, env={**_NO_BACKTRACE, **command.env})


def _build(
    plan: Plan, install: EngineInstall, weights_path: str, address: Address, alias: str, *, cache_path: str | None
) -> Command:
    match plan.engine:
        case Engine.LLAMA_SERVER:
            return llama_server.build_command(plan, install, weights_path, address, alias)
        case Engine.LLAMA_CPP_PYTHON:
            return llama_cpp_python.build_command(plan, install, weights_path, address, alias)
        case Engine.VLLM:
            return vllm.build_command(plan, install, weights_path, address, alias, cache_path=cache_path)


def tell_before_load(command: Command, engine: Engine) -> Command | None:
    """Return the command under which the engine tells what memory it needs before it loads; ``None`` if it never does.

    That takes the time of one breakdown (reading the vocabulary, building the graph): what it told once for a plan, a
    build and a file holds for the next start, which can do without.
    """
    return llama_server.tell_before_load(command) if engine is Engine.LLAMA_SERVER else None
