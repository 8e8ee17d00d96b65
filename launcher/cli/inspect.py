"""`launch inspect`: what the header of a weights file says. It decides nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli import options as opt

if TYPE_CHECKING:
    from launcher.domain import ModelSpec


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("inspect")(inspect)


def inspect(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A GGUF file, a Hugging Face folder, hf:OWNER/NAME:QUANT, an address, ollama:MODEL:TAG, "
            "or lmstudio:PUBLISHER/REPOSITORY[:QUANT].",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all metadata and tensors.")] = False,
    with_tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
) -> None:
    """Print what the header of a weights file says; no weight is read."""
    from launcher.metadata.hyperparameters import hyperparameters
    from launcher.render.inspect import render_spec, render_spec_json

    spec = _read(name)
    figures = hyperparameters(spec)
    text = render_spec_json(spec, figures) if as_json else render_spec(spec, figures, with_tensors=with_tensors)
    typer.echo(text, nl=False)


def _read(name: str) -> "ModelSpec":
    if opt.is_stored(name):
        return _only(*opt.split_quant(name, None))
    if opt.is_remote(name):
        profile = opt.read_hub(name, single=True)
        return next(artifact.spec for artifact in profile.artifacts if artifact.spec is not None)
    from launcher.metadata.load import read_spec

    return read_spec(Path(name))


def _only(name: str, quant: str | None) -> "ModelSpec":
    """Return the spec of the one model in a store that is meant.

    Raises:
        UsageError: several are there, or none at that quantization.
    """
    from launcher.errors import UsageError

    artifacts = opt.read_stored(name).artifacts
    specs = [
        each.spec
        for each in artifacts
        if each.spec is not None and (quant or each.quantization).lower() == each.quantization
    ]
    if len(specs) != 1:
        msg = f"`{name}` has {len(specs)} of these"
        raise UsageError(msg, help=f"name one: {name}:QUANT", details=tuple(each.quantization for each in artifacts))
    return specs[0]
