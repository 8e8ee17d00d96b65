"""``launch serve``: plan, start, wait until it answers, keep it so until it is told to stop."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli import options as opt
from launcher.cli.calibrate import read_known

if TYPE_CHECKING:
    from launcher.cli.pulling import Chosen
    from launcher.domain import Artifact, Inventory, Outcome, Plan
    from launcher.store import Instance
    from launcher.supervisor.notices import Notice, Report
    from launcher.supervisor.service_manager import ServiceManager
    from launcher.supervisor.setback import Service

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="URL", help="Serve on the Ray cluster with this dashboard.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Return once it is ready; end it with `launch stop`.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", help="File of API keys, one a line; $LAUNCHER_API_KEY holds one as well."),
]
NoPull = Annotated[
    bool, typer.Option("--no-pull", help="Serve only weights that are on this machine; download nothing.")
]
StallTimeout = Annotated[
    float,
    typer.Option(
        "--stall-timeout",
        min=1.0,
        callback=opt.finite,
        help="Seconds without any progress before a start is given up.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(serve)


def serve(
    name: opt.Name,
    quant: opt.Quant = None,
    context: opt.Context = None,
    ctx_size: opt.CtxSize = None,
    parallel: opt.Parallel = None,
    batch_size: opt.BatchSize = None,
    ubatch_size: opt.UbatchSize = None,
    n_gpu_layers: opt.GpuLayers = None,
    n_cpu_moe: opt.CpuMoe = None,
    cache_type_k: opt.CacheK = None,
    cache_type_v: opt.CacheV = None,
    flash_attn: opt.FlashAttn = None,
    threads: opt.Threads = None,
    engine: opt.EngineName = None,
    host: Host = None,
    port: Port = None,
    inventory: opt.InventoryName = None,
    cluster: Cluster = None,
    rpc: opt.Rpc = None,
    min_quant: opt.MinQuant = None,
    min_tps: opt.MinTps = None,
    stall_timeout: StallTimeout = 120.0,
    force: opt.Force = False,
    api_key_file: ApiKeyFile = None,
    no_pull: NoPull = False,
    detach: Detach = False,
) -> None:
    """Serve a model until Ctrl-C; exit code 3 if no plan fits this machine."""
    from functools import partial

    from msgspec.structs import replace

    from launcher.cli.beginning import beginning
    from launcher.cli.on_cluster import check_for_cluster, serve_on_cluster, tell_left
    from launcher.cli.pulling import bring_recorded, choose
    from launcher.cli.service import build_service
    from launcher.domain import Request
    from launcher.fetch.places import is_offline
    from launcher.gateway.keys import check_exposure, read_keys
    from launcher.planner.advice import plan as decide
    from launcher.store import open_instance
    from launcher.supervisor.service_manager import take_over

    manager = take_over(os.environ)
    manager.tell({"STATUS": "planning"})
    name, quant = opt.split_quant(name, quant)
    settings = opt.parse_settings(
        quant=quant,
        context=context,
        ctx_size=ctx_size,
        parallel=parallel,
        batch_size=batch_size,
        ubatch_size=ubatch_size,
        n_gpu_layers=n_gpu_layers,
        n_cpu_moe=n_cpu_moe,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        flash_attn=flash_attn,
        threads=threads,
        engine=engine,
    )
    profile = opt.apply_limits(opt.resolve_profile(name), min_quant=min_quant, min_tps=min_tps)
    profile = replace(profile, address=opt.with_address(profile.address, host=host, port=port))
    if cluster is not None:
        check_for_cluster(settings, inventory=inventory, rpc=rpc)
    workers = opt.parse_rpc(rpc, inventory)
    keys = read_keys(os.environ, api_key_file)
    check_exposure(profile.address, keys)
    if detach:
        raise typer.Exit(_detach(profile.name))
    _warn_of_exposure()
    if cluster is not None:
        request = Request(profile=profile, settings=settings, force=force)
        argv = opt.echo_argv("serve", cluster=cluster, min_quant=min_quant, min_tps=min_tps)
        others = opt.find_alternatives(inventory=cluster, min_quant=min_quant, min_tps=min_tps)
        serve_on_cluster(
            request,
            cluster,
            keys=keys,
            decide=partial(decide, argv=argv, alternatives=others),
            report=_reporter(profile.name),
            stall_timeout_s=stall_timeout,
        )
        return
    report = _reporter(profile.name)
    with open_instance(profile.name) as instance, beginning(instance, profile.address, report):
        tell_left(instance, None, report)
        argv = opt.echo_argv("serve", inventory=inventory, rpc=rpc, min_quant=min_quant, min_tps=min_tps)
        others = opt.find_alternatives(inventory=inventory, min_quant=min_quant, min_tps=min_tps)

        def weigh(request: Request, machine: "Inventory") -> "Outcome":
            known = read_known(machine, inventory)
            return decide(request, machine, argv=argv, alternatives=others, calibration=known)

        def bring(plan: "Plan") -> "Artifact":
            return bring_recorded(plan, instance, name, _reporter(plan.model), manager)

        chosen = choose(
            profile,
            settings,
            force=force,
            measure=lambda: opt.read_inventory(inventory, workers),
            decide=weigh,
            bring=None if no_pull or is_offline() else bring,
        )
        plan = _tell_outcome(chosen, manager)
        _check_engine(plan, inventory)
        service = build_service(
            plan,
            chosen.request,
            chosen.machine,
            keys=keys,
            argv=argv,
            alternatives=others,
            manager=manager,
            workers=workers,
        )
        _run(plan, instance, service, stall_timeout, manager)


def _warn_of_exposure() -> None:
    """Say where other users could exchange the state directory: it is not ours to close."""
    from launcher.store import find_exposure

    if (exposed := find_exposure()) is not None:
        sys.stderr.write(f"warning: {exposed}\n")


def _tell_outcome(chosen: "Chosen", manager: "ServiceManager") -> "Plan":
    """Show what was planned, unless that was done before a download; a refusal ends the command."""
    from launcher.domain import Refusal
    from launcher.errors import EXIT_REFUSED
    from launcher.render.plan import render_outcome

    outcome = chosen.outcome
    if not chosen.is_told:
        sys.stderr.write(render_outcome(outcome))
    if isinstance(outcome, Refusal):
        manager.tell({"STATUS": f"refused: {outcome.fact}"})
        raise typer.Exit(EXIT_REFUSED)
    return outcome


def _check_engine(plan: "Plan", inventory: str | None) -> None:
    """Make sure that a plan for a machine from a file starts an engine of this one: a file may name any program.

    Raises:
        EngineMissingError: the program that the file names is no engine found here.
    """
    from launcher.errors import EngineMissingError
    from launcher.inventory import probe_inventory

    install = plan.install
    if install is None or inventory is None:
        return
    here = probe_inventory().engines or ()
    if not any((found.argv, found.env) == (install.argv, install.env) for found in here):
        message = f"the inventory names `{' '.join(install.argv)}`, which is no engine found on this machine"
        raise EngineMissingError(message, help="leave --inventory out, or plan with it: launch plan --inventory ...")


def _detach(name: str) -> int:
    """Start this very command again in the background, and wait until it is ready or has failed."""
    from launcher.store import open_instance
    from launcher.supervisor.remote import spawn_detached

    with open_instance(name):
        pass  # a name in use is said here, where the user looks; the lock is free again for the one that will serve
    words = [word for word in sys.argv[1:] if word != "--detach"]
    code = spawn_detached(
        [sys.executable, "-P", "-m", "launcher", *words], name=name, relay=lambda line: typer.echo(line, err=True)
    )
    if code == 0:
        typer.echo(f"serving in the background; `launch stop {name}` ends it")
    return code


def _run(
    plan: "Plan", instance: "Instance", service: "Service", stall_timeout_s: float, manager: "ServiceManager"
) -> None:
    """Start the plan's engine behind its endpoint, once its weights are known to be whole, and stay with it."""
    from launcher.cli.pulling import check_recorded
    from launcher.supervisor import runner
    from launcher.supervisor.options import RunOptions

    check_recorded(plan, instance, _reporter(plan.model), manager)
    runner.serve(
        service.make_command(plan, tell=True),
        instance=instance,
        plan=plan,
        options=RunOptions(stall_timeout_s=stall_timeout_s),
        report=_reporter(plan.model, has_status=manager.is_listening),
        service=service,
        manager=manager,
    )


def _reporter(model: str, *, has_status: bool = False) -> "Report":
    """Return what tells a person of each notice: lines on stderr, and the endpoint on stdout once it answers.

    Where a service manager shows the status, progress is told there alone: a journal keeps every line.
    """
    from launcher.render.serve import render_endpoint

    overwrites = sys.stderr.isatty()
    pending = is_told = False

    def report(notice: "Notice") -> None:
        nonlocal pending, is_told
        if notice.transient and has_status:
            return
        clear = "\r\x1b[K" if pending else ""
        pending = notice.transient and overwrites
        sys.stderr.write(f"{clear}{notice.text}" + ("" if pending else "\n"))
        sys.stderr.flush()
        if notice.event == "engine.ready" and not is_told:
            is_told = True
            sys.stdout.write(render_endpoint(model, str(notice.facts["host"]), int(notice.facts["port"] or 0)))
            sys.stdout.flush()

    return report
