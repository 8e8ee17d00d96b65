"""`launch hardware`."""

from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli import options as opt

if TYPE_CHECKING:
    from launcher.domain import Inventory, Machines
    from launcher.inventory.workers import Workers


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
    if inventory is None and cluster is None:
        found: Machines = _here(workers)
    else:
        found = opt.start_reading_inventory(inventory, workers, cluster)()
    if json:
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(found, order="deterministic"), indent=2).decode()
    else:
        from launcher.render.hardware import render_hardware

        text = render_hardware(found).rstrip("\n")
    typer.echo(text)


def _here(workers: "Workers | None") -> "Inventory":
    """Return this machine with the workers that it may use."""
    from pathlib import Path

    from launcher.inventory import probe_inventory

    here = probe_inventory(disk_path=Path.home())
    return here if workers is None else workers.join(here)
