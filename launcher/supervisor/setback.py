"""What a supervisor needs of others to replace an engine by a smaller one: the questions, and their answers' shape.

It must not know how an answer is found, nor how engines are started.
"""

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Protocol, TypeVar

from msgspec import Struct

from launcher.domain import Address, Command, Device, InstanceRecord, Noun, Plan, Refusal
from launcher.supervisor.pace import Pace
from launcher.supervisor.recall import Recall
from launcher.supervisor.strain import Sample


class Shortage(StrEnum):
    """How it became known that memory does not suffice."""

    AT_LOAD = "at-load"
    """The engine could not allocate while it loaded."""
    SERVING = "serving"
    """It could not allocate, or was killed for memory, while it served."""
    FORESEEN = "foreseen"
    """Its own figure, told before it allocated, exceeds what is free."""
    PRESSURE = "pressure"
    """What is free ran low while it served; nothing has failed yet."""
    LOST = "lost"
    """A worker is gone, and the memory that it gave with it."""


class Setback(Noun, frozen=True):
    """One shortage under one plan.

    ``memory`` is our name of it, ``None`` where nobody said which; ``failed_bytes`` what could not be had;
    ``told_bytes`` what the engine itself said that it takes there. ``words`` tell what happened.
    """

    plan: Plan
    shortage: Shortage
    words: str
    memory: str | None = None
    failed_bytes: int | None = None
    told_bytes: int | None = None
    lacks_cache: bool = False
    """Nothing was refused, but what was left for the cache is too little for one request."""
    n_ctx: int | None = None
    """The longest request that the engine said it could hold instead."""
    own_bytes: Mapping[str, int] = {}
    """What the engine still holds of each memory, where it runs on until the answer is known."""
    taken_bytes: int = 0
    """What others were seen to have taken of that memory, beyond what they had, when it was found short."""


class Step(Noun, frozen=True):
    """The plan to go on with: a smaller one, or the same again where others had taken the memory.

    ``story`` says line by line what was measured, what changed and what it costs.
    """

    plan: Plan
    story: tuple[str, ...]
    is_retry: bool = False
    after_backoff: bool = False
    """The same plan, when the restart policy says so: nothing fits beside what others hold, and they may give it back."""
    is_up: bool = False
    """There is room for more again: this is what was planned first, or nearer to it."""


class Stepper(Protocol):
    """Whoever finds the next plan. Its calls ask the machine and may take seconds: they are made in a thread."""

    def next_plan(self, setback: Setback) -> Step | Refusal:
        """Return the plan to go on with, or why there is none."""

    def better_plan(self, plan: Plan, own_bytes: Mapping[str, int]) -> Plan | None:
        """Return a plan that gives more than ``plan`` and would fit if its ``own_bytes`` were free again."""

    def learn_use(self, plan: Plan, measured_bytes: Mapping[str, int]) -> None:
        """Keep what a running engine was measured to hold, by memory."""

    def learn_cache(self, plan: Plan, kv_cache_tokens: int) -> None:
        """Keep that an engine told of a smaller cache than was planned."""


class Load(Noun, frozen=True):
    """What an engine has to do: requests that it was given, and how much it has delivered since the start.

    Of whole answers ``n_failed`` were errors of 5xx, and ``n_succeeded`` were none at all, counted since the start.
    """

    n_in_flight: int = 0
    n_delivered: int = 0
    n_succeeded: int = 0
    n_failed: int = 0
    paces: tuple[Pace, ...] = ()
    """The last streams that ran alone, oldest first."""


Answer = TypeVar("Answer")


class Front(Protocol):
    """The endpoint that stays while engines come and go; all calls are made in the runner's event loop."""

    async def start(self) -> Address:
        """Listen; requests wait from now on. Return the address, its port known."""

    def attach(self, base_url: str, api_key: str | None) -> None:
        """Let requests through to an engine that has proved itself, with the key that it wants."""

    def detach(self, reason: str) -> None:
        """The engine is lost."""

    async def drain(self, timeout_s: float, reason: str) -> int:
        """Send nothing more to the engine, let it end what it runs; return how many requests were taken back."""

    def publish(
        self, record: InstanceRecord, expected_ready_s: float | None, measured_bytes: Mapping[str, int]
    ) -> None:
        """Tell clients how the instance is, and what its engine was measured to hold of each memory."""

    def observe(self, sample: Sample) -> None:
        """Tell scrapers what was measured a moment ago."""

    def load(self) -> Load:
        """Return what the engine has to do."""

    async def in_turn(self, ask: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """Ask the engine something in a turn of its own, as clients have theirs; ``None`` where it gets none."""

    async def stop(self, timeout_s: float, reason: str) -> None:
        """Refuse what waits, let run what runs for so long, then stop listening."""


class MakeCommand(Protocol):
    """Makes commands of plans."""

    def __call__(self, plan: Plan, *, tell: bool) -> Command:
        """Return the command."""


class Service(Struct, frozen=True, kw_only=True):
    """What makes an engine replaceable: the front before it, who finds plans, and who makes commands of them.

    ``make_command`` returns a command on a private port that is free now, under which the engine is asked to tell its
    memory before it loads, or not; it may raise a ``LauncherError``, and is called in a thread, for it may take minutes. ``devices`` are those of the machine that the plan
    was made for; ``step_up`` lets an instance that stepped down go up again by itself.
    """

    front: Front
    stepper: Stepper
    make_command: MakeCommand
    devices: tuple[Device, ...] = ()
    step_up: bool = False
    recall: Recall | None = None
    """What engines told before they loaded, in earlier lives of this or other instances."""
