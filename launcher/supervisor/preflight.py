"""Compare what an engine says that it needs with its plan and with what is free now.

It must not know logs or processes, nor what follows from the answer. Pure.
"""

from collections.abc import Mapping
from typing import Final

from launcher.domain import HOST_MEMORY, Budget, MemoryUse, Noun, Plan
from launcher.supervisor.breakdown import Breakdown, DeviceRow
from launcher.supervisor.placement import Placement
from launcher.units import format_bytes

_MARGIN_SHARE: Final = 0.5
"""Of the plan's margin that must stay free. Assumed: half of it was for the planner's own error, of which the engine's
figure knows better; the rest is for what no figure holds, as a driver's pools."""


class Need(Noun, frozen=True):
    """One memory at one start, under our name of it (``gpu0``, ``host``) and the engine's (``CUDA0``).

    ``told`` is the engine's own figure, ``None`` where it tells none. ``extra_bytes`` are what no engine's figure holds
    and the plan counts: the prompt cache and the checkpoints on the host, a residual where the engine told nothing.
    """

    name: str
    engine_name: str
    planned: MemoryUse
    told: MemoryUse | None = None
    extra_bytes: int = 0
    free_bytes: int | None = None
    margin_bytes: int = 0

    @property
    def needed_bytes(self) -> int:
        """Bytes that the engine will take here, by its own figure where it told one, else by the plan's."""
        return (self.told or self.planned).total_bytes + self.extra_bytes

    @property
    def unaccounted_bytes(self) -> int | None:
        """Told minus planned; positive where the plan was too small."""
        return None if self.told is None else self.told.total_bytes - self.planned.total_bytes

    @property
    def shortfall_bytes(self) -> int:
        """Bytes by which the need and what must stay free exceed what is free; 0 where nobody knows what is free."""
        return 0 if self.free_bytes is None else max(0, self.needed_bytes + self.margin_bytes - self.free_bytes)


class Preflight(Noun, frozen=True):
    """Whether a start fits. ``confirmed`` by the engine's own figure, of every memory; an excess is certain at once."""

    needs: tuple[Need, ...]
    confirmed: bool

    @property
    def exceeded(self) -> tuple[Need, ...]:
        """The memories that do not suffice, the worst first."""
        short = [need for need in self.needs if need.shortfall_bytes]
        return tuple(sorted(short, key=lambda need: -need.shortfall_bytes))

    @property
    def fits(self) -> bool:
        """Whether no memory is exceeded by what is known."""
        return not self.exceeded


def judge(plan: Plan, free: Mapping[str, int], told: Breakdown | None = None) -> Preflight:
    """Return whether the plan's engine fits into what is free now.

    Args:
        plan: What is about to be loaded.
        free: Free bytes now, by our names of memories; for the host what `Host.free_bytes` says. Of a device the lesser
            of this and what the engine tells counts: a back end may know only the total.
        told: What the engine has told so far. A device that is exceeded needs no further row; that it fits is
            confirmed only by a complete breakdown. ``None`` for an engine that tells nothing before it loads: the
            plan's figure with its residual then stands, unconfirmed.
    """
    needs = (*_device_needs(plan, free, told), _host_need(plan, free, told))
    if told is not None:
        needs = tuple(need for need in needs if need.told is not None)  # the others' rows are still to come
    return Preflight(needs=needs, confirmed=told is not None and told.complete)


def _device_needs(plan: Plan, free: Mapping[str, int], told: Breakdown | None) -> list[Need]:
    """Return the planned devices in the plan's order, then those that the engine uses and nobody planned."""
    budgets = {budget.name: budget for budget in plan.budgets}
    rows = {_bare(row.use.name): row for row in told.devices} if told else {}
    needs = []
    for use, engine_name in zip(plan.footprint.devices, plan.engine_devices, strict=False):
        row, budget = rows.pop(_bare(engine_name), None), budgets.get(use.name)
        known = [n for n in (free.get(use.name), row.free_bytes if row else None) if n is not None]
        needs.append(
            Need(
                name=use.name,
                engine_name=engine_name,
                planned=use,
                told=row.use if row else _untold(use.name, told),
                extra_bytes=budget.residual_bytes if budget and told is None else 0,
                free_bytes=min(known, default=None),
                margin_bytes=_kept(budget),
            )
        )
    needs += [
        Need(name=name, engine_name=name, planned=MemoryUse(name=name), told=row.use, free_bytes=row.free_bytes)
        for name, row in rows.items()
    ]
    return needs


def _host_need(plan: Plan, free: Mapping[str, int], told: Breakdown | None) -> Need:
    host = plan.footprint.host
    budget = next((budget for budget in plan.budgets if budget.name == HOST_MEMORY), None)
    residual_bytes = budget.residual_bytes if budget and told is None else 0
    return Need(
        name=HOST_MEMORY,
        engine_name=HOST_MEMORY,
        planned=MemoryUse(
            name=HOST_MEMORY,
            weights_bytes=host.weights_bytes,
            kv_cache_bytes=host.kv_cache_bytes,
            compute_bytes=host.compute_bytes,
        ),
        told=told.host if told and told.hosts else _untold(HOST_MEMORY, told),
        extra_bytes=host.prompt_cache_bytes + host.checkpoints_bytes + residual_bytes,
        free_bytes=free.get(HOST_MEMORY),
        margin_bytes=_kept(budget),
    )


def _untold(name: str, told: Breakdown | None) -> MemoryUse | None:
    """Return nothing at all for a memory that a complete breakdown leaves out: the engine does not use it."""
    return MemoryUse(name=name) if told is not None and told.complete else None


def _kept(budget: Budget | None) -> int:
    return int(budget.margin_bytes * _MARGIN_SHARE) if budget else 0


def told_after_load(placement: Placement) -> Breakdown | None:
    """Return what a loaded engine's buffers amount to, as it printed them while loading; ``None`` where it did not.

    With it `judge` compares the plan of an engine that told nothing before; ``free`` is then left empty, for what the
    engine holds is no longer free.
    """
    if not placement.has_weights:
        return None
    devices = tuple(DeviceRow(use=use) for use in placement.devices)
    return Breakdown(devices=devices, hosts=placement.hosts, complete=True)


def describe(preflight: Preflight) -> str:
    """Return the answer in words: what each exceeded memory needs and has, or that all fits."""
    if preflight.fits:
        return "it fits" if preflight.confirmed else "it fits by the plan's figure, which the engine does not confirm"
    return "; ".join(_describe_short(need) for need in preflight.exceeded)


def _describe_short(need: Need) -> str:
    free = format_bytes(need.free_bytes or 0)
    kept = f" and keeps {format_bytes(need.margin_bytes)} free" if need.margin_bytes else ""
    return (
        f"{need.name} needs {format_bytes(need.needed_bytes)}{kept}, of which {free} is free:"
        f" {format_bytes(need.shortfall_bytes)} too much"
    )


def _bare(engine_name: str) -> str:
    """Return a device's name without the address that buffers of RPC devices carry: ``RPC0[host:port]``."""
    return engine_name.partition("[")[0]
