"""One conversation with one served instance, and its answers on their way to a person or a pipe."""

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.client.chat_events import ChatStream, Piece
    from launcher.client.conversation import Conversation, Wishes
    from launcher.client.endpoint import Endpoint


class Printer:
    """An answer on its way to stdout; a terminal gets nothing that could steer it."""

    def __init__(self) -> None:
        """Begin a line."""
        self.text = ""
        self._is_terminal = sys.stdout.isatty()
        self._is_thinking = False

    def show(self, piece: "Piece", *, with_thoughts: bool) -> None:
        """Write a piece at once; what the model thinks before it answers goes to stderr."""
        if piece.thought and with_thoughts:
            self._is_thinking = True
            self._write(sys.stderr, piece.thought, is_terminal=sys.stderr.isatty())
        if piece.text:
            if self._is_thinking:
                self._is_thinking = False
                sys.stderr.write("\n\n")
                sys.stderr.flush()
            self.text += piece.text
            self._write(sys.stdout, piece.text, is_terminal=self._is_terminal)

    def end(self) -> None:
        """End the last line, where the answer did not."""
        if self._is_thinking:
            sys.stderr.write("\n")
        if self.text and not self.text.endswith("\n"):
            sys.stdout.write("\n")
        sys.stdout.flush()

    @staticmethod
    def _write(stream: TextIO, text: str, *, is_terminal: bool) -> None:
        from launcher.render.prose import shown_prose

        stream.write(shown_prose(text) if is_terminal else text)
        stream.flush()


class Talk:
    """One conversation with one instance."""

    def __init__(self, name: str, *, key: str | None, wishes: "Wishes", conversation: "Conversation") -> None:
        """Begin it; nothing is asked yet."""
        self.name = name
        self.wishes = wishes
        self.conversation = conversation
        self._key = key
        self._told = ""

    def locate(self) -> "Endpoint | None":
        """Return where the instance answers now; raise where it does not any more."""
        from launcher.cli.reaching import endpoint_of, require_served

        return endpoint_of(require_served(self.name), self._key)

    def tell(self, words: str) -> None:
        """Say on stderr why it takes long, once."""
        if words != self._told:
            self._told = words
            sys.stderr.write(f"waiting: {words}\n")
            sys.stderr.flush()

    def look(self) -> None:
        """Say so where the engine is away that is waited for."""
        from launcher.cli.reaching import find_named
        from launcher.domain import State
        from launcher.errors import NotServedError

        try:
            view = find_named(self.name)
        except NotServedError:
            return
        if view.state is not State.READY:
            self.tell(f"`{view.name}` is {view.state}" + (f" ({view.reason})" if view.reason else ""))

    def ask(self, question: str, on_piece: "Callable[[Piece], None]") -> "ChatStream":
        """Have a question answered.

        Raises:
            LauncherError: it was not, or not as a whole.
        """
        from launcher.client.chat import Asking, have_answered
        from launcher.client.conversation import request_body

        self._told = ""
        messages = self.conversation.asking(question)
        return have_answered(
            Asking(
                locate=self.locate,
                body=lambda endpoint: request_body(endpoint.model, messages, self.wishes),
                on_piece=on_piece,
                tell=self.tell,
                on_wait=self.look,
            )
        )

    def cut_at(self) -> str:
        """Say at which limit an answer ended that is not whole."""
        limit = "the end of the context"
        if self.wishes.max_tokens is not None:
            limit = f"--max-tokens {self.wishes.max_tokens}, or at {limit}"
        return f"the answer of `{self.name}` was cut at {limit}"
