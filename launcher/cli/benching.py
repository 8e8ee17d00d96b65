"""What ``launch bench`` measures, by which endpoint: that of an engine started for it, or of an instance that is served."""

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import typer

from launcher.cli import options as opt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from aiohttp import ClientSession

    from launcher.cli.pulling import Chosen
    from launcher.client.endpoint import Endpoint
    from launcher.domain import Artifact, InstanceView, Inventory, Outcome, Plan, Profile, Refusal, Request, Settings
    from launcher.measured import Bench


class Effort(NamedTuple):
    """How much is measured, and how long that may take."""

    seconds: float
    repetitions: int


class Asked(NamedTuple):
    """What the command line says of the plan, besides the profile's name and the settings."""

    rpc: str | None
    min_quant: str | None
    min_tps: float | None
    force: bool


def resolve(name: str, asked: Asked) -> "InstanceView | Profile":
    """Return the instance by which NAME is being served, or else the profile that it means.

    Raises:
        NotServedError: it is being served, and answers no requests now.
    """
    if (served := _find_served(name)) is not None:
        return served
    profile = opt.apply_limits(opt.resolve_profile(name), min_quant=asked.min_quant, min_tps=asked.min_tps)
    return _find_served(profile.name) or profile


def _measure(
    open_: "AbstractAsyncContextManager[ClientSession]", plan: "Plan", effort: Effort, *, is_served: bool
) -> "Bench":
    import asyncio

    from launcher.tune.bench import bench as measure

    async def run() -> "Bench":
        async with open_ as session:
            return await measure(
                session,
                plan,
                is_served=is_served,
                report=lambda line: typer.echo(line, err=True),
                n_turns=effort.repetitions,
                max_s=effort.seconds,
            )

    return asyncio.run(run())


# --- An engine of one's own -------------------------------------------------------------------------------------


def measure_planned(
    profile: "Profile", settings: "Settings", asked: Asked, effort: Effort, start_timeout_s: float
) -> "Bench | Refusal":
    """Plan, start the plan's engine, measure it, and end it."""
    from launcher.cli.measuring import engine_opener, measuring
    from launcher.domain import Refusal

    with measuring() as instance:
        plan = _choose(profile, settings, asked).outcome
        if isinstance(plan, Refusal):
            return plan
        typer.echo(f"starting {plan.engine} with `{plan.model}` at {plan.quantization}", err=True)
        return _measure(engine_opener(instance, start_timeout_s)(plan), plan, effort, is_served=False)


def _choose(profile: "Profile", settings: "Settings", asked: Asked) -> "Chosen":
    """Plan as `launch serve` would, but download nothing.

    Raises:
        WeightsMissingError: what would fit is not on this machine.
    """
    from msgspec.structs import replace

    from launcher.cli.calibrate import read_known
    from launcher.cli.pulling import choose
    from launcher.planner.advice import plan as decide

    workers = opt.parse_rpc(asked.rpc, None)
    argv = opt.echo_argv("bench", rpc=asked.rpc, min_quant=asked.min_quant, min_tps=asked.min_tps)
    others = opt.find_alternatives(inventory=None, min_quant=asked.min_quant, min_tps=asked.min_tps)

    def weigh(request: "Request", machine: "Inventory") -> "Outcome":
        return decide(request, machine, argv=argv, alternatives=others, calibration=read_known(machine, None))

    def bring(plan: "Plan") -> "Artifact":
        opt.keep_local(profile, replace(settings, quantization=plan.quantization))
        return plan.artifact  # somebody else brought it meanwhile

    return choose(
        profile,
        settings,
        force=asked.force,
        measure=lambda: opt.read_inventory(None, workers),
        decide=weigh,
        bring=bring,
    )


# --- A served instance ------------------------------------------------------------------------------------------


def _find_served(name: str) -> "InstanceView | None":
    """Return the instance of that name, if a supervisor has it now.

    Raises:
        NotServedError: it serves no model, or answers no requests now.
    """
    from launcher.cli.reaching import require_served
    from launcher.domain import State
    from launcher.errors import NotServedError
    from launcher.store import find_instance

    try:
        if not find_instance(name).supervisor_alive:
            return None
    except NotServedError:
        return None
    view = require_served(name)
    if view.state is not State.READY:
        message = f"`{view.name}` answers no requests now: it is {view.state}"
        raise NotServedError(message, help=f"`launch status {view.name}` says why; measure it once it is ready")
    return view


def check_is_as_asked(view: "InstanceView", settings: "Settings", asked: Asked) -> None:
    """Make sure that what is served is what was asked for: nothing of it can be changed.

    Raises:
        UsageError: it is served otherwise.
    """
    from msgspec.structs import asdict

    from launcher.errors import UsageError

    plan = _plan_of(view)
    other = [
        f"its {name} is {getattr(plan, name)}, not {value}"
        for name, value in asdict(settings).items()
        if value is not None and value != getattr(plan, name)
    ]
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in asked._asdict().items()
        if value is not None and value is not False
    ]
    other += [f"{option} says nothing of it" for option in given]
    if other:
        message = f"`{view.name}` is being served already: {', '.join(other)}"
        raise UsageError(message, help=f"leave that out to measure what is served, or end it: launch stop {view.name}")


def measure_served(view: "InstanceView", api_key_file: "Path | None", effort: Effort) -> "Bench":
    """Ask a served instance by its endpoint.

    Raises:
        EngineFailedError: it failed, or its engine was started anew meanwhile: no figure then is one of serving.
        EndpointAccessError: the key is not its own, or the port not.
        NotServedError: it listens nowhere.
    """
    from launcher.cli.reaching import endpoint_of, read_key
    from launcher.errors import EngineFailedError, NotServedError

    endpoint = endpoint_of(view, read_key(api_key_file))
    if endpoint is None:
        message = f"`{view.name}` answers no requests now"
        raise NotServedError(message, help=f"`launch status {view.name}` says why")
    typer.echo(f"`{view.name}` is being served: what its other clients ask for counts in", err=True)
    look = f"`launch status {view.name}` says how it is, `launch logs {view.name}` what its engine wrote"
    try:
        found = _measure(_open_endpoint(endpoint), _plan_of(view), effort, is_served=True)
    except EngineFailedError as error:
        error.help = error.help or look
        raise
    if not _is_as_before(view):
        message = f"the engine of `{view.name}` was started anew while it was measured"
        raise EngineFailedError(message, help=look)
    return found


@asynccontextmanager
async def _open_endpoint(endpoint: "Endpoint") -> "AsyncIterator[ClientSession]":
    from aiohttp import ClientSession

    from launcher.domain import Address
    from launcher.supervisor.readiness import base_url

    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key is not None else {}
    url = base_url(Address(host=endpoint.host, port=endpoint.port))
    async with ClientSession(url, headers=headers, trust_env=False) as session:
        yield session


def _is_as_before(view: "InstanceView") -> bool:
    """Whether it is the same engine still, by when it became ready."""
    from launcher.errors import NotServedError
    from launcher.store import find_instance

    try:
        now = find_instance(view.name)
    except NotServedError:
        return False
    same_start = now.record is not None and view.record is not None and now.record.ready_at == view.record.ready_at
    return now.supervisor_alive and now.state == view.state and same_start


def _plan_of(view: "InstanceView") -> "Plan":
    assert view.record is not None  # noqa: S101 - `require_served` made sure
    assert view.record.plan is not None  # noqa: S101 - the same
    return view.record.plan
