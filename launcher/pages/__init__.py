"""The pages of `launch explain`: what each code means, how it comes about, what to do about it.

Data beside the errors. It must not know how a code was found, nor import what raises it: a test compares. Pure.
"""

from collections.abc import Mapping
from typing import Final

from launcher.pages import causes, errors, findings, refusals, signs
from launcher.pages.page import Kind, Page

__all__ = ["PAGES", "Kind", "Page", "near"]


def _by_code() -> dict[str, Page]:
    """Return the pages by code; one that is used in two ways has one page, which speaks of both."""
    found: dict[str, Page] = {}
    for page in (*errors.PAGES, *refusals.PAGES, *causes.PAGES, *signs.PAGES, *findings.PAGES):
        if page.code in found:
            message = f"two pages for `{page.code}`"
            raise ValueError(message)
        found[page.code] = page
    return found


PAGES: Final[Mapping[str, Page]] = _by_code()


def near(code: str) -> tuple[str, ...]:
    """Return the codes that are written almost like this one, or have it as a part; the nearest first, at most three."""
    from difflib import get_close_matches  # noqa: PLC0415 - only an unknown code needs it

    word = code.lower()
    parts = [known for known in PAGES if len(word) > 2 and word in known]  # noqa: PLR2004 - two letters are in many
    return tuple(dict.fromkeys((*get_close_matches(word, PAGES, n=3, cutoff=0.7), *parts)))[:3]
