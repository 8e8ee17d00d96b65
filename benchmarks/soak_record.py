"""The nouns of a soak: what was sampled, what was done to the engine, what clients got.

It must not know how any of it is measured, nor which of it is good.
"""

from collections.abc import Mapping
from typing import Final

from benchmarks.verdicts import Verdict
from launcher.domain import Noun

SCHEMA_VERSION: Final = 1


class Usage(Noun, frozen=True):
    """What a process holds at one moment.

    ``anonymous_bytes`` is memory that no file backs, heap and stacks (with what of it is swapped out): what a leak adds to.
    The others also count libraries, whose pages the kernel drops and reads again, and whose shares move with whatever
    other program has them mapped.
    """

    rss_bytes: int
    pss_bytes: int
    uss_bytes: int
    anonymous_bytes: int
    n_fds: int
    n_threads: int


class Sample(Noun, frozen=True):
    """One look at the served instance, ``at_s`` seconds after the run began.

    ``launcher`` is the process of supervisor and gateway; ``guard`` is the present engine's, ``None`` between two engines.
    ``n_processes`` counts all below the launcher, ``n_zombies`` those of them that ended and were not waited for.
    """

    at_s: float
    is_at_rest: bool
    launcher: Usage | None
    guard: Usage | None
    engine_rss_bytes: int
    n_engines: int
    """Started so far."""
    n_processes: int
    n_zombies: int
    state_bytes: int
    """Of all files of the state directory."""
    cpu_share: float
    """Of a core, launcher and engine together, since the sample before."""
    n_answers: int
    """Requests that came to an end so far."""


class Fault(Noun, frozen=True):
    """What was done to the engine, and what became of it. Seconds after the act, ``None``: it did not come to that."""

    kind: str
    at_s: float
    is_warm_up: bool
    detect_s: float | None = None
    ready_s: float | None = None
    served_s: float | None = None
    """Until a request that ended after it was ready again had a whole completion."""
    n_starts: int = 0
    n_steps: int = 0
    """Down the ladder."""
    wrong: str = ""
    story: tuple[str, ...] = ()


class Oddity(Noun, frozen=True):
    """A request that was not answered as one of its kind has to be."""

    at_s: float
    kind: str
    verdict: Verdict
    status: int
    why: str


class Record(Noun, frozen=True):
    """A run so far. ``answers`` counts by kind of request, then by what became of it."""

    schema_version: int = SCHEMA_VERSION
    began_at: str = ""
    duration_s: float = 0.0
    lasted_s: float = 0.0
    is_over: bool = False
    """Whether it came to its own end, with the last rest and the launcher told to stop."""
    seed: int = 0
    revision: str = ""
    machine: str = ""
    engine: str = ""
    limit: str = ""
    cpu_target: float = 0.0
    log_bound_bytes: int = 0
    warm_up_s: float | None = None
    """When it ended; ``None``: it has not."""
    samples: tuple[Sample, ...] = ()
    faults: tuple[Fault, ...] = ()
    answers: Mapping[str, Mapping[str, int]] = {}
    oddities: tuple[Oddity, ...] = ()
    n_odd: int = 0
    n_lost: int = 0
    longest_answer_s: float = 0.0
    n_ladder_steps: int = 0
    n_step_ups: int = 0
    n_failures: int = 0
    """Of engines, those asked for by a fault included."""
    files: Mapping[str, int] = {}
    """Of the state directory, by name, in bytes, at the end."""
    orphans: tuple[str, ...] = ()
    exit_code: int | None = None
    driver_fault: str = ""
    """Why the run ended before its time, where it did."""
