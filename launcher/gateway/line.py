"""Own who runs and who waits: requests pass one after another, as the door and the bounds let them.

It must not know HTTP, bodies or answers; what is decided stands in `policy`.
"""

import asyncio
from bisect import insort
from dataclasses import dataclass, field
from typing import Final

from launcher.gateway import policy
from launcher.gateway.policy import Admission, Door, Limits

_SLACK_S: Final = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """An engine that is there. ``generation`` counts the engines that were."""

    base_url: str
    generation: int
    api_key: str | None = field(default=None, repr=False)
    is_behind_proxy: bool = False
    """Whether somebody else's proxy stands before it, who says in words of its own that it was lost."""


class RefusedError(Exception):
    """The request gets no turn; ``code`` says why."""

    def __init__(self, code: str, message: str) -> None:
        """Hold the reason, for machines and for people."""
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(order=True, slots=True)
class Ticket:
    """A request's place in line, kept over all its attempts: the order of arrival."""

    number: int
    arrived_s: float = field(compare=False)
    is_work: bool = field(compare=False, default=True)
    """Counts against ``n_running``."""
    n_losses: int = field(compare=False, default=0)
    n_replays: int = field(compare=False, default=0)
    first_loss_s: float | None = field(compare=False, default=None)
    last_generation: int = field(compare=False, default=0)
    rests_until_s: float = field(compare=False, default=0.0)
    """Before it is not sent to the engine of ``last_generation`` again; to another at once."""
    turn: asyncio.Future[Upstream] | None = field(compare=False, default=None, repr=False)


