"""``launch plan``: what would be served here or on another machine, or why not."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli import options as opt
from launcher.cli.calibrate import read_known

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.domain import Calibration, Machines, Outcome, Plan, Profile, Request

All = Annotated[bool, typer.Option("--all", help="Show every plan that no other beats in both quality and speed.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(plan)


def plan(
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
    inventory: opt.InventoryName = None,
    cluster: opt.ClusterUrl = None,
    rpc: opt.Rpc = None,
    min_quant: opt.MinQuant = None,
    min_tps: opt.MinTps = None,
    force: opt.Force = False,
    show_all: All = False,
    json: opt.Json = False,
) -> None:
    """Show what would be served: quantization, context, placement and memory; exit code 3 if nothing fits."""
    import gc

    gc.disable()  # what a plan makes lives until it is printed, and looking for garbage in it takes a tenth of the time
    workers = opt.parse_rpc(rpc, inventory)
    machine_answer = opt.start_reading_inventory(inventory, workers, cluster)
    from msgspec.structs import replace

    from launcher.domain import Refusal, Request
    from launcher.errors import EXIT_REFUSED
    from launcher.planner.advice import plan as decide
    from launcher.render.plan import outcome_json, render_outcome

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
    if inventory is None and cluster is None:
        profile = opt.find_weights(profile)
    argv = opt.echo_argv("plan", inventory=inventory, cluster=cluster, rpc=rpc, min_quant=min_quant, min_tps=min_tps)
    request = Request(profile=profile, settings=settings, force=force)
    machine = machine_answer()
    known = read_known(machine, inventory)
    if show_all and _show_all(request, machine, known, json=json):
        return
    others = opt.find_alternatives(inventory=inventory or cluster, min_quant=min_quant, min_tps=min_tps)
    outcome = decide(request, machine, argv=argv, alternatives=others, calibration=known)
    if json:
        sys.stdout.write(outcome_json(outcome))
    else:
        (sys.stderr if isinstance(outcome, Refusal) else sys.stdout).write(render_outcome(outcome))
    if isinstance(outcome, Refusal):
        raise typer.Exit(EXIT_REFUSED)
    if inventory is None and cluster is None and not json:
        _tell_what_is_here(
            outcome,
            request,
            shlex.quote(name),
            lambda local: decide(
                replace(request, profile=local), machine, argv=argv, alternatives=others, calibration=known
            ),
        )


def _tell_what_is_here(
    outcome: "Plan", request: "Request", name: str, decide_locally: "Callable[[Profile], Outcome]"
) -> None:
    """Say what ``launch serve`` does where these weights are not here: it serves what is, and downloads only else."""
    from launcher.cli.pulling import local_part
    from launcher.domain import Plan
    from launcher.fetch.places import is_offline
    from launcher.profiles import is_local

    artifact = outcome.artifact
    if is_local(artifact):
        return
    here = local_part(request.profile, request.settings)
    served = decide_locally(here) if here is not None else None
    if isinstance(served, Plan):
        then = (
            f"`launch serve {name}` serves {served.quantization}, which is;\n"
            f"  `launch pull {name} --quant {outcome.quantization}` brings these"
        )
    elif not (artifact.repository or artifact.url):
        then = "nothing says where to have them from"
    elif is_offline():
        then = "nothing is downloaded while HF_HUB_OFFLINE is set"
    else:
        then = f"`launch serve {name}` downloads them first"
    sys.stdout.write(f"\n  these weights are not on this machine: {then}\n")


def _show_all(request: "Request", machine: "Machines", known: "Calibration | None", *, json: bool) -> bool:
    """Print the alternatives; False where there are none, which the refusal then explains."""
    from launcher.planner.fit import list_alternatives
    from launcher.render.plan import plans_json, render_plans

    plans = list_alternatives(request, machine, known)
    if plans:
        sys.stdout.write(plans_json(plans) if json else render_plans(request.profile.name, plans))
    return bool(plans)
