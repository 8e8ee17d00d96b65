"""`launch hardware`."""

from typing import Annotated

import typer

from launcher.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("hardware")(hardware)


def hardware(
    inventory: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="Show this file or reference machine instead of this machine."),
    ] = None,
    cluster: opt.ClusterUrl = None,
    rpc: opt.Rpc = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print what `--inventory FILE` accepts, for use on another machine.")
    ] = False,
) -> None:
    """Show what this machine offers: memory, processors, GPUs, and the engines found with the devices each sees."""
    workers = opt.parse_rpc(rpc, inventory)
    found = opt.start_reading_inventory(inventory, workers, cluster)()
    if json:
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(found, order="deterministic"), indent=2).decode()
    else:
        from launcher.render.hardware import render_hardware

        text = render_hardware(found).rstrip("\n")
    typer.echo(text)
