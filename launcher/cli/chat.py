"""`launch chat`: talk to a served model, from a terminal or in a pipe."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli import options as opt
from launcher.cli.completion import complete_instance
from launcher.cli.reaching import ApiKeyFile

if TYPE_CHECKING:
    from launcher.cli.talking import Talk

_MAX_INPUT = 32 << 20  # as large as a request that the gateway takes


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(chat)


def chat(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="The instance, as `launch ps` names it.", autocompletion=complete_instance),
    ],
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", help="Ask this alone, print the answer and end; else what stdin holds."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told before all else.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=1, max=opt.MAX_INT, help="Tokens of an answer at most; else as many as it likes."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", min=0.0, callback=opt.finite, help="How freely words are chosen; else the engine's own."
        ),
    ] = None,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Talk to a served model; in a pipe, or with --message, print one answer: exit code 1 unless it is whole."""
    from launcher.cli.conversing import converse
    from launcher.cli.reaching import read_key
    from launcher.cli.talking import Talk
    from launcher.client.conversation import Conversation, Wishes

    talk = Talk(
        name,
        key=read_key(api_key_file),
        wishes=Wishes(max_tokens=max_tokens, temperature=temperature),
        conversation=Conversation(system=system),
    )
    _take_any_text()
    if message is None and sys.stdin is not None and sys.stdin.isatty():
        converse(talk)
    else:
        _ask_once(talk, _read_input() if message is None else message)


def _take_any_text() -> None:
    """Let no character of a question or an answer be one that the locale cannot read or write."""
    import io

    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _read_input() -> str:
    """Return all that stdin holds.

    Raises:
        UsageError: it holds more than can be sent.
    """
    from launcher.errors import UsageError
    from launcher.units import format_bytes

    text = sys.stdin.read(_MAX_INPUT + 1) if sys.stdin is not None else ""
    if len(text) > _MAX_INPUT:
        message = f"the message is longer than {format_bytes(_MAX_INPUT)}"
        raise UsageError(message, help="send less: no model's context is as long")
    return text


def _ask_once(talk: "Talk", question: str) -> None:
    """Print one answer.

    Raises:
        LauncherError: there was none, or it is not whole; what came of it is printed.
    """
    from launcher.cli.talking import Printer
    from launcher.errors import AnswerIncompleteError, UsageError

    if not question.strip():
        message = "there is no message to send"
        raise UsageError(message, help="give one with `--message`, or by stdin")
    printer = Printer()
    try:
        stream = talk.ask(question, lambda piece: printer.show(piece, with_thoughts=False))
    finally:
        printer.end()
    if not stream.is_whole:
        raise AnswerIncompleteError(talk.cut_at(), help="raise that limit, or ask for less")
