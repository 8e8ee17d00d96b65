"""`launch ps`, `status`, `logs` and `stop`: what is served here, from any terminal."""

from typing import Annotated

import typer

from launcher.cli import options as opt
from launcher.cli.completion import complete_instance

_NAME = Annotated[
    str, typer.Argument(metavar="NAME", help="The instance, as `launch ps` names it.", autocompletion=complete_instance)
]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON with a stable schema.")]


def ps(
    json: _JSON = False,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Show those that have ended, too.")] = False,
) -> None:
    """List what is served here."""
    import time

    from launcher.render.instances import render_instances, render_instances_json
    from launcher.store import list_instances

    views = tuple(view for view in list_instances() if show_all or view.supervisor_alive or view.state == "failed")
    typer.echo(render_instances_json(views) if json else render_instances(views, now=time.time()), nl=False)


def status(name: _NAME, json: _JSON = False) -> None:
    """Show one instance: its state and why, endpoint, plan, processes, log."""
    import time

    from launcher.render.instances import render_status, render_status_json
    from launcher.store import find_instance

    view = find_instance(name)
    typer.echo(render_status_json(view) if json else render_status(view, now=time.time()), nl=False)


def logs(
    name: _NAME,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until the instance ends.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
) -> None:
    """Print what the engine wrote."""
    from pathlib import Path

    from launcher.store import find_instance
    from launcher.supervisor import remote

    view = find_instance(name)
    path = Path(view.log_path)
    try:
        for line in remote.follow(view.name, path, lines) if follow else remote.last_lines(path, lines):
            typer.echo(line)
    except KeyboardInterrupt:
        return


def stop(
    name: _NAME,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="URL",
            help="Take its application off this Ray cluster, also where none is recorded here.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, callback=opt.finite, help="Seconds to wait until it is gone.")
    ] = 30.0,
    force: Annotated[bool, typer.Option("--force", help="Kill the engine without grace.")] = False,
) -> None:
    """End an instance and wait until nothing of it is left."""
    from launcher.errors import NotServedError
    from launcher.store import find_instance
    from launcher.supervisor import remote

    try:
        view = find_instance(name)
    except NotServedError:
        if cluster is None:
            raise
        view = None
    was_running = view is not None and remote.stop(view.name, timeout_s=timeout, force=force)
    full_name = name if view is None else view.name
    record = find_instance(full_name).record if view is not None else None
    left = record.application if record is not None else None
    if cluster is not None or left is not None:
        from launcher.cli.on_cluster import take_off

        was_running |= take_off(full_name, left, url=cluster, timeout_s=timeout)
    typer.echo(f"{full_name} is stopped" if was_running else f"{full_name} was not running")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (ps, status, logs, stop):
        app.command()(command)
