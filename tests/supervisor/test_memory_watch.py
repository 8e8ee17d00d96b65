"""What a shortage while serving leads to, by the answer that another plan gets."""

import asyncio
from collections.abc import Mapping
from typing import cast

import pytest
from msgspec.structs import replace

from launcher.cli.service import GatewayFront
from launcher.domain import HOST_MEMORY, Address, Budget, Plan, Refusal, RefusalCode
from launcher.gateway.gateway import Gateway
from launcher.store import open_instance
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
