"""`launch inspect`: what the header of a weights file says. It decides nothing."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("inspect")(inspect)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file, or a Hugging Face folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all metadata and tensors.")] = False,
    with_tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
) -> None:
    """Print what the header of a weights file says; no weight is read."""
    from launcher.metadata.hyperparameters import hyperparameters
    from launcher.metadata.load import read_spec
    from launcher.render.inspect import render_spec, render_spec_json

    spec = read_spec(path)
    figures = hyperparameters(spec)
    text = render_spec_json(spec, figures) if as_json else render_spec(spec, figures, with_tensors=with_tensors)
    typer.echo(text, nl=False)
