"""The command line: arguments to calls, results to text and an exit code. It decides nothing.

One module per group of commands. A module imports only Typer at its top and the rest when its command runs, so that
``launch --help`` and ``launch plan`` stay quick.
"""

import sys
from typing import Annotated, NoReturn

import typer

from launcher.cli import calibrate, footprint, hardware, inspect, instances, plan, profiles, serve

app = typer.Typer(
    name="launch",
    help="Plan, start and supervise a language model server on one's own machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"launch {version('launcher')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    del version


for module in (serve, plan, footprint, inspect, hardware, profiles, calibrate, instances):
    module.register(app)


def main() -> NoReturn:
    """Run the command line; a named fault becomes its message on stderr and its exit code."""
    from launcher.errors import LauncherError

    try:
        app()
    except LauncherError as error:
        from launcher.render.text import error_json, render_error

        if "--json" in sys.argv:
            sys.stdout.write(error_json(error))
        sys.stderr.write(render_error(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)
