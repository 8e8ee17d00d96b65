"""What an application's run is given: the endpoint and the account beside it, what is served, how long is waited.

It must not know what is done with any of it.
"""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Protocol, TypeAlias

from msgspec import Struct

from launcher.backends.ray_serve import Value
from launcher.cluster.applications import Proxies
from launcher.domain import Address, InstanceRecord

Signals: TypeAlias = Callable[
    [asyncio.AbstractEventLoop, Callable[[signal.Signals], None]], AbstractContextManager[None]
]


class Front(Protocol):
    """The endpoint that stays, whatever becomes of the application."""

    async def start(self) -> Address:
        """Listen; requests wait from now on. Return the address, its port known."""

    def attach(self, base_url: str, api_key: str | None, *, is_behind_proxy: bool) -> None:
        """Let requests through to what answers below ``base_url``."""

    def detach(self, reason: str) -> None:
        """Take every request back and hold it."""

    async def stop(self, timeout_s: float, reason: str) -> None:
        """Refuse what waits, let run what runs for so long, then stop listening."""


class Account(Protocol):
    """What others can know of the instance."""

    record: InstanceRecord

    def notify(self, event: str, text: str, *, transient: bool = False, **facts: str | float | bool | None) -> None:
        """Report one act, in words and with its facts; a terminal or disk that does not take it is no fault."""

    def update(self, **changes: object) -> None:
        """Replace fields of the record."""

    def write_line(self, line: str) -> None:
        """Append a line to the engine's log."""


class Chance(StrEnum):
    """Whether a replica without a node can have one."""

    NOW = "now"
    """There is room, as far as the planner sees: Ray is about to place it."""
    BUSY = "busy"
    """There would be, if others gave back what they hold."""
    NEVER = "never"


class Room(Struct, frozen=True):
    """The planner's word on an application that Ray does not place, which Ray itself does not tell."""

    chance: Chance
    words: str = ""
    help: str | None = None
    details: tuple[str, ...] = ()


class Serving(Struct, frozen=True):
    """What is served: the application as Ray takes it, the name that it must list, and how it is asked for a token."""

    application: Value
    model: str
    canary_path: str
    canary_body: str
    proxies: Proxies

    @property
    def name(self) -> str:
        """The application's name."""
        return str(self.application["name"])


class FollowOptions(Struct, frozen=True):
    """Times, in seconds."""

    poll_s: float = 1.0
    """Between two looks: Ray itself needs six to eleven seconds to see that a replica is lost."""
    logs_s: float = 5.0
    """Between two looks at the replicas' logs."""
    unplaced_s: float = 120.0
    """Without a node for some replica, or with one that answers nothing, until a start is given up."""
    quiet_s: float = 1800.0
    """Without a change and without a line in any log while weights are fetched and loaded, until a start is given up.
    Assumed: a hub's progress is not logged line by line."""
    explain_s: float = 15.0
    """Without a node until the scheduler and the planner are asked why: the first tells what it cannot place every five."""
    drain_s: float = 5.0
    """For running requests at the end."""
    remove_s: float = 60.0
    """For Ray to end the replicas: 2 s for ones that run, 20 for one without a node (measured)."""
