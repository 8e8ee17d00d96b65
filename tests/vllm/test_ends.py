"""How a real vLLM ends unasked, or too early: what is made of it, and that nothing of it stays."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from launcher.backends import build_command
from launcher.domain import Address, Plan
from launcher.supervisor.checks import free_port
from launcher.supervisor.faults import Answer, End, Fault, classify
from launcher.supervisor.scratch import mapped_shared
from launcher.supervisor.signs import Cause, Part
from tests.vllm.conftest import READY_S, Serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1300)]


def test_its_processes_are_killed(start: Callable[..., Serve]) -> None:
    """Main process, then engine core: each time all of the old engine goes, and a new one answers."""
    serve = start()
    serve.await_event("engine.ready")
    for n, title in enumerate(("vllm.entrypoints", "EngineCore"), start=2):
        before = {process.pid for process in serve.tree()} - {serve.process.pid}
        mapped = mapped_shared(before)
        serve.engine(title).send_signal(signal.SIGKILL)
        serve.await_event("engine.exited", n - 1)
        assert serve.chat()[0] == 200  # it waited at the gateway
        serve.await_event("engine.ready", n)
        assert not before.intersection(process.pid for process in serve.tree())
        assert not [name for name in mapped if (Path("/dev/shm") / name).exists()]  # noqa: S108 - where the kernel has it
    serve.process.send_signal(signal.SIGTERM)
    assert serve.end() == 0


def test_it_is_stopped_while_it_loads(start: Callable[..., Serve]) -> None:
    """It hears no first SIGTERM then; within its grace it is gone all the same."""
    serve = start()
    serve.await_that(lambda: bool(serve.engines("EngineCore")), "engine core", READY_S)
    serve.process.send_signal(signal.SIGTERM)
    assert serve.end() == 0


def run_to_its_end(plan: Plan, model: Path, port: int) -> Fault:
    """Run the plan's command and say why it ended."""
    command = build_command(plan, weights_path=str(model), address=Address(port=port), alias="tiny")
    with subprocess.Popen(
        command.argv,
        env={**os.environ, **command.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as engine:
        try:
            output, _ = engine.communicate(timeout=READY_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, signal.SIGKILL)
    return classify(End(lines=tuple(output.splitlines()), code=engine.returncode))


def test_a_cache_below_one_request_calls_for_a_smaller_plan(plan: Plan, model: Path) -> None:
    """Eight blocks for 2,048 tokens, one of which no request gets: a step down, to the length that the engine names."""
    assert plan.vllm is not None
    small = replace(plan, vllm=replace(plan.vllm, kv_cache_memory_bytes=8 * 128 * 512))
    found = run_to_its_end(small, model, free_port("127.0.0.1"))
    assert (found.cause, found.part, found.answer) == (Cause.MEMORY, Part.KV_CACHE, Answer.STEP_DOWN)
    assert found.n_ctx == 7 * 128


def test_a_context_above_the_models_is_refused(plan: Plan, model: Path) -> None:
    """The planner never asks for it; the engine's own refusal is not taken for a want of memory."""
    found = run_to_its_end(replace(plan, n_ctx_per_request=4096), model, free_port("127.0.0.1"))
    assert (found.cause, found.answer) == (Cause.ARGUMENT, Answer.GIVE_UP)
    assert any("max_model_len (4096)" in line for line in found.lines)


def test_a_port_that_is_taken(plan: Plan, model: Path) -> None:
    """Somebody took it between our look and the engine's own."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        found = run_to_its_end(plan, model, holder.getsockname()[1])
    assert found.cause is Cause.PORT
