"""What stands around a served engine: the gateway as the runner's front, the stepper, and how a plan becomes a command."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from launcher.domain import Address, Command, InstanceRecord, Inventory, Plan, Request
    from launcher.gateway.gateway import Gateway
    from launcher.gateway.health import MemoryFigure
    from launcher.gateway.keys import Keys
    from launcher.inventory.workers import Workers
    from launcher.planner.search import Alternatives
    from launcher.supervisor.service_manager import ServiceManager
    from launcher.supervisor.setback import Answer, Load, Service
    from launcher.supervisor.strain import Sample

_TELL_PAUSE_S = 1.0


class GatewayFront:
    """The gateway in the runner's words."""

    def __init__(self, make_gateway: "Callable[[], Gateway]", address: "Address") -> None:
        """Hold how the gateway is made, in the event loop in which it will live, and where it is to listen."""
        self._make = make_gateway
        self._gateway: Gateway | None = None
        self._address = address
        self.has_engine = False
        """Whether requests are let through to an engine."""

    async def start(self) -> "Address":
        """Listen, and return where."""
        gateway = self._make()
        address = await gateway.start(self._address)
        self._gateway = gateway
        return address

    def attach(self, base_url: str, api_key: str | None, *, is_behind_proxy: bool = False) -> None:
        """Let requests through to an engine."""
        self.has_engine = True
        if self._gateway is not None:
            self._gateway.attach(base_url, api_key=api_key, is_behind_proxy=is_behind_proxy)

    def detach(self, reason: str) -> None:
        """Take everything back from the engine."""
        self.has_engine = False
        if self._gateway is not None:
            self._gateway.detach(reason)

    async def drain(self, timeout_s: float, reason: str) -> int:
        """Let running requests end, for so long."""
        return 0 if self._gateway is None else await self._gateway.drain(timeout_s, reason)

    def publish(
        self, record: "InstanceRecord", expected_ready_s: float | None, measured_bytes: "Mapping[str, int]"
    ) -> None:
        """Tell clients what the record says of the instance, and scrapers what it holds."""
        from launcher.gateway.health import Status

        if self._gateway is None:
            return
        less = (*(record.story if record.n_ladder_steps else ()), *filter(None, (record.slow,)))
        self._gateway.publish(
            Status(
                state=record.state,
                reason=record.reason or "; ".join(less) or None,
                is_degraded=record.n_ladder_steps > 0 or record.slow is not None,
                plan=record.plan,
                n_restarts=record.n_restarts,
                n_ladder_steps=record.n_ladder_steps,
                expected_ready_s=expected_ready_s,
                memory=_figures(record.plan, measured_bytes),
            )
        )

    def observe(self, sample: "Sample") -> None:
        """Pass on what was measured."""
        from launcher.gateway.health import Observed

        if self._gateway is None:
            return
        self._gateway.observe(
            Observed(
                free_bytes={gauge.name: gauge.free_bytes for gauge in sample.gauges},
                own_bytes={gauge.name: gauge.own_bytes for gauge in sample.gauges if gauge.own_bytes is not None},
                loads=sample.loads,
                stalled=sample.stalled,
            )
        )

    def load(self) -> "Load":
        """Return what the engine has to do."""
        from launcher.supervisor.pace import Pace
        from launcher.supervisor.setback import Load

        if self._gateway is None:
            return Load()
        load = self._gateway.load()
        return Load(
            n_in_flight=load.n_running,
            n_delivered=load.n_received_bytes,
            n_succeeded=load.n_succeeded,
            n_failed=load.n_failed,
            paces=tuple(Pace(at_s=pace.at_s, tps=pace.tps) for pace in load.paces),
        )

    async def in_turn(self, ask: "Callable[[], Awaitable[Answer]]") -> "Answer | None":
        """Ask the engine something in a turn of its own."""
        return None if self._gateway is None else await self._gateway.in_turn(ask)

    async def stop(self, timeout_s: float, reason: str) -> None:
        """Stop listening, once."""
        gateway, self._gateway = self._gateway, None
        if gateway is not None:
            await gateway.stop(timeout_s, reason)


