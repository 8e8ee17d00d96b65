"""``launch explain``: what a code means, or what a log says went wrong."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.completion import complete_code

if TYPE_CHECKING:
    from launcher.doctor.log_file import ReadLog
    from launcher.errors import UsageError
    from launcher.findings import LogReading

_READ_S = 20.0


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(explain)


def explain(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE|LOGFILE",
            help="A code as in error[CODE], a log file, or - for standard input.",
            autocompletion=complete_code,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain an error's code or a log: what it means, how it comes about, what to do. Without a word: all codes."""
    from launcher.pages import PAGES
    from launcher.render import explain as render

    if what is None:
        text = render.pages_json() if json else render.render_pages()
    elif (page := PAGES.get(_code_in(what))) is not None:
        text = render.page_json(page) if json else render.render_page(page)
    elif what == "-" or "/" in what or os.path.exists(what):  # noqa: PTH110 - of any word, too long a one among them
        reading = _read(what)
        text = render.reading_json(reading) if json else render.render_reading(reading)
    else:
        raise _unknown(what)
    sys.stdout.write(text)


def _code_in(word: str) -> str:
    """Return the code in a word as it was printed: ``error[CODE]:`` is taken for ``CODE``."""
    _, opened, rest = word.partition("[")
    return (rest.partition("]")[0] if opened else word).lower()


def _read(source: str) -> "LogReading":
    """Read a log within bounds, and judge it by the supervisor's own signs."""
    from launcher.doctor.log_text import parse_log
    from launcher.findings import Diagnosis, LogReading
    from launcher.pages import PAGES
    from launcher.supervisor.faults import Answer, End
    from launcher.supervisor.post_mortem import examine, last_words
    from launcher.supervisor.signs import Cause

    log = _read_in_time(source)
    parsed = parse_log(log.text)
    fault = examine(
        End(
            lines=parsed.lines,
            code=parsed.code,
            signal_number=parsed.signal_number,
            n_oom_kills=parsed.n_oom_kills or None,  # that a log names no kill does not say that there was none
        )
    )
    diagnosis = None
    if fault is not None:
        diagnosis = Diagnosis(
            code=fault.code,
            cause=fault.cause,
            meaning=fault.meaning,
            # A served engine has a port of its own behind the gateway: that another has it is nothing to give up for.
            answer=Answer.RESTART if fault.cause is Cause.PORT else fault.answer,
            help=fault.help,
            lines=fault.lines,
            memory=fault.memory,
            n_bytes=fault.n_bytes,
        )
    return LogReading(
        source="standard input" if source == "-" else source,
        n_lines=len(parsed.lines),
        n_bytes=log.n_bytes,
        is_cut=log.is_cut,
        diagnosis=diagnosis,
        codes=tuple(code for code in parsed.codes if code in PAGES),
        last_lines=last_words(parsed.lines) if fault is None else (),
    )


def _read_in_time(source: str) -> "ReadLog":
    """Read a log; a file that does not come, on a disk that hangs, is given up, and what a pipe brings is waited for."""
    from launcher.doctor.log_file import read_log
    from launcher.errors import UsageError
    from launcher.inventory.bounded import Bounded

    if source == "-":
        return read_log(source)
    call = Bounded(lambda: read_log(source))
    if not call.wait(_READ_S):
        message = f"the log `{ascii(source)[1:-1]}` was not read within {_READ_S:g} s"
        raise UsageError(message, help="its disk does not answer; `launch doctor` tells more")
    return call.value()


def _unknown(word: str) -> "UsageError":
    from launcher.errors import LauncherError, UsageError
    from launcher.pages import near
    from launcher.store import find_instance

    shown = word[:80] if word[:80].isprintable() else ascii(word[:80])[1:-1]
    message = f"no code is called `{shown}`, and no file"
    close = near(word)
    if close:
        return UsageError(message, help=f"did you mean {' or '.join(f'`{code}`' for code in close)}?")
    try:
        log = find_instance(word).log_path
    except LauncherError:  # not served, or the state cannot be looked into, which nobody asked for
        return UsageError(message, help="`launch explain` lists all codes; a log file is given by its path")
    return UsageError(message, help=f"the log of the instance is explained by `launch explain {log}`")
