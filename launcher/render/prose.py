"""Make what a model wrote fit for a terminal. Pure; it must not know where it is shown."""

from typing import Final
from unicodedata import category

_HARMLESS: Final = frozenset("\n\t\u200c\u200d")
_UNSTEERING: Final = frozenset({"Zs", "Cn", "Co"})
"""Spaces, and what this Python's Unicode does not know yet or leaves to fonts: it may not be shown, but steers nothing."""


def shown_prose(text: str) -> str:
    """Return a text of several lines, or a part of one, as a terminal may get it: what could steer it is escaped.

    Line ends and tabs stay, and every kind of space; so do the joiners without which emoji and Persian fall apart. Marks that
    turn the direction of writing do not.
    """
    if text.isprintable():
        return text
    return "".join(character if _is_harmless(character) else ascii(character)[1:-1] for character in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in _HARMLESS or category(character) in _UNSTEERING
