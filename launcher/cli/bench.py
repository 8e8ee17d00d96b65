"""``launch bench``: how fast a model really is here, beside what its plan predicted."""

import sys
from typing import Annotated

import typer

from launcher.cli import options as opt
from launcher.cli.reaching import ApiKeyFile

Seconds = Annotated[
    float,
    typer.Option(
        "--seconds",
        min=1.0,
        callback=opt.finite,
        help="Seconds to measure at most; the engine's start is not among them.",
    ),
]
Repetitions = Annotated[
    int, typer.Option("--repetitions", min=1, max=1000, help="Turns at each load; fewer than 6 have no 95 % interval.")
]
StartTimeout = Annotated[
    float,
    typer.Option("--start-timeout", min=1.0, callback=opt.finite, help="Seconds for the engine to load the model."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(bench)


def bench(
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
    rpc: opt.Rpc = None,
    min_quant: opt.MinQuant = None,
    min_tps: opt.MinTps = None,
    force: opt.Force = False,
    api_key_file: ApiKeyFile = None,
    seconds: Seconds = 40.0,
    repetitions: Repetitions = 6,
    start_timeout: StartTimeout = 300.0,
    json: opt.Json = False,
) -> None:
    """Measure how fast a model is here, beside what its plan predicted; nothing of it is remembered.

    Where NAME is being served, that instance is asked. Else an engine is started for it as `launch serve` would, of weights
    that are on this machine, and ended afterwards.
    """
    from launcher.cli.benching import (
        Asked,
        Effort,
        check_is_as_asked,
        measure_planned,
        measure_served,
        resolve,
    )
    from launcher.cli.pulling import interruptible
    from launcher.domain import Profile, Refusal
    from launcher.errors import EXIT_REFUSED
    from launcher.render.bench import bench_json, render_bench
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
    asked = Asked(rpc, min_quant, min_tps, force)
    effort = Effort(seconds, repetitions)
    with interruptible() as interruption:
        try:
            what = resolve(name, asked)
            if isinstance(what, Profile):
                found = measure_planned(what, settings, asked, effort, start_timeout)
            else:
                check_is_as_asked(what, settings, asked)
                found = measure_served(what, api_key_file, effort)
        except KeyboardInterrupt:
            typer.echo("interrupted: nothing is told, and nothing is left running", err=True)
            raise typer.Exit(interruption.exit_code) from None
    if isinstance(found, Refusal):
        (sys.stdout if json else sys.stderr).write(outcome_json(found) if json else render_outcome(found))
        raise typer.Exit(EXIT_REFUSED)
    sys.stdout.write(bench_json(found) if json else render_bench(found))
