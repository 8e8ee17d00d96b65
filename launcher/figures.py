"""The nouns of what a served instance tells of itself while it serves: its load, its pace, the memories it lives in.

Like `launcher.domain`, it knows nothing of how any of it is read or shown.
"""

from launcher.domain import InstanceView, Noun


class MemoryFigures(Noun, frozen=True):
    """One memory of an instance, in bytes; ``None`` where nobody tells."""

    name: str
    """``gpu0``, or ``host``."""
    held_bytes: int | None = None
    """By the engine's processes."""
    free_bytes: int | None = None
    """For anybody, where a limit binds within that."""
    planned_bytes: int | None = None
    utilization: float | None = None
    """Of a device: the share of time in which it computed."""


class Figures(Noun, frozen=True):
    """What an endpoint told at one moment."""

    health: str | None = None
    """The word of its ``/health``."""
    n_running: int = 0
    n_waiting: int = 0
    n_stream_events: int = 0
    """Events of streams that were passed on since the endpoint was made, about one per token."""
    stream_tps: float | None = None
    """How many of them there were per second since the look before; ``None`` where there was none."""
    memories: tuple[MemoryFigures, ...] = ()


class Sighting(Noun, frozen=True):
    """An instance as its record says, and what its endpoint told; ``unread`` says why that told nothing."""

    view: InstanceView
    figures: Figures | None = None
    unread: str | None = None
