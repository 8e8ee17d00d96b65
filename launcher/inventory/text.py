"""Foreign text made fit to show: a terminal must not obey what a driver or an engine printed. Pure."""

import re
from typing import Final

_STYLE: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def printable(text: str) -> str:
    """Return the text with every character that cannot be shown, line ends included, replaced by U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def without_styles(text: str) -> str:
    """Return the text without what would colour it, or move the cursor, in a terminal."""
    return _STYLE.sub("", text)
