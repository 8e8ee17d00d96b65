"""What a shortage while serving leads to, by the answer that another plan gets."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import cast

import pytest
from msgspec.structs import replace

from launcher.cli.service import GatewayFront
from launcher.domain import HOST_MEMORY, Address, Budget, Footprint, HostUse, Plan, Refusal, RefusalCode
from launcher.gateway.gateway import Gateway
from launcher.store import open_instance
from launcher.supervisor import pressure
from launcher.supervisor.account import Account
from launcher.supervisor.failures import Failure
from launcher.supervisor.machine import Event
from launcher.supervisor.memory_watch import MemoryWatch
from launcher.supervisor.notices import Notice
from launcher.supervisor.options import RunOptions
from launcher.supervisor.setback import MakeCommand, Service, Setback, Step
from launcher.supervisor.strain import Gauge, Sample, StrainPolicy
from launcher.supervisor.vigil import Vigil
from launcher.units import GIB, MIB
from tests.fakes.plans import plan_for

PLAN = replace(
    plan_for(),
    budgets=(Budget(name=HOST_MEMORY, total_bytes=16 * GIB, free_bytes=8 * GIB, margin_bytes=GIB),),
)
PLAN_OF_4_GIB = replace(PLAN, footprint=Footprint(devices=(), host=HostUse(weights_bytes=4 * GIB)), budgets=())
RETRY = Step(plan=PLAN, story=("memory runs short", "they have given it back", "the same plan"), is_retry=True)
SMALLER = Step(plan=replace(PLAN, n_ctx=1024), story=("memory runs short", "context: 2048 -> 1024"))
NONE = Refusal(code=RefusalCode.EXCEEDS_HOST_MEMORY, model="m", fact="nothing smaller is left")


class Answers:
    """A stepper that gives one answer, and keeps what it was asked."""

    def __init__(self, answer: Step | Refusal) -> None:
        """Hold the answer."""
        self.answer = answer
        self.asked: list[Setback] = []

    def next_plan(self, setback: Setback) -> Step | Refusal:
        """Give it."""
        self.asked.append(setback)
        return self.answer

    def better_plan(self, plan: Plan, own_bytes: Mapping[str, int]) -> Plan | None:
        """Know none."""

    def learn_use(self, plan: Plan, measured_bytes: Mapping[str, int]) -> None:
        """Learn nothing."""

    def learn_cache(self, plan: Plan, kv_cache_tokens: int) -> None:
        """Learn nothing."""


def host(free_bytes: int, at_s: float) -> Sample:
    """A sample of a host of which the engine holds 1 GiB."""
    gauge = Gauge(name=HOST_MEMORY, total_bytes=16 * GIB, free_bytes=free_bytes, own_bytes=GIB)
    return Sample(at_s=at_s, gauges=(gauge,))


def run_short(answers: Answers, n_times: int = 1) -> tuple[list[tuple[Event, Failure]], list[Notice]]:
    """Let others take 7 GiB beside a serving engine, so many times; return what was posted and told."""
    posted: list[tuple[Event, Failure]] = []
    told: list[Notice] = []

    def post(event: Event, failure: Failure | None = None, /) -> None:
        assert failure is not None
        posted.append((event, failure))

    with open_instance("watched") as instance:
        account = Account(instance, Address(port=1), PLAN, RunOptions(), told.append)
        vigil = Vigil(StrainPolicy())
        service = Service(
            front=GatewayFront(lambda: Gateway("m"), Address(port=1)),
            stepper=answers,
            make_command=cast("MakeCommand", None),
        )
        watch = MemoryWatch(service, vigil, account, post)
        vigil.begin()
        for n in range(n_times):
            watch.judge(host(7 * GIB, 3.0 * n), PLAN, is_serving=True)
            failure = watch.judge(host(60 * MIB, 3.0 * n + 1), PLAN, is_serving=True)
            assert failure is not None
            asyncio.run(watch.ask_before_draining(failure))
        account.close()
    return posted, told


def look_before_start(looks: Iterator[int | None]) -> tuple[Vigil, float]:
    """Have a start that needs 4 GiB looked at; each look finds so much free, or never ends. Return how long it took."""

    async def run() -> float:
        service = Service(
            front=GatewayFront(lambda: Gateway("m"), Address(port=1)),
            stepper=Answers(NONE),
            make_command=cast("MakeCommand", None),
        )
        watch = MemoryWatch(service, vigil, account, lambda *_: None)
        over = threading.Event()

        @contextmanager
        def sampling(*_: object, on_sample: Callable[[Sample], None], **__: object) -> Iterator[Callable[[], None]]:
            def look() -> None:
                at_s, free = time.monotonic(), next(looks)
                if free is None:
                    over.wait(60)
                else:
                    on_sample(host(free, at_s))

            with ThreadPoolExecutor(1) as pool:
                yield lambda: void(pool.submit(look))
                over.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pressure, "sampling", sampling)
            with watch.sampling(
                PLAN, top=lambda: None, on_sample=lambda sample: void(watch.judge(sample, PLAN, is_serving=False))
            ):
                vigil.bury(time.monotonic())
                began_s = time.monotonic()
                await watch.look_before_start(PLAN_OF_4_GIB)
                return time.monotonic() - began_s

    with open_instance("watched") as instance:
        account = Account(instance, Address(port=1), PLAN, RunOptions(), lambda _: None)
        vigil = Vigil(StrainPolicy())
        lasted_s = asyncio.run(run())
        account.close()
    return vigil, lasted_s


def void(_: object) -> None:
    """Return nothing."""


@pytest.mark.usefixtures("state_dir")
def test_what_is_free_is_looked_at_until_it_suffices_or_rises_no_more() -> None:
    """A driver may give back late; what somebody holds does not rise."""
    rising = iter((GIB, 2 * GIB, 3 * GIB, 5 * GIB, 6 * GIB))
    vigil, _ = look_before_start(rising)
    assert vigil.free_bytes(PLAN)[HOST_MEMORY] == 5 * GIB
    held = iter((GIB, GIB + MIB, 5 * GIB))
    vigil, _ = look_before_start(held)
    assert vigil.free_bytes(PLAN)[HOST_MEMORY] == GIB + MIB
    assert vigil.is_fresh


@pytest.mark.usefixtures("state_dir")
def test_a_driver_that_hangs_does_not_keep_an_engine_from_its_start() -> None:
    """The wait is short, and the start is then judged by nothing that was seen before."""
    vigil, lasted_s = look_before_start(iter((None,)))
    assert not vigil.is_fresh
    assert lasted_s < 5


@pytest.mark.usefixtures("state_dir")
def test_memory_that_was_given_back_changes_nothing_and_is_watched_on() -> None:
    """The engine serves on, undrained; the next time memory is taken it is told and asked again."""
    answers = Answers(RETRY)
    posted, told = run_short(answers, n_times=3)
    assert posted == []
    assert [notice.event for notice in told] == ["memory.strained", "memory.relieved"] * 3
    assert "they have given it back: it serves on" in told[1].text
    assert [setback.own_bytes for setback in answers.asked] == [{HOST_MEMORY: GIB}] * 3
    assert min(setback.taken_bytes for setback in answers.asked) > 6 * GIB


@pytest.mark.usefixtures("state_dir")
def test_memory_that_others_keep_is_left_to_them() -> None:
    """With a smaller plan known the engine is given up, and the failure still says what others had."""
    ((event, failure),), _ = run_short(Answers(SMALLER))
    assert (event, failure.step) == (Event.STRAINED, SMALLER)
    assert failure.setback is not None
    assert failure.setback.taken_bytes > 6 * GIB
    assert failure.setback.own_bytes == {}


@pytest.mark.usefixtures("state_dir")
def test_where_nothing_smaller_is_left_it_serves_on() -> None:
    """No plan, no drain: it is told, once."""
    posted, told = run_short(Answers(NONE))
    assert posted == []
    assert [notice.event for notice in told] == ["memory.strained", "ladder.none"]
    assert "it serves on, for no smaller plan keeps its floors" in told[-1].text
