"""The terminal side of `launch chat`: lines in, answers out, until the person has enough.

What was typed can be had again by the arrow keys while it runs; nothing of it is written to disk.
"""

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from launcher.cli.talking import Talk
    from launcher.client.chat_events import ChatStream
    from launcher.errors import LauncherError

_PROMPT: Final = "> "
_FORGET: Final = "/forget"
_CLEAR: Final = "/clear"
_COMMANDS: Final = (
    f"{_FORGET} drops the oldest question with its answer, {_CLEAR} all of them; Ctrl-C ends an answer, Ctrl-D the chat"
)


def converse(talk: "Talk") -> None:
    """Take questions from the terminal and show their answers until Ctrl-D, or Ctrl-C while nothing is answered.

    Raises:
        LauncherError: the instance is not served, not any more, or wants another key. Whatever else fails is told, and the
            conversation goes on without the question that failed.
    """
    from launcher.cli.reaching import require_served
    from launcher.cli.terminal import ended_by_signals

    view = require_served(talk.name)
    assert view.record is not None  # noqa: S101 - it is served
    assert view.record.plan is not None  # noqa: S101 - as above
    plan = view.record.plan
    _tell(
        f"`{view.name}`, {plan.quantization} on {plan.engine}, {plan.n_ctx_per_request} tokens of context\n{_COMMANDS}"
    )
    _prepare_editing()
    with ended_by_signals():
        try:
            while (line := _read_line()) is not None:
                _obey(talk, line.strip())
        except KeyboardInterrupt:
            pass
    _tell("")


def _prepare_editing() -> None:
    """Have lines edited, and what is pasted taken as one message, where Python was built with a library for that."""
    try:
        import readline
    except ImportError:
        return
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")


def _read_line() -> str | None:
    """Return what was typed, ``None`` at the end."""
    if sys.stdout.isatty():
        try:
            return input(_PROMPT)
        except EOFError:
            return None
    sys.stderr.write(_PROMPT)
    sys.stderr.flush()
    return sys.stdin.readline() or None


def _obey(talk: "Talk", line: str) -> None:
    if line == _CLEAR:
        talk.conversation = talk.conversation.cleared()
        _tell("forgotten; what comes now begins a conversation")
    elif line == _FORGET:
        talk.conversation = talk.conversation.without_first()
        n_left = len(talk.conversation.exchanges)
        _tell(f"forgotten; {n_left} question{'' if n_left == 1 else 's'} left")
    elif line:
        _answer(talk, line)


def _answer(talk: "Talk", question: str) -> None:
    from launcher.cli.talking import Printer
    from launcher.errors import ContextExceededError, EndpointAccessError, LauncherError, NotServedError

    printer = Printer()
    stream: ChatStream | None = None
    try:
        stream = talk.ask(question, lambda piece: printer.show(piece, with_thoughts=True))
    except KeyboardInterrupt:
        pass
    except (NotServedError, EndpointAccessError):
        printer.end()
        raise
    except ContextExceededError as error:
        printer.end()
        _tell_fault(error)
        _tell(f"it was left out; {_COMMANDS}")
        return
    except LauncherError as error:
        printer.end()
        _tell_fault(error)
        return
    printer.end()
    if printer.text or stream is not None:
        talk.conversation = talk.conversation.with_exchange(question, printer.text)
    if stream is None:
        _tell("ended here; what came of it counts as the answer" if printer.text else "ended before it began")
    elif not stream.is_whole:
        _tell(talk.cut_at())
    elif not printer.text:
        _tell("the answer is empty")


def _tell(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def _tell_fault(error: "LauncherError") -> None:
    from launcher.render.text import render_error

    sys.stderr.write(render_error(error))
    sys.stderr.flush()
