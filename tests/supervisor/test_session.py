"""Holding one engine for a block of code: there during it, gone after it, however it ends."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from launcher.domain import Address, Command
from launcher.errors import EngineFailedError
from launcher.store import Instance, open_instance
from launcher.supervisor.checks import free_port
from launcher.supervisor.session import open_engine
from tests.fakes.harness import FAKES, poll, survivors


def _command(*arguments: str) -> Command:
    port = free_port("127.0.0.1")
    return Command(
        argv=(sys.executable, "-S", str(FAKES / "fake_engine.py"), "--port", str(port), *arguments),
        address=Address(port=port),
        ready_path="/health",
        canary_path="/completion",
        canary_body="{}",
    )


async def _hold(command: Command, instance: Instance, *, timeout_s: float = 20.0, fail: bool = False) -> bytes:
    async with open_engine(command, instance=instance, start_timeout_s=timeout_s) as session:
        assert survivors(command.address.port or 0)
        async with session.post("/completion", data="{}") as response:
            body = await response.read()
        if fail:
            raise KeyError
        return body


def _is_gone(command: Command, instance: Instance) -> bool:
    return bool(poll(lambda: not survivors(command.address.port or 0))) and instance.read_guards() == ()


def test_it_answers_inside_the_block_and_is_gone_after_it(state_dir: Path) -> None:
    """The whole tree ends with the block, stubborn children included, and no record stays."""
    del state_dir
    command = _command("--stubborn-tree")
    with open_instance("x") as instance:
        assert json.loads(asyncio.run(_hold(command, instance)))["content"] == "x"
        assert _is_gone(command, instance)


def test_it_is_gone_when_the_block_fails(state_dir: Path) -> None:
    """An exception passes through, and leaves no engine."""
    del state_dir
    command = _command()
    with open_instance("x") as instance:
        with pytest.raises(KeyError):
            asyncio.run(_hold(command, instance, fail=True))
        assert _is_gone(command, instance)


def test_an_engine_that_ends_or_never_answers_is_named(state_dir: Path) -> None:
    """How it ended is in the message, and its telling lines beside; a slow one is given up."""
    del state_dir
    with open_instance("x") as instance:
        dying = _command("--say", "error: unknown model architecture", "--exit-after-load", "1")
        with pytest.raises(EngineFailedError, match="the engine ended") as caught:
            asyncio.run(_hold(dying, instance))
        assert any("unknown model architecture" in line for line in caught.value.details)
        slow = _command("--never-ready")
        with pytest.raises(EngineFailedError, match="not ready within"):
            asyncio.run(_hold(slow, instance, timeout_s=0.5))
        assert _is_gone(slow, instance)


def test_a_killed_guard_leaves_nothing_after_the_block(state_dir: Path) -> None:
    """The guard is killed while the block runs: its engine is found by the record and ended."""
    del state_dir
    command = _command()

    async def kill_guard(instance: Instance) -> None:
        async with open_engine(command, instance=instance):
            guard = instance.read_guards()[0].guard
            assert guard is not None
            os.kill(guard.pid, signal.SIGKILL)

    with open_instance("x") as instance:
        asyncio.run(kill_guard(instance))
        assert _is_gone(command, instance)


def test_it_is_gone_when_the_time_is_over_while_it_ends(state_dir: Path) -> None:
    """The limit of a block may expire while its engine is being ended: that goes on to its end, and is then said."""
    del state_dir
    command = _command("--ignore-sigterm")

    async def hold_too_long(instance: Instance) -> None:
        async with asyncio.timeout(None) as limit, open_engine(command, instance=instance):
            limit.reschedule(asyncio.get_running_loop().time() + 0.2)  # the grace alone is longer

    with open_instance("x") as instance:
        before = set(psutil.Process().children())
        with pytest.raises(TimeoutError):
            asyncio.run(hold_too_long(instance))
        assert set(psutil.Process().children()) == before, "the guard was not waited for"
        assert _is_gone(command, instance)
