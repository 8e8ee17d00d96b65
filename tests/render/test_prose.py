"""What a model wrote, as a terminal gets it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.render.prose import shown_prose


@given(st.text(st.characters()))
def test_nothing_that_steers_gets_through(text: str) -> None:
    """No control but line ends and tabs, no mark of direction, no half of a surrogate pair, whatever was written."""
    steering = {
        character
        for character in shown_prose(text)
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in "\n\t\u200c\u200d"
    }
    assert steering == set()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M", "Zs", "Co"]) | st.sampled_from("\n\t\u200c\u200d")))
def test_prose_is_left_as_it_is(text: str) -> None:
    """Letters, marks, figures, signs and spaces of any writing are shown as they came."""
    assert shown_prose(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\x07\x7f", "a\\rb\\x07\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
    ],
)
def test_what_steers_is_escaped(text: str, shown: str) -> None:
    """It can be read, and does nothing."""
    assert shown_prose(text) == shown


@given(st.lists(st.text(st.characters()), max_size=5))
def test_parts_come_to_the_same_as_the_whole(parts: list[str]) -> None:
    """A stream is shown piece by piece."""
    assert "".join(map(shown_prose, parts)) == shown_prose("".join(parts))
