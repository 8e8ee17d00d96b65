"""Which placement is best where a part of the model has to stay on the host.

It weighs placements and cache types against each other; it must not know how a placement is found, nor what is chosen
where nothing need be offloaded.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from launcher.domain import Objective
from launcher.planner.ask import Ask
from launcher.planner.choice import pareto_front
from launcher.planner.partial import (
    Experience,
    least_on_host,
    may_leave,
    most_tps,
    partial_trials,
    with_larger_step,
    with_wide_cache,
)
from launcher.planner.sizing import Candidate, Shape, Trial, first_shapes, loss_of
from launcher.planner.target import Target

WORTH_A_SMALLER_CACHE: Final = 4
"""A cache smaller than f16's is taken where it takes this part of the layers off the host, by which generation is up to a
third faster; assumed. What it costs beside its loss, the arithmetic on packed rows, is in no prediction."""


class _Terms(Struct, frozen=True, kw_only=True):
    """What is asked on which target, what was learnt there so far, and how fast a trial has to be."""

    ask: Ask
    target: Target
    known: Experience
    min_tps: float


def choose_offloaded(candidates: Sequence[Candidate], ask: Ask, target: Target) -> Trial | None:
    """Return the best trial above the floors by objective: the fastest, or the one with the least on the host."""
    terms = _Terms(ask=ask, target=target, known=Experience(), min_tps=ask.min_tps)
    candidates = [c for c in candidates if c.weights.total_bytes <= target.budget_bytes]
    if ask.objective is Objective.SPEED:
        best = _fastest(_best_of_each(candidates, terms))
    else:
        best = _least_offloaded(candidates, terms)
    return None if best is None else with_larger_step(best, ask, terms.known)


def list_offloaded(candidates: Sequence[Candidate], ask: Ask, target: Target) -> list[Trial]:
    """Return those of the candidates' best trials that no other beats in both quality and speed, however slow."""
    terms = _Terms(ask=ask, target=target, known=Experience(), min_tps=0.0)
    front = pareto_front(_best_of_each(candidates, terms))
    return [with_larger_step(trial, ask, terms.known) for trial in front]


def _best_of_each(candidates: Sequence[Candidate], terms: _Terms) -> list[Trial]:
    trials = (_best_of(candidate, terms) for candidate in candidates)
    return [trial for trial in trials if trial is not None]


def _least_offloaded(candidates: Sequence[Candidate], terms: _Terms) -> Trial | None:
    """Return the trial with the fewest layers on the host, then the best quality, among the best of each candidate.

    What cannot keep fewer on the host than the best so far, or as many at less loss, is not sized.
    """
    bounds = []
    for idx, candidate in enumerate(candidates):
        starts = first_shapes(candidate, terms.ask, terms.target)
        least_loss = loss_of(candidate, starts[0].cache_type_k, starts[0].cache_type_v)
        bounds.append((least_on_host(candidate, terms.ask, terms.target, starts), least_loss, idx))
    found: list[tuple[int, float, int, int, Trial]] = []
    for n_layer, kl, idx in sorted(bounds):
        if found and (n_layer, kl) > min(found)[:2]:
            continue
        trial = _best_of(candidates[idx], terms)
        if trial is not None:
            found.append((trial.layers_on_host, trial.kl, trial.offloaded_bytes, idx, trial))
    return min(found)[-1] if found else None


def _best_of(candidate: Candidate, terms: _Terms) -> Trial | None:
    """Return a candidate's fastest trial that is quick enough.

    It has a smaller cache where there is none without, or where it takes so many layers off the host as are worth it.
    """
    usual, *smaller = first_shapes(candidate, terms.ask, terms.target)
    best = _fastest_quick(candidate, usual, terms)
    for start in smaller:
        if best is None:
            best = _fastest_quick(candidate, start, terms)
            continue
        n_layer = best.layers_on_host - -(-best.layers_on_host // WORTH_A_SMALLER_CACHE)
        if may_leave(best, terms.ask, start, n_layer):
            trial = _fastest_quick(candidate, start, terms)
            best = trial if trial is not None and trial.layers_on_host <= n_layer else best
    if best is None:
        return None
    wide = with_wide_cache(best, terms.ask)
    return wide if wide.speed.generation_tps >= terms.min_tps else best


def _fastest_quick(candidate: Candidate, start: Shape, terms: _Terms) -> Trial | None:
    if terms.min_tps and most_tps(candidate, terms.ask, terms.target, start) < terms.min_tps:
        return None
    trial = _fastest(partial_trials(candidate, terms.ask, terms.target, start, terms.known))
    return trial if trial is not None and trial.speed.generation_tps >= terms.min_tps else None


def _fastest(trials: Iterable[Trial]) -> Trial | None:
    return max(trials, key=lambda t: (t.speed.generation_tps, -t.kl), default=None)
