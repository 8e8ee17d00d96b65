"""Decide what becomes of a request: forward, hold, replay, end or refuse.

Pure. It must not know time, sockets, headers or engines: it is given counts, and seconds as numbers.
"""

from enum import StrEnum
from typing import Final

from launcher.domain import Noun
from launcher.units import KIB, MIB


class Limits(Noun, frozen=True):
    """The bounds of one gateway. Every request and every client stays within them, whatever it does."""

    n_running: int | None = None
    """Requests with work for the engine that are forwarded at the same time; ``None``: no bound. An engine that queues
    badly, or interrupts one request for the next as llama-cpp-python does, is given what it serves in parallel."""
    n_waiting: int = 128
    """Requests that wait: for an engine, or for their turn."""
    max_wait_s: float = 300.0
    """How long a request waits while no engine is there. Waiting for one's turn at a running engine is not bounded."""
    n_replays: int = 2
    """How often a request is sent again after an engine broke off without an answer: it may be what broke it."""
    body_bytes: int = 32 * MIB
    """Of one request; it is kept in memory until its answer has begun, to be sent again."""
    bodies_bytes: int = 256 * MIB
    """Of all requests together."""
    answer_bytes: int = MIB
    """Of an answer that is no stream of events: up to here it is passed on as a whole, and so can be asked for again."""
    n_interim: int = 100
    """Of an engine, before its answer (RFC 9110, section 15.2). None is asked for, but a proxy before it may send some."""
    body_timeout_s: float = 60.0
    """For a client to send the body."""
    stall_timeout_s: float = 60.0
    """For a client to read what is sent to it, until the connection is cut."""
    idle_timeout_s: float = 30.0
    """Between two requests of a connection; also for the head of one to arrive completely."""
    line_bytes: int = 8 * KIB
    """Of the request line; also of one header field."""
    n_headers: int = 100
    n_connections: int = 480
    """Clients beyond it are told to come back; well beyond it they are cut. Each may need two file descriptors."""


class Door(StrEnum):
    """Whether requests get through to an engine."""

    OPEN = "open"
    SHUT = "shut"
    CLOSED = "closed"
    """Shut for good."""


class Admission(StrEnum):
    """What is done with a request that asks for its turn."""

    FORWARD = "forward"
    HOLD = "hold"
    REFUSE_FULL = "full"
    REFUSE_CLOSED = "closed"


_LOOKUPS: Final = frozenset(
    {
        "/apply-template",
        "/detokenize",
        "/extras/detokenize",
        "/extras/tokenize",
        "/extras/tokenize/count",
        "/lora-adapters",
        "/props",
        "/tokenize",
        "/v1/messages/count_tokens",
    }
)


def is_work(method: str, path: str) -> bool:
    """Whether a request makes the engine compute: it then takes a turn, where turns are counted."""
    return method == "POST" and path not in _LOOKUPS


def has_turn(door: Door, *, is_work: bool, n_running: int, limits: Limits) -> bool:
    """Whether one more request may be forwarded now; what is no work for the engine takes nobody's turn."""
    if door is not Door.OPEN:
        return False
    return not is_work or limits.n_running is None or n_running < limits.n_running


def admit(door: Door, *, is_work: bool, n_running: int, n_waiting: int, limits: Limits, again: bool) -> Admission:
    """Decide on a request that asks for its turn.

    Nobody who might pass is left waiting, so who may pass at once overtakes nobody. One that asks ``again`` was
    accepted before, and is not refused for want of room.
    """
    if door is Door.CLOSED:
        return Admission.REFUSE_CLOSED
    if has_turn(door, is_work=is_work, n_running=n_running, limits=limits):
        return Admission.FORWARD
    if n_waiting >= limits.n_waiting and not again:
        return Admission.REFUSE_FULL
    return Admission.HOLD


def wait_until_s(*, arrived_s: float, shut_s: float, limits: Limits) -> float:
    """Return until when a request waits for an engine that is away since ``shut_s``.

    Later arrivals never have earlier ends, so the first in line is the first to give up.
    """
    return max(arrived_s, shut_s) + limits.max_wait_s


