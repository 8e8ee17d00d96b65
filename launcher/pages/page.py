"""A page of `launch explain`. It must not know which pages there are. Pure."""

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """Where a code is met."""

    ERROR = "error"
    """A named fault that ended a command: ``error[CODE]``, exit code 1 or 2."""
    REFUSAL = "refusal"
    """A plan that was understood and refused: ``error[CODE]``, exit code 3."""
    CAUSE = "cause"
    """Why an engine was lost, in events and logs."""
    SIGN = "sign"
    """A text in an engine's log."""
    FINDING = "finding"
    """Of `launch doctor`."""


class Page(NamedTuple):
    """What a code means, how it comes about, and what to do; each of ``do`` is one way."""

    code: str
    kinds: tuple[Kind, ...]
    means: str
    comes: str
    do: tuple[str, ...]


def page_of(kind: Kind, code: str, means: str, comes: str, *do: str, also: Kind | None = None) -> Page:
    """Return a page of one kind, or of two where both use the code."""
    return Page(code=code, kinds=(kind,) if also is None else (kind, also), means=means, comes=comes, do=do)
