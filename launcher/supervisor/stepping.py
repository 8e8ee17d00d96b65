"""Find the next plan on this machine: let memory settle, see who took it, learn from it, step down.

The lesson is written before the step is planned, so that no plan is made against it. It must not start, signal or watch
an engine, nor know how it was seen to fail.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from msgspec.structs import replace

from launcher.domain import (
    HOST_MEMORY,
    Calibration,
    Correction,
    Engine,
    Inventory,
    Lesson,
    Outcome,
    Plan,
    Refusal,
    Request,
)
from launcher.errors import LauncherError
from launcher.planner.advice import advise
from launcher.planner.calibration import machine_id
from launcher.planner.corrections import learn, limit_of, planned_bytes, remember
from launcher.planner.fit import decide
from launcher.planner.forms import prepare_forms
from launcher.planner.freed import give_back
from launcher.planner.ladder import least_relief, loaded_bytes, step_down, tightest
from launcher.planner.quality import kl_divergence
from launcher.planner.search import Alternatives
from launcher.planner.sizing import Candidate, prepare
from launcher.planner.verdicts import describe_program
from launcher.store import read_calibration, update_calibration
from launcher.supervisor.setback import Setback, Shortage, Step
from launcher.supervisor.threads import check_wanted
from launcher.units import MIB, format_bytes

_SETTLE_S: Final = 3.0
"""Until a driver has given back what a dead process held. Assumed; on the devices seen it takes below a second."""
_SETTLE_PAUSE_S: Final = 0.1
_RETURN_S: Final = 10.0
"""For a lost worker to return, where nothing fits without it. Assumed; `launch worker` starts a dead one again after 1 to 2 s."""
_RETURN_PAUSE_S: Final = 1.0
_QUIET_BYTES: Final = 32 * MIB
"""Between two looks: less change than this is none."""
_OTHERS_SHARE: Final = 64
"""Others have taken memory where free bytes fell by more than this fraction of the total: below lies the usual ebb."""


class MachineStepper:
    """Steps down on the machine that it runs on; holds what was asked and what was already retried."""

    def __init__(
        self,
        request: Request,
        *,
        probe: Callable[[], Inventory],
        argv: tuple[str, ...],
        alternatives: Alternatives,
        settle_s: float = _SETTLE_S,
        return_s: float = _RETURN_S,
    ) -> None:
        """Hold the request as it was planned first; ``probe`` measures this machine, ``argv`` words its advice."""
        self._request = request
        self._probe = probe
        self._argv = argv
        self._alternatives = alternatives
        self._settle_s = settle_s
        self._return_s = return_s
        self._prepared: tuple[Candidate, ...] | None = None
        self._retried: Plan | None = None

    # --- Down ---

    def next_plan(self, setback: Setback) -> Step | Refusal:
        """Return the same plan once where others had taken the memory and left, else the mildest that fits now.

        Where nothing fits beside what others hold now, or nothing smaller than what failed beside what they held then, it is
        the same plan once more, after a while. An engine that still runs is to go on with the same plan as often as others are
        found to have left.
        """
        plan = setback.plan
        if setback.shortage is Shortage.LOST:
            return self._plan_without_lost(setback)
        memory = setback.memory or tightest(plan)
        machine = give_back(self._settled(memory), setback.own_bytes, within_group=True)
        ordered = setback.lacks_cache and plan.vllm is not None and plan.vllm.kv_cache_memory_bytes is not None
        # What a cache of an ordered size lacks is owed to nobody else.
        others = 0 if ordered else _taken_by_others(plan, machine, memory)
        had = setback.taken_bytes if _is_taken(plan, memory, setback.taken_bytes) else 0
        measured = _describe_free(machine, memory, others, had)
        runs_on = setback.shortage is Shortage.PRESSURE
        if self._may_go_on(setback, had=had, others=others) and _still_fits(setback, memory, machine):
            self._retried = self._retried if setback.own_bytes else plan
            return Step(plan=plan, story=(setback.words, measured, "the same plan is tried once more"), is_retry=True)
        known = self._known(machine) if others or had else self._learn(setback, memory, machine)
        outcome = self._step_down(setback, memory, machine, known)
        if isinstance(outcome, Refusal) and (others or had) and not runs_on:
            wait = (
                "nothing smaller fits beside them; it is tried again, for they may give it back"
                if others
                else "there is no smaller plan; it is tried again, for they have given it back"
            )
            return Step(plan=plan, story=(setback.words, measured, wait), is_retry=True, after_backoff=True)
        if isinstance(outcome, Refusal):
            return self._refuse(outcome, (setback.words, measured), machine, known)
        return Step(plan=outcome, story=(setback.words, measured, *describe_step(plan, outcome)))

    def _may_go_on(self, setback: Setback, *, had: int, others: int) -> bool:
        """Whether others were measured to have the memory, so that the same plan may do: under pressure once they left."""
        if setback.shortage is Shortage.PRESSURE:
            return bool(had) and not others and (bool(setback.own_bytes) or self._retried != setback.plan)
        return bool(had or others) and self._retried != setback.plan

    def _plan_without_lost(self, setback: Setback) -> Step | Refusal:
        """Plan anew for what is left without the workers that are gone; where nothing fits, wait a while for them.

        Where all are there again, or were never gone, it is the same plan once more, when the restart policy says so.
        """
        plan = setback.plan
        end_s = time.monotonic() + self._return_s
        while True:
            machine = self._probe()
            lost = _lost_workers(plan, machine)
            if not lost:
                again = "all of its workers are there: the same plan is tried once more"
                return Step(plan=plan, story=(setback.words, again), is_retry=True, after_backoff=True)
            known = self._known(machine)
            outcome = decide(self._request, machine, self._candidates(), known)
            left = f"{', '.join(lost)} no longer answer{'s' if len(lost) == 1 else ''}; planned for what is left"
            if isinstance(outcome, Plan):
                return Step(plan=outcome, story=(setback.words, left, *describe_step(plan, outcome)))
            if time.monotonic() >= end_s:
                return self._refuse(outcome, (setback.words, left), machine, known)
            check_wanted()
            time.sleep(_RETURN_PAUSE_S)

    def _refuse(self, refusal: Refusal, words: tuple[str, ...], machine: Inventory, known: Calibration) -> Refusal:
        """Return a refusal with the words of what led to it, and its checked ways out."""
        return advise(
            replace(refusal, derivation=(*words, *refusal.derivation)),
            self._request,
            machine,
            argv=self._argv,
            alternatives=self._alternatives,
            calibration=known,
        )

    def _step_down(self, setback: Setback, memory: str, machine: Inventory, known: Calibration) -> Outcome:
        if setback.plan.engine is Engine.VLLM:
            from launcher.planner.vllm_ladder import Shortness, step_down_vllm  # noqa: PLC0415 - seldom needed

            short = Shortness(
                memory=memory,
                failed_bytes=setback.failed_bytes,
                is_cache=setback.lacks_cache,
                n_ctx=setback.n_ctx,
            )
            return step_down_vllm(setback.plan, short, request=self._request, inventory=machine, calibration=known)
        return step_down(
            setback.plan,
            memory=memory,
            failed_bytes=setback.failed_bytes,
            request=self._request,
            inventory=machine,
            while_serving=setback.shortage in {Shortage.SERVING, Shortage.PRESSURE},
            prepared=self._candidates(),
            calibration=known,
        )

    def _settled(self, memory: str) -> Inventory:
        """Return the machine once the free bytes of a memory have stopped rising, or the patience is over."""
        end_s = time.monotonic() + self._settle_s
        machine = self._probe()
        free = free_bytes(machine, memory)
        while free is not None and time.monotonic() < end_s:
            time.sleep(_SETTLE_PAUSE_S)
            machine = self._probe()
            before, free = free, free_bytes(machine, memory)
            if free is None or free - before < _QUIET_BYTES:
                break
        return machine

    def _candidates(self) -> tuple[Candidate, ...]:
        if self._prepared is None:
            self._prepared = prepare(self._request.profile)
        return self._prepared

    # --- Lessons ---

    def _known(self, machine: Inventory) -> Calibration:
        name = machine_id(machine)
        known, _ = read_calibration(name)
        return known or Calibration(machine=name)

    def _learn(self, setback: Setback, memory: str, machine: Inventory) -> Calibration:
        """Keep what the shortage taught, so that no plan repeats it; pressure alone teaches nothing of the engine."""
        plan = setback.plan
        if setback.shortage is Shortage.PRESSURE:
            return self._known(machine)
        if setback.lacks_cache:
            return self._keep_told(plan, setback.n_ctx, machine)
        unaccounted = _least_unaccounted(plan, memory, setback)
        if setback.told_bytes is not None:  # an engine's own figure holds under any limit
            return self._keep(plan, memory, unaccounted, Lesson.OUT_OF_MEMORY, machine)
        total = next(budget.total_bytes for budget in plan.budgets if budget.name == memory)
        return self._keep(
            plan,
            memory,
            unaccounted,
            Lesson.OUT_OF_MEMORY,
            machine,
            limit_bytes=limit_of(memory, total, machine.host),
            missing_bytes=setback.failed_bytes or least_relief(planned_bytes(plan, memory), None),
        )

    def learn_use(self, plan: Plan, measured_bytes: Mapping[str, int]) -> None:
        """Keep what a running engine was measured to hold beyond its plan.

        Less than planned says something of a device alone: in host memory what is mapped, or cached while serving, is
        not all there yet.
        """
        if plan.engine is Engine.VLLM:
            return  # it fills the share that it was given, whatever the model: what it lacks it tells (`learn_cache`)
        machine = self._probe()
        for memory, n_bytes in measured_bytes.items():
            unaccounted = n_bytes - planned_bytes(plan, memory)
            if memory != HOST_MEMORY or unaccounted > 0:
                self._keep(plan, memory, unaccounted, Lesson.MEASURED, machine)

    def learn_cache(self, plan: Plan, kv_cache_tokens: int) -> None:
        """Keep that an engine told of a smaller cache than was planned."""
        self._keep_told(plan, kv_cache_tokens, self._probe())

    def _keep_told(self, plan: Plan, kv_cache_tokens: int | None, machine: Inventory) -> Calibration:
        """Keep by how much the cache fell short of the plan, on each GPU; nothing where nobody said how large it is."""
        from launcher.planner.vllm_lessons import lacking_bytes  # noqa: PLC0415 - seldom needed

        known = self._known(machine)
        if kv_cache_tokens is not None:
            for memory, n_bytes in lacking_bytes(plan, kv_cache_tokens).items():
                known = self._keep(plan, memory, n_bytes, Lesson.MEASURED, machine)
        return known

    def _keep(
        self,
        plan: Plan,
        memory: str,
        unaccounted: int,
        lesson: Lesson,
        machine: Inventory,
        *,
        limit_bytes: int | None = None,
        missing_bytes: int = 0,
    ) -> Calibration:
        if plan.engine is Engine.VLLM:
            from launcher.planner.vllm_lessons import learn_vllm  # noqa: PLC0415 - seldom needed

            forms = prepare_forms(self._request.profile)
            form = next((form for form in forms if form.artifact.quantization == plan.quantization), None)
            make = None if form is None else partial(learn_vllm, plan, form)
        else:
            found = next((c for c in self._candidates() if c.artifact.quantization == plan.quantization), None)
            make = None if found is None else partial(learn, plan, architecture=found.architecture)
        if make is None:
            return self._known(machine)
        correction = make(
            memory=memory,
            unaccounted_bytes=unaccounted,
            lesson=lesson,
            at=time.time(),
            limit_bytes=limit_bytes,
            missing_bytes=missing_bytes,
        )
        try:
            return update_calibration(machine_id(machine), lambda known: _with(known, correction))
        except LauncherError:
            # A disk that takes nothing must not keep the instance from stepping down: the lesson holds for this step.
            return _with(self._known(machine), correction)

    # --- Up ---

    def better_plan(self, plan: Plan, own_bytes: Mapping[str, int]) -> Plan | None:
        """Return what would be planned today if this instance gave back its own memory, where that is more."""
        machine = give_back(self._probe(), own_bytes, within_group=True)
        outcome = decide(self._request, machine, self._candidates(), self._known(machine))
        return outcome if isinstance(outcome, Plan) and is_better(outcome, plan) else None


def _with(known: Calibration, correction: Correction) -> Calibration:
    return replace(known, corrections=remember(known.corrections, correction))


def free_bytes(machine: Inventory, memory: str) -> int | None:
    """Return what is free of a memory now; ``None`` where nobody knows."""
    if memory == HOST_MEMORY:
        return machine.host.free_bytes
    return next((device.free_bytes for device in machine.devices if device.name == memory), None)


def _lost_workers(plan: Plan, machine: Inventory) -> tuple[str, ...]:
    """Return the workers that the plan's engine is started with and that no engine can use now."""
    wanted = plan.install.workers if plan.install is not None else ()
    there = {address for install in machine.engines or () for address in install.workers}
    return tuple(address for address in wanted if address not in there)


