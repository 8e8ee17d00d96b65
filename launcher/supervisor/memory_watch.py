"""Watch the memories of one instance: what an engine tells of them and what is measured of them becomes events.

It must not know phases, nor what follows from an event. What was seen is kept in `vigil`, and judged by `strain` and
`preflight`.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from msgspec.structs import replace

from launcher.domain import Command, Plan, Refusal
from launcher.supervisor import failures, throttling
from launcher.supervisor.account import Account
from launcher.supervisor.failures import Failure
from launcher.supervisor.machine import Event
from launcher.supervisor.options import RunOptions
from launcher.supervisor.placement import Placement
from launcher.supervisor.preflight import Preflight, judge, told_after_load
from launcher.supervisor.setback import Service, Step
from launcher.supervisor.speed_watch import can_spill, watch_speed
from launcher.supervisor.stepping import describe_step
from launcher.supervisor.strain import Sample
from launcher.supervisor.threads import aside
from launcher.supervisor.vigil import Vigil
from launcher.supervisor.vllm_told import compare, fewer_tokens
from launcher.supervisor.watching import Post
from launcher.units import MIB

_LOOK_S: Final = 0.3
"""For an urgent look, which takes a few milliseconds; a driver that is slower than this is not waited for."""
_RETURN_S: Final = 1.0
"""For what a dead process held to be given back, as long as it is seen to be."""
_RETURN_PAUSE_S: Final = 0.1
_QUIET_BYTES: Final = 32 * MIB
"""Between two looks: less change than this is none."""


class MemoryWatch:
    """The watchers of an instance's memories, over all its engines, where another plan can follow."""

    def __init__(self, service: Service, vigil: Vigil, account: Account, post: Post) -> None:
        """Hold who answers for another plan, and where news go."""
        self._service = service
        self._vigil = vigil
        self._account = account
        self._notify = account.notify
        self._post = post
        self._offered: Plan | None = None
        self._ring: Callable[[], None] | None = None
        self._has_seen = asyncio.Event()
        self._slowed: defaultdict[str, throttling.Slowed] = defaultdict(throttling.Slowed)

    # --- Before an engine loads, and once it has ---

    async def look_before_start(self, plan: Plan) -> None:
        """Have what is free measured now; return once it is, or cannot be in time: the start is then not judged by it.

        Where it is too little it is looked at again for as long as it becomes more: a driver may still be taking back
        what a dead process held.
        """
        end_s = time.monotonic() + _RETURN_S
        before: int | None = None
        while await self._look_anew():
            short = sum(need.shortfall_bytes for need in self._vigil.foresee(plan).exceeded)
            is_rising = before is None or before - short >= _QUIET_BYTES
            if not short or not is_rising or time.monotonic() >= end_s:
                return
            before = short
            await asyncio.sleep(_RETURN_PAUSE_S)

    async def _look_anew(self) -> bool:
        """Have a look made; return whether one that was begun since has come in time."""
        if self._ring is None:
            return False
        asked_s = time.monotonic()
        self._ring()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                while not self._vigil.has_seen_since(asked_s):
                    self._has_seen.clear()
                    await self._has_seen.wait()
        return self._vigil.has_seen_since(asked_s)

    def recall(self, plan: Plan, command: Command) -> bool:
        """Whether a start can be judged by what this build told of the same command before, so that it need not tell."""
        told = self._service.recall.find(command, plan.install) if self._service.recall is not None else None
        if told is not None:
            self._vigil.remember(plan, told)
        return self._vigil.is_known(plan)

    def hear(self, plan: Plan, command: Command, line: str) -> None:
        """End an engine by its own account, before it allocates what is not there."""
        verdict = self._vigil.hear(plan, line)
        if verdict is None:
            return
        told = self._vigil.told_by(plan)
        if verdict.confirmed and told is not None and self._service.recall is not None:
            self._service.recall.keep(command, plan.install, told)
        if not verdict.fits:
            self._post(Event.OVERDRAWN, failures.of_preflight(verdict, plan, self._vigil.free_bytes(plan)))
        elif verdict.confirmed:
            self.confirm(verdict, "it fits, by its own account")

    def confirm(self, verdict: Preflight, words: str) -> None:
        """Say that a start fits by the engine's own figure, and how far the plan's was off."""
        n_bytes = {need.name: need.unaccounted_bytes for need in verdict.needs}
        self._notify("engine.preflight", words, unaccounted_bytes=str(n_bytes))

    def compare(self, plan: Plan, realised: Placement) -> None:
        """Say how far the plan's figure was off, for an engine that tells none before it has loaded."""
        told = None if self._vigil.has_told(plan) else told_after_load(realised)
        if told is not None:
            off = {need.name: need.unaccounted_bytes for need in judge(plan, {}, told).needs}
            self._notify("engine.unconfirmed", "loaded by the plan's figure", unaccounted_bytes=str(off))
        found = None if realised.vllm is None else compare(realised.vllm, plan)
        if found is not None:
            self._notify("engine.measured", found.text, transient=False, **found.facts)

    # --- While it serves ---

    @contextlib.contextmanager
    def sampling(
        self, plan: Plan | None, *, top: Callable[[], int | None], on_sample: Callable[[Sample], None]
    ) -> Iterator[None]:
        """Look at the plan's memories again and again, for as long as the block lasts; ``on_sample`` is called in the loop."""
        # Imported here: an engine without a front does not need it.
        from launcher.supervisor.pressure import sampling  # noqa: PLC0415

        loop = asyncio.get_running_loop()

        def tell(call: Callable[[Any], None], value: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(call, value)

        with sampling(
            plan,
            self._service.devices,
            top=top,
            on_sample=lambda sample: tell(on_sample, sample),
            on_lost=lambda error: tell(self._on_blind, error),
        ) as self._ring:
            yield

    def _on_blind(self, error: Exception) -> None:
        self._ring = None
        self._notify("memory.blind", f"memory can no longer be watched: {type(error).__name__}: {error}")

    def judge(self, sample: Sample, plan: Plan | None, *, is_serving: bool) -> Failure | None:
        """Take in a sample; return the failure where a memory of a serving engine has become strained by it."""
        self._service.front.observe(sample)
        for load in sample.loads:
            self._slowed[load.name], words = throttling.look(self._slowed[load.name], load)
            if words is not None:
                self._notify("device.throttled", words, device=load.name, reasons=", ".join(load.throttled))
        strain = self._vigil.see(sample, is_serving=is_serving)
        self._has_seen.set()
        if strain is None or plan is None:
            return None
        failure = failures.of_strain(strain, plan)
        self._notify("memory.strained", failure.message, memory=strain.memory, free_bytes=strain.free_bytes)
        return failure

    async def ask_before_draining(self, failure: Failure) -> None:
        """Give up a serving engine only for a plan that is known: where there is none, it goes on while it can."""
        assert failure.setback is not None  # noqa: S101 - strain is one
        setback = replace(failure.setback, own_bytes=dict(self._vigil.own_bytes()))
        answer = await aside(self._service.stepper.next_plan, setback)
        if isinstance(answer, Refusal):
            self._notify("ladder.none", f"{failure.message}; it serves on, for no smaller plan keeps its floors")
            return
        if answer.is_retry:
            self._vigil.look_anew()
            self._notify("memory.relieved", f"{'; '.join(answer.story[:-1])}: it serves on")
            return
        self._post(Event.STRAINED, replace(failure, step=answer))

    def watchers(
        self, plan: Plan, realised: Placement, publish: Callable[[], None], options: RunOptions
    ) -> Iterator[Coroutine[None, None, None]]:
        """Return what watches an engine that has just become ready, until it is cancelled."""
        n_tokens = None if realised.vllm is None else fewer_tokens(realised.vllm, plan)
        if n_tokens is not None:
            yield asyncio.to_thread(self._service.stepper.learn_cache, plan, n_tokens)
        yield self._review(plan, publish, options.review_s)
        if can_spill(plan):
            yield watch_speed(
                plan,
                self._service.front,
                self._vigil,
                self._account,
                step_down=self.ask_before_draining,
                policy=options.pace,
                pause_s=options.health_pause_s,
            )

    async def _review(self, plan: Plan, publish: Callable[[], None], pause_s: float) -> None:
        """Now and then keep what the engine was seen to hold, and see whether there is room for more again."""
        while True:
            await asyncio.sleep(pause_s)
            publish()
            if news := self._vigil.news():
                await asyncio.to_thread(self._service.stepper.learn_use, plan, news)
            if self._account.record.n_ladder_steps and not self._vigil.is_strained():
                await self._look_up(plan)

    async def _look_up(self, plan: Plan) -> None:
        """Offer a better plan; take it, where the profile says so, once it has been on offer at two looks in a row."""
        better = await aside(self._service.stepper.better_plan, plan, self._vigil.own_bytes())
        was_offered, self._offered = better is not None and self._offered == better, better
        offer = None if better is None else f"there is room again: {'; '.join(describe_step(plan, better))}"
        if self._account.record.offer != offer:
            self._account.update(offer=offer)
            if offer is not None:
                self._notify("ladder.offer", offer)
        if self._service.step_up and was_offered and better is not None and offer is not None:
            step_up = Step(plan=better, story=(offer,), is_up=True)
            self._post(Event.ROOMIER, Failure(message=offer, step=step_up))
