"""What is told of an engine that is silent: a process that does nothing stands for it."""

import asyncio
import subprocess
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from launcher.domain import Address, Command, Engine, EngineDevice, EngineInstall, Plan
from launcher.supervisor.failures import Failure
from launcher.supervisor.heard import Heard
from launcher.supervisor.machine import Event
from launcher.supervisor.options import RunOptions
from launcher.supervisor.setback import Shortage
from launcher.supervisor.watching import EngineWatch, Watched
from tests.fakes.plans import plan_for

_ADDRESS = "10.0.0.1:50052"


@pytest.fixture
def idle() -> Iterator[int]:
    """The pid of a process that sleeps."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def _over_a_worker() -> Plan:
    listed = (EngineDevice(name="RPC0", description=_ADDRESS, device=_ADDRESS),)
    install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/opt/e",), devices=listed, workers=(_ADDRESS,))
    return replace(plan_for(), install=install, engine_devices=("RPC0",))


def _told(plan: Plan, pid: int, *, is_replaceable: bool) -> tuple[Event, Failure]:
    """Return what is told once nothing has moved for a moment."""
    told: list[tuple[Event, Failure]] = []

    def post(event: Event, failure: Failure | None = None, /) -> None:
        if failure is not None:
            told.append((event, failure))

    command = Command(argv=("e",), address=Address(), ready_path="/", canary_path="/", canary_body="")
    engine = Watched(
        name="e",
        command=command,
        env={},
        plan=plan,
        heard=Heard(),
        top=lambda: pid,
        is_replaceable=is_replaceable,
    )
    watch = EngineWatch(engine, RunOptions(stall_timeout_s=0.2), post, lambda *_, **__: None)
    asyncio.run(watch.watch_progress())
    (found,) = told
    return found


def test_an_engine_that_stalls_may_be_waiting_for_a_worker(idle: int) -> None:
    """It is killed, and the workers are asked who of them is there."""
    event, failure = _told(_over_a_worker(), idle, is_replaceable=True)
    assert event is Event.WORKER_SILENT
    assert failure.setback is not None
    assert failure.setback.shortage is Shortage.LOST
    assert "stalled" in failure.setback.words


@pytest.mark.parametrize(("plan", "is_replaceable"), [(plan_for(), True), (_over_a_worker(), False)])
def test_without_workers_or_without_another_plan_it_is_a_stall(plan: Plan, is_replaceable: bool, idle: int) -> None:  # noqa: FBT001 - a parameter of the table
    """The restart policy decides."""
    event, failure = _told(plan, idle, is_replaceable=is_replaceable)
    assert event is Event.STALLED
    assert failure.setback is None