class Line:
    """The door, the requests that passed it, and those that wait before it."""

    def __init__(self, limits: Limits) -> None:
        """Begin with the door shut: no engine is there yet."""
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Ticket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._n_tickets = 0
        self._generation = 0
        self._upstream: Upstream | None = None
        self._shut_s = self._loop.time()
        self.door = Door.SHUT
        self.reason = "the engine is not ready yet"
        """Why the door is not open, for the clients."""
        self.n_running = 0
        self._expected_s: float | None = None

    def expect(self, in_s: float | None) -> None:
        """Note in how many seconds an engine should be there, where that is known."""
        self._expected_s = None if in_s is None else self._loop.time() + in_s

    def expected_in_s(self) -> float | None:
        """Return in how many seconds an engine should be there; it may be overdue."""
        return None if self._expected_s is None else max(0.0, self._expected_s - self._loop.time())

    @property
    def n_waiting(self) -> int:
        """Requests that wait, also those that rest before another attempt."""
        return len(self._waiting)

    def refuses(self, *, is_work: bool) -> bool:
        """Whether a request that arrives now would be refused."""
        return self._admit(is_work=is_work, again=False) in {Admission.REFUSE_FULL, Admission.REFUSE_CLOSED}

    def refusal(self) -> RefusedError:
        """Say why a request gets no turn now."""
        if self.door is Door.CLOSED:
            return RefusedError("stopping", self.reason)
        why = "" if self.door is Door.OPEN else f" ({self.reason})"
        return RefusedError("queue-full", f"{self.n_waiting} requests are already waiting{why}")

    def issue(self, *, is_work: bool) -> Ticket:
        """Give a request its place."""
        self._n_tickets += 1
        return Ticket(number=self._n_tickets, arrived_s=self._loop.time(), is_work=is_work)

    # --- The door ---

    def open(self, base_url: str, api_key: str | None, *, is_behind_proxy: bool = False) -> None:
        """Let requests through to an engine that is ready; a line that was closed stays closed."""
        if self.door is Door.CLOSED:
            return
        self._generation += 1
        self._upstream = Upstream(
            base_url=base_url, generation=self._generation, api_key=api_key, is_behind_proxy=is_behind_proxy
        )
        self.door = Door.OPEN
        self._stop_timer()
        self._let_pass()

    def shut(self, reason: str) -> None:
        """Let nobody through; who waits, waits on."""
        if self.door is not Door.CLOSED:
            self.reason = reason
        if self.door is Door.OPEN:
            self.door = Door.SHUT
            self._shut_s = self._loop.time()
            self._upstream = None
            self._watch_time()

    def close(self, reason: str) -> None:
        """Send everybody away, for good."""
        self.door, self.reason, self._upstream = Door.CLOSED, reason, None
        self._stop_timer()
        for ticket in self._waiting:
            self._send_away(ticket, "stopping", reason)
        self._waiting.clear()

    # --- Requests ---

    async def enter(self, ticket: Ticket) -> Upstream:
        """Return once it is the ticket's turn; every return is to be followed by ``leave``.

        Raises:
            RefusedError: the line is full or closed, or no engine came in time.
        """
        again = ticket.n_losses > 0
        if again and ticket.last_generation == self._generation and self.door is Door.OPEN:
            return await self._wait(ticket, policy.pause_s(ticket.n_losses))
        match self._admit(is_work=ticket.is_work, again=again):
            case Admission.REFUSE_FULL | Admission.REFUSE_CLOSED:
                raise self.refusal()
            case Admission.FORWARD:
                return self._grant(ticket)
            case Admission.HOLD:
                return await self._wait(ticket)

    def reaches(self, upstream: Upstream) -> bool:
        """Whether that engine is still the one that requests get through to."""
        return self._upstream is not None and self._upstream.generation == upstream.generation

    def leave(self, ticket: Ticket) -> None:
        """Give the turn to the next."""
        self.n_running -= ticket.is_work
        self._let_pass()

    def _admit(self, *, is_work: bool, again: bool) -> Admission:
        return policy.admit(
            self.door,
            is_work=is_work,
            n_running=self.n_running,
            n_waiting=self.n_waiting,
            limits=self._limits,
            again=again,
        )

    def _grant(self, ticket: Ticket) -> Upstream:
        assert self._upstream is not None  # noqa: S101 - the door is open
        self.n_running += ticket.is_work
        ticket.last_generation = self._generation
        return self._upstream

    async def _wait(self, ticket: Ticket, rest_s: float = 0.0) -> Upstream:
        turn: asyncio.Future[Upstream] = self._loop.create_future()
        ticket.turn = turn
        insort(self._waiting, ticket)
        if rest_s:
            ticket.rests_until_s = self._loop.time() + rest_s
            self._loop.call_at(ticket.rests_until_s, self._let_pass)
        self._watch_time()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(ticket)  # its turn had come in the same moment
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
            raise

    def _let_pass(self) -> None:
        """Keep this true: nobody waits who may pass."""
        if self.door is not Door.OPEN or not self._waiting:
            return
        staying = []
        for ticket in self._waiting:
            if not self._may_pass(ticket):
                staying.append(ticket)
            elif ticket.turn is not None and not ticket.turn.done():
                ticket.turn.set_result(self._grant(ticket))
        self._waiting = staying

    def _may_pass(self, ticket: Ticket) -> bool:
        # The loop's timers fire up to its clock's resolution too early.
        if ticket.last_generation == self._generation and self._loop.time() + _SLACK_S < ticket.rests_until_s:
            return False
        return policy.has_turn(self.door, is_work=ticket.is_work, n_running=self.n_running, limits=self._limits)

    # --- Time ---

    def _watch_time(self) -> None:
        """See to it that the first in line gives up when its time is over; the others never do so before it."""
        if self._timer is None and self._waiting and self.door is Door.SHUT:
            self._timer = self._loop.call_at(self._end_s(self._waiting[0]), self._on_time)

    def _end_s(self, ticket: Ticket) -> float:
        return policy.wait_until_s(arrived_s=ticket.arrived_s, shut_s=self._shut_s, limits=self._limits)

    def _on_time(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        while self._waiting and self._end_s(self._waiting[0]) <= now_s:
            ticket = self._waiting.pop(0)
            waited = f"no engine was ready within {self._limits.max_wait_s:.0f} s: {self.reason}"
            self._send_away(ticket, "not-ready", waited)
        self._watch_time()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @staticmethod
    def _send_away(ticket: Ticket, code: str, message: str) -> None:
        if ticket.turn is not None and not ticket.turn.done():
            ticket.turn.set_exception(RefusedError(code, message))
