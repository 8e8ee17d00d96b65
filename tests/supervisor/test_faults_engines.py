"""Real engines that really run out of memory, classified by what they printed and what the kernel counted."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.domain import EngineInstall
from launcher.inventory.cgroup import find_oom_counter, read_oom_kills
from launcher.supervisor.checks import free_port
from launcher.supervisor.faults import Answer, End, Fault, classify
from launcher.supervisor.signs import Cause, Part
from launcher.units import MIB
from tests.fakes.memory_group import inside, memory_group

pytestmark = pytest.mark.engine
DEADLINE_S = 60.0


def run(install: EngineInstall, argv: Sequence[str], counter: Path | None = None) -> Fault:
    """Run a command to its end and classify that."""
    before = read_oom_kills(counter) if counter else None
    ended = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **install.env, "GGML_NO_BACKTRACE": "1"},
        timeout=DEADLINE_S,
        check=False,
    )
    after = read_oom_kills(counter) if counter else None
    return classify(
        End(
            lines=tuple(ended.stdout.splitlines()),
            code=ended.returncode if ended.returncode >= 0 else None,
            signal_number=-ended.returncode if ended.returncode < 0 else None,
            n_oom_kills=None if before is None or after is None else after - before,
        )
    )


def native(install: EngineInstall, model: Path, *more: str) -> list[str]:
    """A command line of llama-server."""
    port = str(free_port("127.0.0.1"))
    return [*install.argv, "-m", str(model), "-np", "1", "--port", port, "--no-warmup", "--fit", "off", *more]


def under_prlimit(limit_bytes: int, argv: list[str]) -> list[str]:
    """The same under a limit of its address space, which refuses allocations as a full device does."""
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("needs prlimit: apt-get install util-linux")
    return [prlimit, f"--as={limit_bytes}", *argv]


def test_llama_server_under_a_limit(llama_server: EngineInstall, real_model: Path) -> None:
    """A cache of millions of tokens: the host refused it, and by how many bytes is known."""
    argv = native(llama_server, real_model, "-c", "4000000", "--device", "none")
    found = run(llama_server, under_prlimit(1_500_000_000, argv))
    assert (found.cause, found.answer, found.memory, found.part) == (
        Cause.MEMORY,
        Answer.STEP_DOWN,
        "host",
        Part.KV_CACHE,
    )
    assert found.n_bytes is not None
    assert found.n_bytes > 1000 * MIB


def test_llama_cpp_python_under_a_limit(llama_cpp_python: EngineInstall, real_model: Path) -> None:
    """The same of the other engine, whose own words are a Python error that says nothing."""
    port = str(free_port("127.0.0.1"))
    argv = [*llama_cpp_python.argv, "--model", str(real_model), "--port", port, "--n_ctx", "4000000"]
    found = run(llama_cpp_python, under_prlimit(2_500_000_000, argv))
    assert (found.cause, found.memory, found.part) == (Cause.MEMORY, "host", Part.KV_CACHE)
    assert found.n_bytes is not None


def test_a_group_that_is_too_small(llama_server: EngineInstall, real_model: Path) -> None:
    """The kernel kills the engine without a word; the group's count says why."""
    with memory_group(150 * MIB) as folder:
        argv = native(llama_server, real_model, "-c", "512", "--device", "none", *_unmapped(llama_server))
        found = run(llama_server, inside(folder, argv), folder / "memory.oom_control")
        assert (found.cause, found.answer, found.memory) == (Cause.KILLED_FOR_MEMORY, Answer.STEP_DOWN, "host")


def _unmapped(install: EngineInstall) -> list[str]:
    return ["--load-mode", "none"] if "--load-mode" in install.flags else ["--no-mmap"]


def test_the_counter_of_this_machine_can_be_read() -> None:
    """Whatever version it has, there is a count, by the group or for the whole machine."""
    counter = find_oom_counter()
    assert counter is not None
    assert (read_oom_kills(counter) or 0) >= 0
