"""`launch footprint`: what llama-server would hold in each memory for a given file. It decides nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli import options as opt

if TYPE_CHECKING:
    from launcher.planner.architecture import Architecture
    from launcher.planner.footprint.llama_cpp import LlamaCppConfig


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("footprint")(footprint)


def footprint(
    name: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file, or any part of a split one.")],
    backend: Annotated[
        str, typer.Option("--backend", help="gpu (CUDA, Vulkan, Metal, ROCm), rpc (remote workers) or cpu.")
    ] = "gpu",
    ctx_size: Annotated[
        int | None,
        typer.Option(
            "--ctx-size", min=0, max=opt.MAX_INT, help="Tokens of all slots together; default and 0: as trained."
        ),
    ] = None,
    n_gpu_layers: Annotated[
        int | None, typer.Option("--n-gpu-layers", min=0, help="Layers on devices; default: all.")
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=opt.MAX_INT, help="Slots.")] = 1,
    kv_unified: Annotated[bool, typer.Option("--kv-unified", help="One cache for all slots.")] = False,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=opt.MAX_INT, help="Tokens of a prompt taken at once.")
    ] = 2048,
    ubatch_size: Annotated[
        int,
        typer.Option("--ubatch-size", min=0, max=opt.MAX_INT, help="Tokens computed in one step; 0: a whole batch."),
    ] = 512,
    cache_type_k: opt.CacheK = "f16",
    cache_type_v: opt.CacheV = "f16",
    flash_attn: opt.FlashAttn = "on",
    swa_full: Annotated[bool, typer.Option("--swa-full", help="A whole cache for sliding layers.")] = False,
    n_cpu_moe: Annotated[int, typer.Option("--n-cpu-moe", min=0, help="Layers whose experts stay on the host.")] = 0,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help="Devices; default 1, 0 for cpu.")] = None,
    tensor_split: Annotated[
        str | None,
        typer.Option(
            "--tensor-split", metavar="A,B", help="Share of each device, none where left out; default: equal."
        ),
    ] = None,
    no_op_offload: Annotated[
        bool, typer.Option("--no-op-offload", help="Never compute with host weights on a device.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Print the memory that llama-server would hold, by device and host, from the file's header alone."""
    from launcher.domain import CacheType
    from launcher.metadata.load import read_spec
    from launcher.planner.architecture import read_architecture
    from launcher.planner.footprint.llama_cpp import (
        X86_REPACKED,
        Backend,
        LlamaCppConfig,
        estimate_footprint,
    )
    from launcher.planner.footprint.serving import add_serving_defaults
    from launcher.planner.footprint.weights import sum_weights
    from launcher.render.footprint import render_footprint, render_footprint_json

    settings = opt.parse_settings(
        quant=None,
        context=None,
        ctx_size=ctx_size or None,
        parallel=parallel,
        batch_size=batch_size,
        ubatch_size=ubatch_size or batch_size,
        n_gpu_layers=n_gpu_layers,
        n_cpu_moe=n_cpu_moe,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        flash_attn=flash_attn,
        threads=None,
        engine=None,
    )
    shares = _shares(backend, gpus, tensor_split)
    spec = read_spec(name)
    architecture = read_architecture(spec)
    config = LlamaCppConfig(
        backend=Backend(backend) if shares else Backend.CPU,
        shares=shares,
        repacked=X86_REPACKED,
        n_ctx=settings.n_ctx or architecture.n_ctx_train or 4096,
        n_gpu_layers=architecture.n_layer + 1 if n_gpu_layers is None else n_gpu_layers,
        n_parallel=parallel,
        kv_unified=kv_unified,
        n_batch=batch_size,
        n_ubatch=ubatch_size or batch_size,
        cache_type_k=settings.cache_type_k or CacheType.F16,
        cache_type_v=settings.cache_type_v or CacheType.F16,
        flash_attn=settings.flash_attn is not False,
        swa_full=swa_full,
        n_cpu_moe=n_cpu_moe,
        op_offload=not no_op_offload,
    )
    _check(architecture, config)
    weights = sum_weights(spec, architecture.n_layer)
    names = tuple(f"gpu{idx}" for idx in range(len(shares)))
    held = estimate_footprint(architecture, weights, config, names, every_layer=True)
    held = add_serving_defaults(held, architecture, weights, config)
    if as_json:
        typer.echo(render_footprint_json(held), nl=False)
    else:
        typer.echo(render_footprint(held), nl=False)
    if not architecture.known:
        typer.echo("note: the architecture is not fully understood: figures err high", err=True)


def _shares(backend: str, gpus: int | None, tensor_split: str | None) -> tuple[float, ...]:
    """One weight per device; none without devices."""
    from launcher.errors import UsageError
    from launcher.planner.footprint.limits import MAX_DEVICES

    if backend not in {"gpu", "rpc", "cpu"}:
        msg = f"--backend does not know `{backend}`"
        raise UsageError(msg, help="one of: gpu, rpc, cpu")
    n_devices = (0 if backend == "cpu" else 1) if gpus is None else gpus
    if backend == "cpu" and n_devices:
        msg = f"--backend cpu has no devices, not {n_devices}"
        raise UsageError(msg, help="leave --gpus out")
    if n_devices > MAX_DEVICES:
        msg = f"{n_devices} devices are more than llama.cpp's {MAX_DEVICES}"
        raise UsageError(msg, help="use fewer")
    return _parse_shares(tensor_split, n_devices)


def _parse_shares(text: str | None, n_devices: int) -> tuple[float, ...]:
    """Read ``--tensor-split`` as llama-server does: devices left out get nothing, and only zeros mean equal shares."""
    from launcher.errors import UsageError

    if text is None:
        return (1.0,) * n_devices
    try:
        shares = tuple(float(part) for part in text.replace("/", ",").split(","))
    except ValueError:
        shares = (-1.0,)
    shares += (0.0,) * (n_devices - len(shares))
    if len(shares) != n_devices or not all(0 <= share < float("inf") for share in shares):
        msg = f"--tensor-split `{text}` does not share out {n_devices} devices"
        raise UsageError(msg, help="give a number for each device, for example --gpus 2 --tensor-split 3,1")
    return shares if any(shares) else (1.0,) * n_devices


def _check(architecture: "Architecture", config: "LlamaCppConfig") -> None:
    from launcher.errors import UsageError
    from launcher.planner.footprint.limits import find_contradiction

    found = find_contradiction(architecture, config)
    if found is not None:
        fact, way_out = found
        raise UsageError(fact, help=way_out)