def _figures(plan: "Plan | None", measured_bytes: "Mapping[str, int]") -> "tuple[MemoryFigure, ...]":
    """Return planned bytes by memory and kind, and what was measured of each memory as a whole."""
    from launcher.domain import HOST_MEMORY
    from launcher.gateway.health import MemoryFigure
    from launcher.planner.corrections import planned_bytes

    if plan is None:
        return ()
    uses = [*plan.footprint.devices, plan.footprint.host]
    names = [*(use.name for use in plan.footprint.devices), HOST_MEMORY]
    kinds = ("weights", "kv_cache", "compute")
    figures = [
        MemoryFigure(memory=name, kind=kind, planned_bytes=getattr(use, f"{kind}_bytes"))
        for name, use in zip(names, uses, strict=True)
        for kind in kinds
    ]
    totals = [
        MemoryFigure(
            memory=name, kind="total", planned_bytes=planned_bytes(plan, name), measured_bytes=measured_bytes.get(name)
        )
        for name in names
    ]
    return (*figures, *totals)


def _tell_hash(path: "Path", n_bytes: int) -> None:
    """Say why nothing happens for a while: a file is read as a whole before its first use."""
    import sys

    from launcher.units import format_bytes

    sys.stderr.write(f"checking the sha256 of {path.name} once: {format_bytes(n_bytes)}\n")
    sys.stderr.flush()


def check_weights(plan: "Plan", manager: "ServiceManager | None") -> "Path":
    """Have the plan's files compared with their digests, and return where they are.

    It may take minutes; the service manager, if there is one, is told that it goes on.
    """
    import time

    from launcher.fetch import require_weights
    from launcher.supervisor.threads import check_wanted
    from launcher.units import format_bytes

    told_s = 0.0

    def tell_read(path: "Path", n_bytes: int) -> None:
        nonlocal told_s
        check_wanted()
        if manager is not None and time.monotonic() - told_s >= _TELL_PAUSE_S:
            told_s = time.monotonic()
            manager.tell_progress(f"checking the sha256 of {path.name} once, {format_bytes(n_bytes)} read")

    return require_weights(plan.artifact, on_hash=_tell_hash, on_read=tell_read)


def make_command(plan: "Plan", *, tell: bool, manager: "ServiceManager | None" = None) -> "Command":
    """Return the command of a plan's engine, on a port of loopback that is free now.

    Asked to ``tell``, the engine prints what it will hold before it loads, if it can. ``manager`` is as in `check_weights`.
    """
    import secrets

    from launcher.backends import build_command, tell_before_load, with_key
    from launcher.domain import Address
    from launcher.folders import cache_dir
    from launcher.supervisor.checks import free_port

    weights = check_weights(plan, manager)
    address = Address(host="127.0.0.1", port=free_port("127.0.0.1"))
    cache_path = str(cache_dir() / plan.engine)
    command = build_command(plan, weights_path=str(weights), address=address, alias=plan.model, cache_path=cache_path)
    # Loopback is open to every user of the machine: only the gateway, which knows the key, gets through to the engine.
    command = with_key(command, plan.engine, secrets.token_hex(24))
    return (tell_before_load(command, plan.engine) if tell else None) or command


def build_service(
    plan: "Plan",
    request: "Request",
    machine: "Inventory",
    *,
    keys: "Keys",
    argv: tuple[str, ...],
    alternatives: "Alternatives",
    manager: "ServiceManager",
    workers: "Workers | None" = None,
) -> "Service":
    """Put the parts together for one instance; nothing is started yet."""
    from functools import partial

    from launcher.cli.checking import CheckingStepper
    from launcher.domain import Engine
    from launcher.gateway.gateway import Gateway
    from launcher.gateway.policy import Limits
    from launcher.inventory import probe_inventory
    from launcher.planner.calibration import machine_id
    from launcher.supervisor.recall import Recall
    from launcher.supervisor.setback import Service

    # What waits here is lost with no engine. An engine with a queue is given one more than it has slots, so that none
    # idles; llama_cpp.server would interrupt one request for the next.
    n_running = plan.n_parallel + (plan.engine is not Engine.LLAMA_CPP_PYTHON)

    def make_gateway() -> Gateway:
        return Gateway(plan.model, limits=Limits(n_running=n_running), keys=keys)

    front = GatewayFront(make_gateway, plan.address)

    def probe() -> "Inventory":
        found = probe_inventory()
        return found if workers is None else workers.join_present(found, in_use=front.has_engine)

    stepper = CheckingStepper(request, probe=probe, argv=argv, alternatives=alternatives)
    return Service(
        front=front,
        stepper=stepper,
        make_command=partial(make_command, manager=manager),
        devices=machine.devices,
        step_up=request.profile.fallback.step_up,
        recall=Recall(machine_id(machine)),
    )
