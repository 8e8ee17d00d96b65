"""Files that take minutes to read are left at once by who is no longer waited for."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from msgspec.structs import replace

from launcher.cli import checking
from launcher.cli.measuring import engine_opener
from launcher.domain import ArtifactFile, Plan
from launcher.supervisor.setback import Setback, Shortage, Step
from launcher.supervisor.stepping import MachineStepper
from launcher.supervisor.threads import aside
from tests.fakes.plans import plan_for

if TYPE_CHECKING:
    from launcher.store import Instance


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan for 256 GiB of weights without a byte of data, which take minutes to read."""
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "cache"))
    weights = tmp_path / "w.gguf"
    with weights.open("wb") as file:
        file.truncate(256 << 30)
    files = (ArtifactFile(name="w.gguf", sha256="0" * 64),)
    given = plan_for()
    return replace(given, artifact=replace(given.artifact, files=files, local_path=str(weights)))


def _seconds_to_leave(work: Callable[[], Coroutine[None, None, object]]) -> float:
    """Return how long it takes from the cancelling of work that reads to the end of its loop, and so of its threads."""
    cancelled_s = 0.0

    async def cancel() -> None:
        nonlocal cancelled_s
        task = asyncio.ensure_future(work())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.3)
        task.cancel()
        cancelled_s = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    return time.monotonic() - cancelled_s


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_step_s_files_are_read_only_while_somebody_waits_for_it(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """The engine was stopped, or died, meanwhile: nobody wants the step any more."""
    monkeypatch.setattr(MachineStepper, "next_plan", lambda *_: Step(plan=plan, story=()))
    monkeypatch.setattr(MachineStepper, "better_plan", lambda *_: plan)
    stepper = object.__new__(checking.CheckingStepper)
    setback = Setback(plan=plan, shortage=Shortage.SERVING, words="")

    async def ask() -> object:
        if direction == "down":
            return await aside(stepper.next_plan, setback)
        return await aside(stepper.better_plan, plan, {})

    assert _seconds_to_leave(ask) < 10.0


def test_a_calibration_that_reads_its_weights_can_be_left(plan: Plan) -> None:
    """Ctrl-C cancels it: the loop is free to hear of that while a thread reads."""

    async def open_it() -> None:
        async with engine_opener(cast("Instance", None))(plan):
            pytest.fail("the weights have not this digest")

    assert _seconds_to_leave(open_it) < 10.0
