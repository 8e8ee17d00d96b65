"""Find the fastest settings for one model on this machine, and what its memory delivers, within a bounded time.

Threads are compared first, then engines with the best of them, then flash attention and steps on the best engine; at
last the winner is measured against the plan's own settings. Points are measured in turns, so that a slow minute falls on all of them. One engine
runs at a time. It must not know how engines are started (the caller hands that in) or where results are kept.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias

import aiohttp
from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Calibration,
    EngineInstall,
    Inventory,
    MeasuredRates,
    Plan,
    Refusal,
    Request,
    Settings,
    Tuning,
)
from launcher.errors import EngineFailedError, EngineMissingError, LauncherError, PortInUseError
from launcher.planner.calibration import build_of, machine_id
from launcher.planner.fit import decide
from launcher.planner.footprint.llama_cpp import LlamaCppConfig, place_layers
from launcher.planner.sizing import Candidate, prepare
from launcher.planner.speed import count_work, learn_efficiency, learn_prompt_flops, split_legs
from launcher.tune.points import (
    Point,
    Rate,
    Sample,
    Workload,
    best_threads,
    choose,
    other_steps,
    point_of,
    rate_of,
    survivors,
    thread_counts,
)
from launcher.tune.requests import measure, warm_up

OpenEngine: TypeAlias = Callable[[Plan], AbstractAsyncContextManager[aiohttp.ClientSession]]
"""Starts a plan's engine for as long as the block lasts."""
Report: TypeAlias = Callable[[str], None]

DEFAULT_MAX_S: Final = 240.0
_N_PER_START: Final = 2
"""Requests measured at each start of an engine, after one to warm up."""
_GIVE_UP: Final = 2.5
"""A run that takes this many times the quickest so far is ended: no median could make up for it."""
_PATIENCE_S: Final = 10.0
"""No run is ended sooner, unless the time is over: a start can be late by seconds for what is no fault of its settings (a
busy machine, an engine that takes its time to load). Assumed; real runs of the smallest model take four seconds or more,
which allows as much."""
_N_ROUNDS: Final = 2
_N_FINAL_ROUNDS: Final = 4
_N_FINALISTS: Final = 3
_N_BUILD: Final = 8  # characters of a build's digest that are shown
_FINAL_SHARE: Final = 0.3
"""Of the time, kept for the last comparison."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What a calibration found: the settings to use with each build measured, the winner's first."""

    calibration: Calibration
    tunings: tuple[Tuning, ...]
    default: Rate
    """Of the winner's engine with the settings that the plan has without a calibration."""
    elapsed_s: float
    complete: bool
    """False where the time ran out before every point was measured."""
    left_out: tuple[str, ...]
    """Points that failed or took too long, each with why."""