def _taken_by_others(plan: Plan, machine: Inventory, memory: str) -> int:
    """Return how many bytes other processes hold now that were free when the plan was made; 0 for the usual ebb."""
    budget = next((budget for budget in plan.budgets if budget.name == memory), None)
    free = free_bytes(machine, memory)
    if budget is None or free is None:
        return 0
    taken = budget.free_bytes - free
    return taken if _is_taken(plan, memory, taken) else 0


def _is_taken(plan: Plan, memory: str, n_bytes: int) -> bool:
    """Whether so much less free memory is more than the usual ebb."""
    total = next((budget.total_bytes for budget in plan.budgets if budget.name == memory), None)
    return total is not None and n_bytes > total // _OTHERS_SHARE


def _still_fits(setback: Setback, memory: str, machine: Inventory) -> bool:
    """Whether every memory still has what the plan needs of it, by the engine's own figure too, margin included."""
    for budget in setback.plan.budgets:
        free = free_bytes(machine, budget.name)
        needed = planned_bytes(setback.plan, budget.name)
        if budget.name == memory:
            needed = max(needed, setback.told_bytes or 0)
        if free is not None and needed > replace(budget, free_bytes=free).budget_bytes:
            return False
    return True


def _least_unaccounted(plan: Plan, memory: str, setback: Setback) -> int:
    """Return the least residual with which the failed plan would not have been made.

    Where the engine told its own figure: what was kept beside the plan, and the difference. Else the plan has to be
    smaller by what failed, as far as a step makes it so: otherwise the next serve would try what lies between. What had
    not been allocated yet when it failed, the host's caches, is no part of what has to be smaller.
    """
    budget = next(budget for budget in plan.budgets if budget.name == memory)
    planned = planned_bytes(plan, memory)
    if setback.told_bytes is not None:
        return budget.residual_bytes + setback.told_bytes - planned
    if setback.shortage is Shortage.AT_LOAD:
        planned = loaded_bytes(plan, memory)
    relief = least_relief(planned, setback.failed_bytes)
    return budget.free_bytes - budget.margin_bytes - planned + relief