class Loss(StrEnum):
    """How an attempt to have a request answered ended without an answer."""

    UNREACHED = "unreached"
    """The engine was not there: the request was never sent."""
    REJECTED = "rejected"
    """The engine said that it is not available (503), as one does that loads or is about to end."""
    WITHDRAWN = "withdrawn"
    """The gateway itself took the request back, to free the engine."""
    BROKEN = "broken"
    """The engine had the request, and the connection ended."""


class Remedy(StrEnum):
    """What follows from a loss."""

    REPLAY = "replay"
    """Ask for a turn again; the client knows of nothing."""
    TELL = "tell"
    """Events have been sent: end them with one that says what happened."""
    CUT = "cut"
    """A part of something else has been sent: only the connection's end can say that it is not whole."""
    REFUSE = "refuse"
    """Answer with a status that says what happened."""


_COUNTED: Final = frozenset({Loss.BROKEN, Loss.REJECTED})


def counts_as_replay(loss: Loss) -> bool:
    """Whether the loss may be the request's own doing, so that it is not repeated without end."""
    return loss in _COUNTED


def remedy(loss: Loss, *, begun: bool, is_events: bool, n_replays: int, limits: Limits) -> Remedy:
    """Decide what follows from a loss; ``begun``: the client has received a part of the answer."""
    if begun:
        return Remedy.TELL if is_events else Remedy.CUT
    if counts_as_replay(loss) and n_replays >= limits.n_replays:
        return Remedy.REFUSE
    return Remedy.REPLAY


class Outcome(StrEnum):
    """What a whole answer says of the engine that gave it."""

    SUCCESS = "success"
    FAILURE = "failure"
    """Of the engine or of the request: llama-server answers 500 to a picture or a tool that it cannot read, too."""


_NOT_IMPLEMENTED: Final = 501


def outcome_of(status: int, *, ended_in_error: bool) -> Outcome | None:
    """Return what an answer with this status says, ``None`` where it says nothing; a stream may end in an error event.

    An answer of 5xx is passed on and never sent again, 503 excepted: it may be the request's own doing, it would have to
    be held back until that is known, and clients of OpenAI's repeat such a request by themselves.
    """
    if ended_in_error or (status >= 500 and status != _NOT_IMPLEMENTED):  # noqa: PLR2004 - HTTP's classes
        return Outcome.FAILURE
    return Outcome.SUCCESS if status < 300 else None  # noqa: PLR2004


def is_of_proxy(status: int, content_type: str) -> bool:
    """Whether an answer is not an engine's but of a proxy of Ray Serve's before it, which has lost it.

    Of a replica that dies with a request it says 500 and ``Internal Server Error``, of an application that is gone 404, both
    as plain text (2.60.0, seen). Engines, and Ray Serve LLM, word errors in JSON. A request that makes the application's
    own program fail is told so too: it is sent again, as one that may kill engines is.
    """
    return content_type == "text/plain" and status in _OF_PROXY


_OF_PROXY: Final = frozenset({404, 500})
_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 1.0


def pause_s(n_losses: int) -> float:
    """Return how long to wait before trying the same engine again; a newly attached one is tried at once."""
    return min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(n_losses, 10))


_RETRY_BUSY_S: Final = 1
_RETRY_AWAY_S: Final = 5
_MAX_RETRY_S: Final = 60


def retry_after_s(door: Door, expected_s: float | None) -> int:
    """Return when a refused client should come back, in whole seconds of at least 1.

    ``expected_s`` is when the engine is expected to be ready, where somebody knows. Clients of OpenAI's heed at most
    a minute.
    """
    if door is Door.OPEN:
        return _RETRY_BUSY_S
    if expected_s is None:
        return _RETRY_AWAY_S
    return max(_RETRY_BUSY_S, min(_MAX_RETRY_S, round(expected_s)))
