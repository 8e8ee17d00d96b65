"""``launch export``: a plan as the file by which another program serves it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli import options as opt
from launcher.cli.calibrate import read_known
from launcher.cli.completion import complete_target

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="TARGET",
        help="kuberay, skypilot, compose, quadlet or vllm-multinode.",
        autocompletion=complete_target,
    ),
]
Host = Annotated[str | None, typer.Option("--host", help="Address at which the endpoint is to be reached.")]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port at which it is to be reached.")]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="PATH", help="Path of the weights where the file will be used; else the hub's."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, else to stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file of --output where there is one.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(export)


def export(
    name: opt.Name,
    to: To,
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
    cluster: opt.ClusterUrl = None,
    min_quant: opt.MinQuant = None,
    min_tps: opt.MinTps = None,
    weights: Weights = None,
    output: Output = None,
    overwrite: Overwrite = False,
    force: opt.Force = False,
) -> None:
    """Write what `plan` plans as a file for another program; exit code 3 if nothing fits."""
    from launcher.export import Target

    target = opt.parse_choice(Target, "--to", to)
    machine_answer = opt.start_reading_inventory(inventory, None, cluster)
    from launcher.domain import Refusal, Request
    from launcher.errors import EXIT_REFUSED
    from launcher.export import export as render
    from launcher.planner.advice import plan as decide
    from launcher.render.plan import render_outcome
    from launcher.resources import from_home

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
    machine = machine_answer()
    # Ways out are plans: whether what they plan can be written for the same program is another question.
    argv = opt.echo_argv("plan", inventory=inventory, cluster=cluster, min_quant=min_quant, min_tps=min_tps)
    others = opt.find_alternatives(inventory=inventory or cluster, min_quant=min_quant, min_tps=min_tps)
    outcome = decide(
        Request(profile=profile, settings=settings, force=force),
        machine,
        argv=argv,
        alternatives=others,
        calibration=read_known(machine, inventory),
    )
    if isinstance(outcome, Refusal):
        sys.stderr.write(render_outcome(outcome))
        raise typer.Exit(EXIT_REFUSED)
    if weights is None and outcome.artifact.local_path is not None:
        weights = str(from_home(outcome.artifact.local_path).absolute())
    address = opt.with_address(profile.address, host=host, port=port)
    text = render(outcome, machine, target, weights=weights, address=address)
    if output is None:
        sys.stdout.write(text)
    else:
        _write(output, text, overwrite=overwrite)


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    """Write a file as a whole or not at all; another one of its name is kept unless it is to be replaced."""
    import os

    from launcher.errors import UsageError

    if not path.name:
        msg = f"--output is no file: `{path}`"
        raise UsageError(msg, help="name one, for example --output compose.yaml")
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike a rename it fails where there is a file
    except FileExistsError:
        msg = f"there is a file `{path}`"
        raise UsageError(msg, help="give another name, or --overwrite") from None
    finally:
        temporary.unlink(missing_ok=True)