class _Race:
    """The measurements of one calibration so far, and the time that is left for more."""

    def __init__(self, open_engine: OpenEngine, workload: Workload, report: Report, end_s: float) -> None:
        self._open_engine = open_engine
        self._workload = workload
        self._report = report
        self._end_s = end_s
        self._quickest_s = float("inf")
        self._n_runs = 0
        self.complete = True
        self.samples: dict[Point, list[Sample]] = {}
        self.failed: dict[Point, LauncherError] = {}
        self.left_out: list[str] = []

    @property
    def n_prompt(self) -> int:
        """Prompt tokens as the engine counted them in the first request: the same text everywhere."""
        return next((s.n_prompt for samples in self.samples.values() for s in samples), self._workload.n_prompt)

    def rates(self, points: Iterable[Point]) -> dict[Point, Rate]:
        """Return the medians of those points that were measured."""
        return {
            point: rate_of(samples, self.n_prompt, self._workload.n_generated)
            for point in points
            if (samples := self.samples.get(point))
        }

    def has_time(self, reserve_s: float = 0.0) -> bool:
        """Whether another start can end in time, judged by the quickest so far."""
        needed_s = self._quickest_s if self.samples else 0.0
        return time.monotonic() + needed_s <= self._end_s - reserve_s

    async def run(self, plans: Sequence[tuple[Point, Plan]], n_rounds: int, reserve_s: float = 0.0) -> None:
        """Measure all points in turns, forwards and backwards; drop the hopeless after each round."""
        alive = [(point, plan) for point, plan in plans if point not in self.failed]
        for n_round in range(n_rounds):
            for point, plan in alive if n_round % 2 == 0 else reversed(alive):
                if point in self.failed:
                    continue
                if not self.has_time(reserve_s) and (self.samples or reserve_s):
                    self.complete = False
                    return
                await self._measure(point, plan)
            rates = self.rates(point for point, _ in alive)
            if not rates:
                return
            worth = survivors(rates)
            alive = [(point, plan) for point, plan in alive if point in worth]
            if len(alive) == 1:
                return

    def _limit_s(self) -> float | None:
        """Return how long a run may take: never past the end, nor several times the quickest; no limit for the first."""
        if not self.samples:
            return None
        return min(self._end_s - time.monotonic(), max(_PATIENCE_S, _GIVE_UP * self._quickest_s))

    async def _measure(self, point: Point, plan: Plan) -> None:
        begin_s = time.monotonic()
        limit_s = self._limit_s()
        found = self.samples.setdefault(point, [])
        try:
            async with asyncio.timeout(limit_s), self._open_engine(plan) as session:
                await warm_up(session, plan)
                for _ in range(_N_PER_START):
                    self._n_runs += 1
                    found.append(await measure(session, plan, self._workload, seed=self._n_runs))
                self._quickest_s = min(self._quickest_s, time.monotonic() - begin_s)
        except (EngineFailedError, PortInUseError) as error:
            self._leave_out(point, plan, error)
            return
        except TimeoutError:
            if time.monotonic() >= self._end_s:  # no fault of the point: with more time it might have been measured
                self.complete = False
                return
            self._leave_out(point, plan, EngineFailedError(f"given up after {time.monotonic() - begin_s:.0f} s"))
            return
        finally:
            if not found:
                del self.samples[point]
        last = found[-1]
        left_s = max(0.0, self._end_s - time.monotonic())
        self._report(
            f"  {describe(point, plan)}: {last.prompt_tps:.0f} prompt, {last.generation_tps:.1f} generated tokens/s"
            f" ({left_s:.0f} s left)"
        )

    def _leave_out(self, point: Point, plan: Plan, fault: LauncherError) -> None:
        self.failed[point] = fault
        self.left_out.append(f"{describe(point, plan)}: {fault.message}")
        self._report(f"  {self.left_out[-1]}")


def describe(point: Point, plan: Plan) -> str:
    """Say in a few words which engine a point is of, and which settings it has."""
    threads = str(point.n_threads)
    if point.n_threads_batch != point.n_threads:
        threads += f"/{point.n_threads_batch}"
    flash = "on" if point.flash_attn else "off"
    return f"{plan.engine} {point.build[:_N_BUILD]}, threads {threads}, batch {point.n_batch}/{point.n_ubatch}, flash attention {flash}"


class _Planner:
    """Plans of one request on one machine, at the points that are tried."""

    def __init__(self, request: Request, inventory: Inventory) -> None:
        self.request = request
        self._inventory = inventory
        self._prepared = prepare(request.profile)
        self._bases: dict[str, Plan] = {}

    def base(self, install: EngineInstall) -> Plan | Refusal:
        """Return the plan without a calibration, for one engine."""
        outcome = decide(self.request, replace(self._inventory, engines=(install,)), self._prepared)
        if isinstance(outcome, Plan):
            self._bases[build_of(install)] = outcome
            # All engines are compared on the weights that the first was given.
            settings = replace(self.request.settings, quantization=outcome.quantization)
            self.request = replace(self.request, settings=settings)
        return outcome

    def at(self, point: Point) -> Plan | None:
        """Return the plan at a point; ``None`` where it does not fit so, or the user fixed otherwise."""
        base = self._bases[point.build]
        assert base.install is not None  # noqa: S101 - it was planned for an installed engine
        wanted = {
            "n_threads": point.n_threads,
            "n_batch": point.n_batch,
            "n_ubatch": point.n_ubatch,
            "flash_attn": point.flash_attn,
            "n_gpu_layers": base.n_gpu_layers if base.engine_devices else None,
            "n_cpu_moe": base.n_cpu_moe or None,
        }
        fixed: Settings = self.request.settings
        if any(getattr(fixed, name) not in {None, value} for name, value in wanted.items() if value is not None):
            return None
        request = replace(self.request, settings=replace(fixed, **wanted), force=True)
        outcome = decide(request, replace(self._inventory, engines=(base.install,)), self._prepared)
        if not isinstance(outcome, Plan):
            return None
        same_place = (outcome.n_gpu_layers, outcome.n_cpu_moe) == (base.n_gpu_layers, base.n_cpu_moe)
        plan = replace(outcome, n_threads_batch=point.n_threads_batch)
        return plan if same_place and point_of(plan, point.build) == point else None

    def is_all_on_devices(self, point: Point) -> bool:
        """Whether the host computes nothing of the model: its threads then make no difference."""
        base = self._bases[point.build]
        return bool(base.engine_devices) and base.is_whole

    def with_plans(self, points: Iterable[Point]) -> list[tuple[Point, Plan]]:
        """Pair the points that can be planned with their plans."""
        return [(point, plan) for point in dict.fromkeys(points) if (plan := self.at(point)) is not None]

    def candidate(self, plan: Plan) -> Candidate:
        """Return the artifact that a plan serves."""
        return next(c for c in self._prepared if c.artifact.quantization == plan.quantization)