# --- Words ------------------------------------------------------------------------------------------------------


def _describe_free(machine: Inventory, memory: str, others: int, had: int) -> str:
    free = free_bytes(machine, memory)
    now = "what is free is not known" if free is None else f"{format_bytes(free)} of {memory} are free without it"
    if not others:
        gone = f"; other processes had taken {format_bytes(had)}, and have given it back"
        return f"{now}{gone}" if had else now
    host = machine.host
    if memory == HOST_MEMORY and free is not None and free < host.available_bytes:
        limit = format_bytes(host.limit_bytes)
        return f"{now}, {format_bytes(others)} less than when it was planned, under a limit of {limit}"
    names = [
        describe_program(process, memory)
        for device in machine.devices
        if device.name == memory
        for process in device.processes
        if process.used_bytes
    ]
    holders = f": {', '.join(names)}" if names else ""
    return f"{now}; other processes have taken {format_bytes(others)} since it was planned{holders}"


def describe_step(before: Plan, after: Plan) -> tuple[str, ...]:
    """Say what a step changes, old value and new, and what it costs in speed and quality."""
    changes = [
        ("workers", ", ".join(before.workers) or "none", ", ".join(after.workers) or "none"),
        ("engine", before.engine, after.engine),
        ("share of each GPU", before.memory_utilization, after.memory_utilization),
        ("GPUs", len(before.footprint.devices), len(after.footprint.devices)),
        ("quantization", before.quantization, after.quantization),
        ("context per request", before.n_ctx_per_request, after.n_ctx_per_request),
        ("parallel requests", before.n_parallel, after.n_parallel),
        ("layers on the GPU", before.n_gpu_layers, after.n_gpu_layers),
        ("layers with experts on the CPU", before.n_cpu_moe, after.n_cpu_moe),
        (
            "kv cache",
            f"{before.cache_type_k}/{before.cache_type_v}",
            f"{after.cache_type_k}/{after.cache_type_v}",
        ),
        ("kv cache in", before.kv_cache_dtype, after.kv_cache_dtype),
        ("tokens per step", before.n_ubatch, after.n_ubatch),
        ("prompt cache", format_bytes(before.cache_ram_bytes), format_bytes(after.cache_ram_bytes)),
    ]
    lines = [f"{what}: {old} -> {new}" for what, old, new in changes if old != new]
    if before.speed and after.speed and before.speed.generation_tps != after.speed.generation_tps:
        old_tps, new_tps = before.speed.generation_tps, after.speed.generation_tps
        lines.append(f"predicted speed: {old_tps:.3g} -> {new_tps:.3g} tokens/s")
    return tuple(lines)


def is_better(plan: Plan, than: Plan) -> bool:
    """Whether a plan gives its users more: quality first, then placement, context, parallelism."""

    def rank(item: Plan) -> tuple[float, ...]:
        return (
            -kl_divergence(item.quantization),
            min(item.n_gpu_layers, item.n_layer + 1) - item.n_cpu_moe,
            item.n_ctx_per_request,
            item.n_parallel,
            -item.kv_cache_dtype.startswith("fp8"),
            item.n_ubatch,
        )

    return rank(plan) > rank(than)
