"""Say how the instance is, and what it serves, from what the supervisor published.

Pure. It must not know requests, connections or time.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from launcher.domain import DeviceLoad, Noun, Plan, State
from launcher.gateway.policy import Door

_OK: Final = 200
_UNAVAILABLE: Final = 503


class MemoryFigure(Noun, frozen=True):
    """One kind of bytes on one memory: ``gpu0``, ``kv-cache``. ``None``: not planned, or not measured."""

    memory: str
    kind: str
    planned_bytes: int | None = None
    measured_bytes: int | None = None


class Status(Noun, frozen=True):
    """What the supervisor publishes of its instance; the gateway tells it on, and decides nothing by it."""

    state: State = State.STARTING
    reason: str | None = None
    """Why it is not ready; or, where it is, why it gives less than was planned."""
    is_degraded: bool = False
    """It serves, by a plan that is below the first one or slower than can be expected."""
    plan: Plan | None = None
    n_restarts: int = 0
    n_ladder_steps: int = 0
    expected_ready_s: float | None = None
    """Seconds from the time of publishing until it should be ready, where that can be told."""
    memory: tuple[MemoryFigure, ...] = ()


class Observed(Noun, frozen=True):
    """What was measured a moment ago: bytes by memory, and what the devices do.

    ``own_bytes`` are those of the engine's processes, where somebody tells; ``stalled`` is the share of time in which
    all tasks waited for memory.
    """

    free_bytes: Mapping[str, int] = {}
    own_bytes: Mapping[str, int] = {}
    loads: tuple[DeviceLoad, ...] = ()
    stalled: float | None = None


class Health(StrEnum):
    """The word that ``/health`` answers with."""

    LOADING = "loading"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    FAILED = "failed"


def health_of(door: Door, status: Status) -> Health:
    """Return the health: requests get through, or why not."""
    if door is Door.OPEN:
        return Health.DEGRADED if status.is_degraded else Health.READY
    if status.state is State.FAILED:
        return Health.FAILED
    return Health.STOPPING if door is Door.CLOSED else Health.LOADING


class PlanSummary(Noun, frozen=True):
    """What a client may want to know of a plan; no path, no device, no address."""

    model: str
    engine: str
    quantization: str
    n_ctx_per_request: int
    n_parallel: int
    n_layer: int
    n_gpu_layers: int
    n_cpu_moe: int
    cache_type_k: str
    cache_type_v: str


class Report(Noun, frozen=True):
    """The answer of ``/health``; a client without a key gets only ``status``."""

    status: Health
    state: State
    reason: str | None
    plan: PlanSummary | None
    n_restarts: int
    n_ladder_steps: int
    n_running: int
    n_waiting: int


def summarise(plan: Plan) -> PlanSummary:
    """Return what is told of a plan."""
    return PlanSummary(**{name: getattr(plan, name) for name in PlanSummary.__struct_fields__})


def describe_health(
    door: Door, why_shut: str, status: Status, *, n_running: int, n_waiting: int, in_full: bool
) -> tuple[int, bytes]:
    """Return status code and JSON: 200 while requests get through, 503 otherwise, as engines do."""
    health = health_of(door, status)
    code = _OK if health in {Health.READY, Health.DEGRADED} else _UNAVAILABLE
    if not in_full:
        return code, msgspec.json.encode({"status": health})
    report = Report(
        status=health,
        state=status.state,
        reason=status.reason or (None if door is Door.OPEN else why_shut),
        plan=None if status.plan is None else summarise(status.plan),
        n_restarts=status.n_restarts,
        n_ladder_steps=status.n_ladder_steps,
        n_running=n_running,
        n_waiting=n_waiting,
    )
    return code, msgspec.json.encode(report)


def describe_models(name: str, plan: Plan | None, created_at: int) -> bytes:
    """Return OpenAI's list of models: the one that is served, under the profile's name."""
    return msgspec.json.encode({"object": "list", "data": [_describe_model(name, plan, created_at)]})


def describe_model(name: str, plan: Plan | None, created_at: int) -> bytes:
    """Return OpenAI's description of the one model."""
    return msgspec.json.encode(_describe_model(name, plan, created_at))


def _describe_model(name: str, plan: Plan | None, created_at: int) -> dict[str, object]:
    model: dict[str, object] = {"id": name, "object": "model", "created": created_at, "owned_by": "launcher"}
    if plan is not None:
        model["meta"] = {"n_ctx": plan.n_ctx_per_request, "quantization": plan.quantization}
    return model