async def calibrate(
    request: Request,
    inventory: Inventory,
    *,
    open_engine: OpenEngine,
    host_bandwidth_bytes_per_s: float,
    report: Report,
    known: Calibration | None = None,
    workload: Workload = Workload(),  # noqa: B008 - an immutable value
    max_s: float = DEFAULT_MAX_S,
) -> Outcome | Refusal:
    """Measure until the best point is known or the time is over; at least one point is measured.

    ``known`` is what earlier calibrations of this machine found of other models; it is kept.

    Raises:
        EngineFailedError: no engine could be measured.
        EngineMissingError: no engine is installed that could serve the model.
    """
    begin_s = time.monotonic()
    planner = _Planner(request, inventory)
    race = _Race(open_engine, workload, report, begin_s + max_s)
    bases, refusal = _plan_all(planner, inventory)
    if not bases:
        if refusal is not None:
            return refusal
        message = "no engine is installed that could be measured"
        raise EngineMissingError(
            message, help="`launch hardware` lists the engines found; README.md says how to get one"
        )
    best = await _search(race, planner, [point for point, _ in bases], inventory=inventory, max_s=max_s, report=report)
    if best is None:
        raise next(iter(race.failed.values()))
    rates = race.rates(race.samples)
    winners = [best, *_best_of_others(rates, best)]
    plans = {point: planner.at(point) or dict(bases)[point] for point in winners}
    tunings = [
        _tuning(
            point,
            plans[point],
            planner.candidate(plans[point]),
            rate=rates[point],
            n_prompt=race.n_prompt,
            n_generated=workload.n_generated,
        )
        for point in winners
    ]
    learned = _learn_rates(
        plans[best], planner.candidate(plans[best]), inventory, tunings[0], host_bandwidth_bytes_per_s
    )
    return Outcome(
        calibration=_merge(known, machine_id(inventory), learned, tunings),
        tunings=tuple(tunings),
        default=next((rates[point] for point, _ in bases if point.build == best.build and point in rates), rates[best]),
        elapsed_s=time.monotonic() - begin_s,
        complete=race.complete,
        left_out=tuple(race.left_out),
    )


def _plan_all(planner: _Planner, inventory: Inventory) -> tuple[list[tuple[Point, Plan]], Refusal | None]:
    """Plan the request for every engine found that the profile allows; keep the last refusal."""
    allowed = planner.request.settings.engine
    engines = planner.request.profile.engines if allowed is None else (allowed,)
    bases: list[tuple[Point, Plan]] = []
    refusal = None
    for install in inventory.engines or ():
        if install.engine in engines:
            outcome = planner.base(install)
            if isinstance(outcome, Plan):
                bases.append((point_of(outcome, build_of(install)), outcome))
            else:
                refusal = outcome
    return bases, refusal


async def _search(
    race: _Race, planner: _Planner, bases: Sequence[Point], *, inventory: Inventory, max_s: float, report: Report
) -> Point | None:
    """Return the best point; ``None`` where no engine could be measured.

    Threads come first, on the first engine that works: where another program keeps a core busy, too many are so slow
    that to compare engines with them would take all the time.
    """
    reserve_s = _FINAL_SHARE * max_s
    first = await _first_that_works(race, planner, bases)
    if first is None:
        return None
    threads = {"n_threads": first.n_threads, "n_threads_batch": first.n_threads_batch}
    if not planner.is_all_on_devices(first):
        report("threads")
        counts = thread_counts(inventory.host.n_cpu, inventory.host.n_cpu_physical)
        points = [first, *(replace(first, n_threads=n, n_threads_batch=n) for n in counts)]
        await race.run(planner.with_plans(points), _N_ROUNDS, reserve_s)
        threads["n_threads"], threads["n_threads_batch"] = best_threads(race.rates(points))
    if len(bases) > 1:
        report("engines")
        working = [replace(base, **threads) for base in bases if base not in race.failed]
        await race.run(planner.with_plans(working), _N_ROUNDS, reserve_s)
    best = choose(race.rates(race.samples), ())
    report("flash attention")
    await race.run(
        planner.with_plans([replace(best, **threads), replace(best, flash_attn=not best.flash_attn, **threads)]),
        _N_ROUNDS,
        reserve_s,
    )
    best = choose(race.rates(race.samples), [best])
    report("steps")
    steps = other_steps(best, planner.request.profile.wishes.n_ctx_per_request)
    await race.run(planner.with_plans([best, *steps]), _N_ROUNDS, reserve_s)
    default = next(base for base in bases if base.build == best.build)
    report("the best again, beside the plan's own settings")
    # Of all that was measured: a point of an earlier step may have been the best, and only seemed to lose.
    rates = {point: rate for point, rate in race.rates(race.samples).items() if point.build == best.build}
    finalists = [default, *sorted(rates, key=lambda point: rates[point].request_s)[:_N_FINALISTS]]
    await race.run(planner.with_plans(finalists), _N_FINAL_ROUNDS)
    return choose(race.rates(race.samples), [default])


