"""The command line: arguments to calls, results to text and an exit code. It decides nothing.

One module per group of commands. A module imports only Typer at its top and the rest when its command runs, so that
``launch --help`` and ``launch plan`` stay quick.
"""

import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from launcher.cli import (
    bench,
    calibrate,
    chat,
    doctor,
    explain,
    export,
    footprint,
    hardware,
    inspect,
    instances,
    plan,
    profiles,
    pull,
    serve,
    systemd,
    top,
    worker,
)

if TYPE_CHECKING:
    from launcher.errors import LauncherError

_NO_THREAD = "can't start new thread"
"""As the interpreter says it, by a bare RuntimeError."""

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


for module in (
    serve,
    plan,
    pull,
    export,
    footprint,
    inspect,
    hardware,
    profiles,
    calibrate,
    bench,
    doctor,
    explain,
    instances,
    top,
    chat,
    systemd,
    worker,
):
    module.register(app)


def main() -> NoReturn:
    """Run the command line; a named fault becomes its message on stderr and its exit code."""
    from launcher.errors import EXIT_FAILED, LauncherError
    from launcher.private import close_to_others

    close_to_others()
    _open_closed_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except LauncherError as error:
        sys.exit(_tell(error))
    except BrokenPipeError:
        _drop_output()
        sys.exit(EXIT_FAILED)
    except OSError as error:
        _drop_output()
        message = f"the system refused{f' `{error.filename}`' if error.filename else ''}: {error.strerror or error}"
        sys.exit(_tell(LauncherError(message, help="check space and permissions, also of where the output goes")))
    except Exception as error:  # noqa: BLE001 - a fault of our own, which is told as any is, but for secrets
        _drop_output()
        sys.exit(_tell(_of_tasks()) if str(error) == _NO_THREAD else _confess(error))
    sys.exit(0)


def _of_tasks() -> "LauncherError":
    """Word that the system lets nothing more be started, which may be met wherever something is."""
    from launcher.errors import LauncherError

    return LauncherError(
        "the system lets this user or group start no more threads",
        help="see `ulimit -u`, and `TasksMax=` of a unit or `pids.max` of a container",
    )


def _tell(error: "LauncherError") -> int:
    """Write a fault for a person, and as JSON where that was asked for; return its exit code."""
    from launcher.render.text import error_json, render_error

    sys.stderr.write(render_error(error))
    if "--json" in sys.argv:
        try:
            sys.stdout.write(error_json(error))
            sys.stdout.flush()
        except OSError:
            _drop_output()
    return error.exit_code


def _confess(error: Exception) -> int:
    """Write the traceback of a fault of our own without the secrets that its words may hold; return the exit code."""
    import os
    import traceback

    from launcher.errors import EXIT_FAILED, hide_passwords
    from launcher.inventory.environment import redact, secrets_of

    text = "".join(traceback.format_exception(error))
    sys.stderr.write(hide_passwords(redact(text, secrets_of(os.environ))))
    sys.stderr.write("error: a fault of launcher itself; please report it with these lines\n")
    return EXIT_FAILED


def _open_closed_streams() -> None:
    """Give a command that was started without stdout or stderr somewhere to write to."""
    import os

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - it lasts as long as the process


def _drop_output() -> None:
    """Let what is still buffered for a stdout that takes no more go nowhere, instead of failing at exit again."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
