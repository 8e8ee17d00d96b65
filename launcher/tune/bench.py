"""Measure how fast one plan's engine is, at one request and at as many as it serves at once, within a bounded time.

It must not know who started the engine, what stands before it, or what becomes of the figures: nothing is remembered.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeAlias

import aiohttp

from launcher.domain import Plan
from launcher.errors import EngineFailedError
from launcher.measured import Bench
from launcher.tune.points import Sample, Workload
from launcher.tune.requests import measure, warm_up
from launcher.tune.turns import Turn, at_load, shorten, turn_of

Report: TypeAlias = Callable[[str], None]

_N_SEEDS: Final = 1 << 32


class _Turns:
    """The turns of one measurement so far, and the time that is left for more."""

    def __init__(self, session: aiohttp.ClientSession, plan: Plan, workload: Workload, end_s: float) -> None:
        self._session = session
        self._plan = plan
        self.workload = workload
        self._end_s = end_s
        # Of its own in every run: an engine that was asked before may have the prompts of then in a cache.
        self._seeds = itertools.count(random.SystemRandom().randrange(_N_SEEDS))
        self._longest_s: dict[int, float] = {}
        self.n_prompt = workload.n_prompt
        self.done: dict[int, list[Turn]] = {}

    def has_time(self, n_requests: int) -> bool:
        """Whether one more turn can end in time, judged by the longest of this load so far."""
        return time.monotonic() + self._longest_s.get(n_requests, 0.0) <= self._end_s

    async def take(self, n_requests: int) -> Turn:
        """Send so many requests at once, and wait for all."""
        begin_s = time.monotonic()
        samples = await _at_once(self._measure() for _ in range(n_requests))
        taken_s = time.monotonic() - begin_s
        self._longest_s[n_requests] = max(taken_s, self._longest_s.get(n_requests, 0.0))
        self.n_prompt = samples[0].n_prompt
        try:
            turn = turn_of(samples)
        except ValueError as error:
            message = f"the engine's answers cannot be timed: {error}"
            raise EngineFailedError(message) from error
        self.done.setdefault(n_requests, []).append(turn)
        return turn

    def _measure(self) -> Coroutine[Any, Any, Sample]:
        return measure(self._session, self._plan, self.workload, seed=next(self._seeds))


async def _at_once(measures: Iterable[Coroutine[Any, Any, Sample]]) -> list[Sample]:
    """Return what all requests came to; the first fault ends the others."""
    tasks = [asyncio.ensure_future(one) for one in measures]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def bench(
    session: aiohttp.ClientSession,
    plan: Plan,
    *,
    is_served: bool,
    report: Report,
    workload: Workload = Workload(),  # noqa: B008 - an immutable value
    n_turns: int,
    max_s: float,
) -> Bench:
    """Measure ``n_turns`` at each load, in turns, or as many as ``max_s`` seconds allow; what runs then is broken off.

    Raises:
        EngineFailedError: the engine failed, or not one request was answered in time.
        EndpointAccessError: the endpoint wants a key, or another one.
    """
    begin_s = time.monotonic()
    turns = _Turns(session, plan, workload, begin_s + max_s)
    try:
        async with asyncio.timeout(max_s):
            turns.workload = shorten(workload, plan.n_ctx_per_request, await warm_up(session, plan))
            is_complete = await _take_all(turns, plan, n_turns, report)
    except TimeoutError:
        is_complete = False
    if 1 not in turns.done:
        message = f"no request of {turns.n_prompt} tokens was answered within {max_s:g} s"
        raise EngineFailedError(message, help="give it more time with `--seconds`")
    loads = [at_load(n, found, plan.speed, turns.n_prompt) for n, found in sorted(turns.done.items())]
    return Bench(
        plan=plan,
        is_served=is_served,
        n_prompt=turns.n_prompt,
        n_generated=turns.workload.n_generated,
        loads=tuple(loads),
        elapsed_s=time.monotonic() - begin_s,
        is_complete=is_complete,
    )


async def _take_all(turns: _Turns, plan: Plan, n_turns: int, report: Report) -> bool:
    """Take turns at both loads, every other time the larger first; return whether all of them could be taken."""
    loads = tuple(dict.fromkeys((1, plan.n_parallel)))
    for number in range(n_turns):
        for n_requests in loads if number % 2 == 0 else reversed(loads):
            if not turns.has_time(n_requests):
                return False
            turn = await turns.take(n_requests)
            asked = "1 request" if n_requests == 1 else f"{n_requests} requests at once"
            report(
                f"  turn {number + 1} of {n_turns}, {asked}: {turn.prompt_tps:.0f} prompt, "
                f"{turn.generation_tps:.1f} generated tokens/s, first token after {turn.first_token_s:.2f} s"
            )
    return True
