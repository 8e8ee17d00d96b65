"""The nouns of a speed that was measured beside its prediction: a figure, what was reached at one load, a report.

It must not know how anything was measured or is written. Immutable values, as all of ``domain``; they double as versioned JSON.
"""

from typing import Final

from launcher.domain import Noun, Plan

COVERAGE: Final = 0.95
"""How sure an interval is to hold the true median, where there are turns enough for one."""


class Figure(Noun, frozen=True):
    """The median of what was measured turn by turn, an interval for it, and what the plan predicted.

    ``low`` to ``high`` holds the true median with the probability ``coverage``: at least 0.95, or, where ``n_turns`` are too
    few for that, what the whole range of them has. ``ratio`` is measured by predicted; both are ``None`` where the plan
    predicts nothing.
    """

    median: float
    low: float
    high: float
    coverage: float
    n_turns: int
    predicted: float | None = None
    ratio: float | None = None


class AtLoad(Noun, frozen=True):
    """What was reached with ``n_requests`` sent at the same time, each again once all of them were answered.

    Both rates are of all requests together, in tokens/s; ``each_generation_tps`` and ``first_token_s`` are of the median one.
    """

    n_requests: int
    prompt_tps: Figure
    generation_tps: Figure
    each_generation_tps: Figure
    first_token_s: Figure


class Bench(Noun, frozen=True):
    """What ``launch bench`` found of one plan: each request had ``n_prompt`` tokens and was to be answered with ``n_generated``."""

    plan: Plan
    is_served: bool
    """Whether a served instance was asked, by its endpoint: what its other clients asked for counts in."""
    n_prompt: int
    """As the engine counted them."""
    n_generated: int
    loads: tuple[AtLoad, ...]
    """One request, then as many as the plan serves at the same time, where that is more than one."""
    elapsed_s: float
    is_complete: bool
    """False where the time was over before all was measured that was asked for."""
