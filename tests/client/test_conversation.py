"""What is sent of a conversation."""

import json

from hypothesis import given
from hypothesis import strategies as st

from launcher.client.conversation import Conversation, Message, Wishes, request_body


def test_everything_said_is_sent_in_its_order() -> None:
    """System text first, then questions and answers in turn, the new question last."""
    talk = Conversation(system="s").with_exchange("q1", "a1").with_exchange("q2", "a2")
    said = [(message.role, message.content) for message in talk.asking("q3")]
    assert said == [
        ("system", "s"),
        *[("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")],
        ("user", "q3"),
    ]
    assert [message.content for message in talk.without_first().asking("q3")] == ["s", "q2", "a2", "q3"]
    assert [message.content for message in talk.cleared().asking("q3")] == ["s", "q3"]
    assert Conversation().without_first() == Conversation()
    assert Conversation().asking("q") == (Message(role="user", content="q"),)


def test_what_is_not_wished_is_not_said() -> None:
    """The engine's own values hold then: a null could be refused."""
    said = json.loads(request_body("m", Conversation().asking("q"), Wishes()))
    assert set(said) == {"model", "messages", "stream"}
    wished = json.loads(request_body("m", Conversation().asking("q"), Wishes(max_tokens=3, temperature=0.0)))
    assert (wished["max_tokens"], wished["temperature"]) == (3, 0.0)


@given(st.text(st.characters()))
def test_any_text_can_be_sent(text: str) -> None:
    """Half a surrogate pair, which a terminal may well send, is no fault."""
    said = json.loads(request_body("m", Conversation(system=text).asking(text), Wishes()))
    assert [message["content"] for message in said["messages"]] == [text.encode(errors="replace").decode()] * 2
