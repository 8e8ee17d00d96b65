"""``launch calibrate``: measure this machine with a real model, and remember it for the next plans."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli import options as opt
from launcher.cli.completion import complete_model

if TYPE_CHECKING:
    from launcher.domain import Calibration, Inventory, Machines, Refusal, Request, Settings
    from launcher.tune.calibrate import Outcome

_DEFAULT_MODEL = "gemma3-270m"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(calibrate)


def calibrate(
    name: Annotated[
        str,
        typer.Argument(help="A profile, its alias, or a GGUF file on this machine.", autocompletion=complete_model),
    ] = _DEFAULT_MODEL,
    quant: opt.Quant = None,
    context: opt.Context = None,
    engine: opt.EngineName = None,
    max_time: Annotated[
        float, typer.Option("--max-time", min=5.0, callback=opt.finite, help="Seconds to spend at most.")
    ] = 240.0,
    forget: Annotated[bool, typer.Option("--forget", help="Forget what was measured on this machine.")] = False,
    json: opt.Json = False,
) -> None:
    """Measure this machine: memory bandwidth, the fastest engine, threads, batch and flash attention for a model."""
    import msgspec

    from launcher.domain import Refusal, Request
    from launcher.errors import EXIT_REFUSED
    from launcher.inventory import probe_inventory
    from launcher.planner.calibration import machine_id
    from launcher.render.calibration import render_calibration
    from launcher.render.plan import outcome_json, render_outcome
    from launcher.store import forget_calibration, require_readable_calibration, write_calibration
    from launcher.supervisor.recall import forget as forget_accounts

    inventory = probe_inventory()
    machine = machine_id(inventory)
    if forget:
        found = forget_calibration(machine) | forget_accounts(machine)
        typer.echo("forgotten" if found else "nothing was measured on this machine yet", err=True)
        return
    require_readable_calibration(machine)
    settings = _parse(quant, context, engine)
    profile = opt.keep_local(opt.resolve_profile(name), settings)
    outcome = _measure(Request(profile=profile, settings=settings), inventory, max_time)
    if isinstance(outcome, Refusal):
        (sys.stdout if json else sys.stderr).write(outcome_json(outcome) if json else render_outcome(outcome))
        raise typer.Exit(EXIT_REFUSED)
    write_calibration(outcome.calibration)
    if json:
        sys.stdout.write(msgspec.json.encode(outcome.calibration, order="deterministic").decode() + "\n")
        return
    text = render_calibration(
        outcome.calibration,
        outcome.tunings,
        model=profile.name,
        default_request_s=outcome.default.request_s,
        complete=outcome.complete,
        left_out=outcome.left_out,
    )
    sys.stdout.write(text)


def _parse(quant: str | None, context: int | None, engine: str | None) -> "Settings":
    """Return what is fixed while the rest is measured: one request at a time, as the rates are of one."""
    return opt.parse_settings(
        quant=quant,
        context=context,
        ctx_size=None,
        parallel=1,
        batch_size=None,
        ubatch_size=None,
        n_gpu_layers=None,
        n_cpu_moe=None,
        cache_type_k=None,
        cache_type_v=None,
        flash_attn=None,
        threads=None,
        engine=engine,
    )


def read_known(machine: "Machines", name: str | None) -> "Calibration | None":
    """Return what was measured on this machine; nothing where the plan is for another one, given by ``name``."""
    from launcher.domain import Cluster

    if name is not None or isinstance(machine, Cluster):
        return None
    from launcher.planner.calibration import machine_id
    from launcher.store import read_calibration

    known, warning = read_calibration(machine_id(machine))
    if warning is not None:
        typer.echo(f"warning: {warning}", err=True)
    return known


def _measure(request: "Request", inventory: "Inventory", max_s: float) -> "Outcome | Refusal":
    """Measure bandwidth, then engines, under the lock that keeps calibrations from disturbing each other."""
    import asyncio
    import time

    from launcher.cli.measuring import engine_opener, measuring
    from launcher.tune.bandwidth import BLOCK_BYTES, measure_bandwidth
    from launcher.tune.calibrate import calibrate as search
    from launcher.units import format_rate

    def report(line: str) -> None:
        typer.echo(line, err=True)

    known = read_known(inventory, None)
    with measuring() as instance:
        begin_s = time.monotonic()
        n_bytes = min(BLOCK_BYTES, inventory.host.free_bytes // 4)
        bandwidth = measure_bandwidth(inventory.host.n_cpu, n_bytes=n_bytes)
        report(f"memory: {format_rate(bandwidth)} with {inventory.host.n_cpu} threads")
        return asyncio.run(
            search(
                request,
                inventory,
                open_engine=engine_opener(instance),
                host_bandwidth_bytes_per_s=bandwidth,
                report=report,
                known=known,
                max_s=max_s - (time.monotonic() - begin_s),
            )
        )
