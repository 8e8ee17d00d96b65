"""What follows from an engine on a GPU that has become slow: the watcher over rates and a device's memory as told."""

import asyncio
from typing import cast

import aiohttp
import pytest
from msgspec.structs import replace

from launcher.cli.service import GatewayFront
from launcher.domain import (
    Address,
    Footprint,
    HostUse,
    InstanceRecord,
    MemoryUse,
    ProcessId,
    Provenance,
    Speed,
    State,
)
from launcher.gateway.gateway import Gateway
from launcher.store import open_instance
from launcher.supervisor.account import Account
from launcher.supervisor.failures import Failure
from launcher.supervisor.notices import Notice
from launcher.supervisor.options import RunOptions
from launcher.supervisor.pace import Pace, PacePolicy
from launcher.supervisor.setback import Front, Load
from launcher.supervisor.speed_watch import can_spill, watch_speed
from launcher.supervisor.strain import Gauge, Sample, StrainPolicy
from launcher.supervisor.vigil import Vigil
from launcher.units import GIB, MIB
from tests.fakes.plans import plan_for

PLAN = replace(
    plan_for(),
    footprint=Footprint(devices=(MemoryUse(name="gpu0"),), host=HostUse()),
    speed=Speed(generation_tps=90.0, basis=Provenance.ASSUMED),
)
_RECORD = InstanceRecord(
    name="m",
    state=State.READY,
    supervisor=ProcessId(pid=1, start_time=1, boot_id="b"),
    address=Address(port=1),
    started_at=0.0,
    changed_at=0.0,
)
AT_ONCE = PacePolicy(sustained_s=0.0)


class Streams:
    """A front whose engine has streamed one more each time it is asked."""

    def __init__(self, rates: list[float]) -> None:
        """Hold the rates."""
        self._rates = iter(rates)
        self._paces: tuple[Pace, ...] = ()

    def load(self) -> Load:
        """Return the streams so far."""
        at_s = asyncio.get_running_loop().time()
        try:
            self._paces = (*self._paces, Pace(at_s=at_s, tps=next(self._rates)))[-16:]
        except StopIteration:
            raise asyncio.CancelledError from None
        return Load(paces=self._paces)


def watch(rates: list[float], free_bytes: int) -> tuple[list[Failure], list[Notice], list[str | None]]:
    """Watch an engine stream at these rates; return what was asked, told, and the record after each act."""
    asked: list[Failure] = []
    told: list[Notice] = []
    recorded: list[str | None] = []

    async def step_down(failure: Failure) -> None:
        asked.append(failure)

    with open_instance("watched") as instance:
        account = Account(instance, Address(port=1), PLAN, RunOptions(), told.append)
        account.tell(lambda record: recorded.append(record.slow))
        vigil = Vigil(StrainPolicy())
        vigil.begin()
        gauge = Gauge(name="gpu0", total_bytes=8 * GIB, free_bytes=free_bytes)
        host = Gauge(name="host", total_bytes=8 * GIB, free_bytes=0)
        vigil.see(Sample(at_s=0.0, gauges=(host, gauge)), is_serving=False)

        async def run() -> None:
            front = cast("Front", Streams(rates))
            await watch_speed(PLAN, front, vigil, account, step_down=step_down, policy=AT_ONCE, pause_s=0.0)

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(run())
        account.close()
    return asked, told, recorded


@pytest.fixture(autouse=True)
def _own_state(state_dir: object) -> None:
    del state_dir


def test_slow_beside_free_memory_is_told_and_nothing_more() -> None:
    """Told once, with what was expected, and once more when it is over."""
    asked, told, recorded = watch([90.0] * 5 + [10.0] * 9 + [90.0] * 5, free_bytes=4 * GIB)
    assert asked == []
    assert [notice.event for notice in told] == ["engine.slow", "engine.recovered"]
    assert told[0].facts["basis"] == Provenance.MEASURED
    assert recorded == ["it generates 10.0 tokens/s where 90 were expected", None]


def test_slow_and_out_of_device_memory_asks_for_a_smaller_plan_once() -> None:
    """By as much as the device lacks to be calm; the engine serves on until there is an answer."""
    (failure,), told, _ = watch([90.0] * 5 + [10.0] * 20, free_bytes=200 * MIB)
    assert [notice.event for notice in told] == ["engine.slow"]
    assert failure.setback is not None
    assert (failure.setback.memory, failure.setback.failed_bytes) == ("gpu0", 120 * MIB)
    assert "gpu0 is used up" in failure.message


def test_an_engine_as_fast_as_ever_says_nothing() -> None:
    """However little memory is free: that is the strain's to judge."""
    assert watch([90.0] * 30, free_bytes=0)[:2] == ([], [])


def test_a_plan_for_the_processor_cannot_spill() -> None:
    """Its memory is the kernel's, which tells."""
    assert can_spill(PLAN)
    assert not can_spill(plan_for())


@pytest.mark.parametrize(
    ("slow", "n_steps", "health", "reason"),
    [
        (None, 0, "ready", None),
        ("it is slow", 0, "degraded", "it is slow"),
        ("it is slow", 1, "degraded", "it ran out; now half; it is slow"),
        (None, 1, "degraded", "it ran out; now half"),
    ],
)
def test_clients_are_told_that_it_is_degraded(slow: str | None, n_steps: int, health: str, reason: str | None) -> None:
    """``/health`` answers 200 with the word and the reason, for a slow engine as for a smaller plan."""

    async def ask() -> dict[str, object]:
        front = GatewayFront(lambda: Gateway("m"), Address(port=0))
        address = await front.start()
        try:
            front.attach("http://127.0.0.1:1", None)
            record = replace(_RECORD, slow=slow, n_ladder_steps=n_steps, story=("it ran out", "now half"))
            front.publish(record, None, {})
            url = f"http://127.0.0.1:{address.port}"
            async with aiohttp.ClientSession(url) as session, session.get("/health") as answer:
                assert answer.status == 200
                told: dict[str, object] = await answer.json()
                return told
        finally:
            await front.stop(0.0, "over")

    told = asyncio.run(ask())
    assert (told["status"], told["reason"]) == (health, reason)
