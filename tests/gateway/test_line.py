"""Who runs and who waits."""

import asyncio

import pytest

from launcher.gateway.line import Line, RefusedError, Ticket, Upstream
from launcher.gateway.policy import Door, Limits
from tests.fakes.gateway import until

_URL = "http://127.0.0.1:1"


def _line(**limits: object) -> Line:
    return Line(Limits(**limits))  # type: ignore[arg-type] # the tests' own words


class _Crowd:
    """Requests in line, and the order in which they got their turn."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.order: list[int] = []
        self.tasks: list[asyncio.Task[Upstream]] = []

    async def come(self, ticket: Ticket | None = None) -> Ticket:
        """Ask for a turn, and stand in line by the time this returns."""
        ticket = ticket or self.line.issue(is_work=True)
        self.tasks.append(asyncio.create_task(self._pass(ticket)))
        await asyncio.sleep(0)
        return ticket

    async def reach(self, n: int) -> None:
        """Wait until so many have had their turn."""
        await until(lambda: len(self.order) == n)

    async def _pass(self, ticket: Ticket) -> Upstream:
        upstream = await self.line.enter(ticket)
        self.order.append(ticket.number)
        return upstream


async def test_requests_pass_in_the_order_of_their_arrival_and_within_the_bound() -> None:
    """While no engine is there they wait; then two at a time run, and each that leaves lets in the next."""
    line = _line(n_running=2)
    crowd = _Crowd(line)
    tickets = [await crowd.come() for _ in range(5)]
    assert (line.n_running, line.n_waiting, crowd.order) == (0, 5, [])
    line.open(_URL, None)
    for n_left in range(5):
        await crowd.reach(min(5, n_left + 2))
        assert line.n_running <= 2
        line.leave(tickets[n_left])
    assert crowd.order == [ticket.number for ticket in tickets]
    assert (line.n_running, line.n_waiting) == (0, 0)


async def test_a_lost_request_comes_back_before_later_ones() -> None:
    """The place in line is kept: what came first is first at the next engine, too."""
    line = _line(n_running=1)
    crowd = _Crowd(line)
    line.open(_URL, None)
    first = await crowd.come()
    second = await crowd.come()
    await until(lambda: crowd.order == [first.number])
    line.shut("lost")
    line.leave(first)
    first.n_losses = 1
    await crowd.come(first)
    line.open(_URL, None)
    await until(lambda: crowd.order == [first.number, first.number])
    line.leave(first)
    await until(lambda: crowd.order[-1] == second.number)


async def test_a_lookup_does_not_wait_behind_work() -> None:
    """One slot, taken, and work in line: what is no work passes."""
    line = _line(n_running=1)
    crowd = _Crowd(line)
    line.open(_URL, None)
    await crowd.come()
    await crowd.come()
    assert (await line.enter(line.issue(is_work=False))).base_url == _URL
    line.shut("away")
    lookup = await crowd.come(line.issue(is_work=False))
    line.open(_URL, None)
    await until(lambda: lookup.number in crowd.order)
    for task in crowd.tasks:
        task.cancel()


async def test_a_full_line_refuses_newcomers_only() -> None:
    """The one beyond the bound is told at once; one that was accepted before has its place."""
    line = _line(n_waiting=1)
    crowd = _Crowd(line)
    await crowd.come()
    with pytest.raises(RefusedError) as caught:
        await line.enter(line.issue(is_work=True))
    assert caught.value.code == "queue-full"
    assert line.refuses(is_work=True)
    back = line.issue(is_work=True)
    back.n_losses, back.last_generation = 1, -1
    await crowd.come(back)
    assert line.n_waiting == 2
    for task in crowd.tasks:
        task.cancel()


async def test_waiting_for_an_engine_is_bounded_and_waiting_for_a_turn_is_not() -> None:
    """The time runs while no engine is there; with one, a request waits as long as it takes."""
    line = _line(n_running=1, max_wait_s=0.05)
    crowd = _Crowd(line)
    await crowd.come()
    await crowd.come()
    for task in crowd.tasks:
        with pytest.raises(RefusedError, match="no engine was ready within 0 s: the engine is not ready yet"):
            await task
    line.open(_URL, None)
    running = await crowd.come()
    waiting = await crowd.come()
    assert line._timer is None
    line.leave(running)
    await until(lambda: crowd.order[-1] == waiting.number)


async def test_the_time_begins_anew_when_the_engine_is_lost() -> None:
    """A request that waited long for its turn is not sent away in the moment in which the engine goes."""
    line = _line(n_running=1, max_wait_s=0.2)
    crowd = _Crowd(line)
    line.open(_URL, None)
    await crowd.come()
    waiting = await crowd.come()
    waiting.arrived_s -= 1000.0
    shut_s = asyncio.get_running_loop().time()
    line.shut("lost")
    assert line._timer is not None
    assert line._timer.when() >= shut_s + 0.2
    with pytest.raises(RefusedError, match="lost"):
        await crowd.tasks[-1]


async def test_a_closed_line_sends_everybody_away_for_good() -> None:
    """Those who wait, and those who come; an engine that is attached late changes nothing."""
    line = _line()
    crowd = _Crowd(line)
    await crowd.come()
    line.close("the end")
    with pytest.raises(RefusedError, match="the end"):
        await crowd.tasks[0]
    line.open(_URL, None)
    line.shut("later")
    with pytest.raises(RefusedError, match="the end"):
        await line.enter(line.issue(is_work=True))
    assert line.door is Door.CLOSED


@pytest.mark.parametrize("late", [False, True])
async def test_who_leaves_the_line_gives_the_turn_on(late: bool) -> None:  # noqa: FBT001 - a case of the test
    """A client that goes while it waits, even in the moment in which its turn has come, blocks nobody."""
    line = _line(n_running=1)
    crowd = _Crowd(line)
    await crowd.come()
    second = await crowd.come()
    if late:
        line.open(_URL, None)  # the first has its turn, and has not run since
    crowd.tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await crowd.tasks[0]
    line.open(_URL, None)
    await until(lambda: crowd.order == [second.number])
    line.leave(second)
    assert (line.n_running, line.n_waiting) == (0, 0)


async def test_the_same_engine_is_not_asked_again_at_once_and_a_new_one_is() -> None:
    """A pause lies between two attempts at one engine; whoever pauses counts as waiting, and passes at the next attach."""
    line = _line()
    crowd = _Crowd(line)
    line.open(_URL, None)
    ticket = await crowd.come()
    await until(lambda: len(crowd.order) == 1)
    line.leave(ticket)
    ticket.n_losses = 10
    await crowd.come(ticket)
    assert (line.n_waiting, line.n_running) == (1, 0)
    line.open("http://127.0.0.1:2", None)
    assert line.n_waiting == 0, "it did not sit out its second"
    assert (await crowd.tasks[-1]).base_url == "http://127.0.0.1:2"