async def _first_that_works(race: _Race, planner: _Planner, bases: Sequence[Point]) -> Point | None:
    """Measure engines at the plan's own settings until one could be."""
    for base in bases:
        await race.run(planner.with_plans([base]), 1)
        if base in race.samples:
            return base
    return None


def _best_of_others(rates: Mapping[Point, Rate], best: Point) -> list[Point]:
    """Return the fastest point of every other build that was measured."""
    others = dict.fromkeys(point.build for point in rates if point.build != best.build)
    return [min((p for p in rates if p.build == build), key=lambda p: rates[p].request_s) for build in others]


def _tuning(point: Point, plan: Plan, candidate: Candidate, *, rate: Rate, n_prompt: int, n_generated: int) -> Tuning:
    return Tuning(
        engine=plan.engine,
        build=point.build,
        architecture=candidate.architecture.name,
        weights_bytes=candidate.weights.total_bytes,
        n_gpu_layers=plan.n_gpu_layers,
        n_cpu_moe=plan.n_cpu_moe,
        n_threads=point.n_threads,
        n_threads_batch=point.n_threads_batch,
        n_batch=point.n_batch,
        n_ubatch=point.n_ubatch,
        flash_attn=point.flash_attn,
        prompt_tps=rate.prompt_tps,
        generation_tps=rate.generation_tps,
        n_prompt=n_prompt,
        n_generated=n_generated,
        measured_at=time.time(),
    )


def _learn_rates(
    plan: Plan, candidate: Candidate, inventory: Inventory, tuning: Tuning, host_bandwidth_bytes_per_s: float
) -> MeasuredRates | None:
    """Return what one memory delivered, where one did all the work; shared work says nothing of each."""
    names = [use.name for use in plan.footprint.devices]
    devices = tuple(device for name in names for device in inventory.devices if device.name == name)
    shares = tuple(plan.tensor_split) or (1.0,) * len(devices)
    config = LlamaCppConfig(
        n_ctx=plan.n_ctx,
        n_gpu_layers=plan.n_gpu_layers,
        shares=shares,
        n_cpu_moe=plan.n_cpu_moe,
        flash_attn=plan.flash_attn,
    )
    work = count_work(
        candidate.architecture,
        candidate.weights,
        place_layers(plan.n_layer, plan.n_gpu_layers, shares if devices else ()),
        config,
        plan.footprint,
        depth=min(1.0, (tuning.n_prompt + tuning.n_generated / 2) / plan.n_ctx),
    )
    host = replace(inventory.host, bandwidth_bytes_per_s=host_bandwidth_bytes_per_s)
    legs = tuple(split_legs(work, devices, host))
    if len(legs) != 1:
        return None
    leg = legs[0]
    return MeasuredRates(
        name=leg.name,
        bandwidth_bytes_per_s=leg.bandwidth_bytes_per_s,
        efficiency=learn_efficiency(leg, tuning.generation_tps),
        prompt_flops=learn_prompt_flops(candidate.architecture, tuning.prompt_tps),
    )


def _merge(
    known: Calibration | None, machine: str, rates: MeasuredRates | None, tunings: Sequence[Tuning]
) -> Calibration:
    """Lay the new figures over the old: of this model's tunings none is kept, of other models' all are."""
    old = known if known is not None and known.machine == machine else Calibration(machine=machine)
    weights = {(tuning.architecture, tuning.weights_bytes) for tuning in tunings}
    kept = [t for t in old.tunings if (t.architecture, t.weights_bytes) not in weights]
    kept_rates = [r for r in old.rates if rates is None or r.name != rates.name]
    return replace(
        old,
        rates=(*kept_rates, *((rates,) if rates is not None else ())),
        tunings=(*kept, *tunings),
    )
