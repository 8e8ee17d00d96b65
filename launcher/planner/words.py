"""Words of a model's files as they may stand in a plan, which terminals show.

It must not know what a word means. Pure.
"""

from typing import Final

_MAX_CHARACTERS: Final = 80


def shown(word: str) -> str:
    """Return a word without characters that a terminal obeys, and of bounded length: nobody vouches for the file."""
    plain = word if word.isprintable() else ascii(word[:_MAX_CHARACTERS])[1:-1]
    return plain if len(plain) <= _MAX_CHARACTERS else plain[: _MAX_CHARACTERS - 1] + "…"
