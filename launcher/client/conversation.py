"""What was said so far, as a chat endpoint wants to be told it. Pure; it must not know how an answer is had."""

from typing import Final

import msgspec

from launcher.domain import Noun


class Message(Noun, frozen=True):
    """One turn: ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class Wishes(Noun, frozen=True):
    """What is asked of every answer; ``None`` leaves it to the engine."""

    max_tokens: int | None = None
    temperature: float | None = None


class Conversation(Noun, frozen=True):
    """A system text, where there is one, and whole exchanges: a question, and its answer behind it."""

    system: str | None = None
    exchanges: tuple[tuple[str, str], ...] = ()

    def asking(self, question: str) -> tuple[Message, ...]:
        """Return all that is sent to have a question answered."""
        said = [Message(role="system", content=self.system)] if self.system is not None else []
        for asked, answered in self.exchanges:
            said += [Message(role="user", content=asked), Message(role="assistant", content=answered)]
        return (*said, Message(role="user", content=question))

    def with_exchange(self, question: str, answer: str) -> "Conversation":
        """Return the conversation with one exchange more."""
        return Conversation(system=self.system, exchanges=(*self.exchanges, (question, answer)))

    def without_first(self) -> "Conversation":
        """Return the conversation without its oldest exchange."""
        return Conversation(system=self.system, exchanges=self.exchanges[1:])

    def cleared(self) -> "Conversation":
        """Return the conversation at its beginning: the system text alone."""
        return Conversation(system=self.system)


_encode: Final = msgspec.json.Encoder().encode


def request_body(model: str, messages: tuple[Message, ...], wishes: Wishes) -> bytes:
    """Return the JSON of a request for a streamed answer; what is no Unicode (half a surrogate pair) is replaced."""
    asked: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": message.role, "content": message.content.encode(errors="replace").decode()} for message in messages
        ],
        "stream": True,
    }
    wanted = {"max_tokens": wishes.max_tokens, "temperature": wishes.temperature}
    return _encode(asked | {name: value for name, value in wanted.items() if value is not None})
