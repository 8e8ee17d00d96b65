"""Reads an answer of Ray's dashboard as one of the shapes that are known.

It must not know any of them.
"""

from typing import TypeVar

import msgspec

from launcher.errors import ClusterError
from launcher.inventory.text import printable

_Answer = TypeVar("_Answer")


def decode(body: bytes, kind: type[_Answer], url: str, *, who: str = "Ray's dashboard") -> _Answer:
    """Return the answer to a question at ``url``; ``who`` should have given it.

    Raises:
        ClusterError: it is no JSON, or of another shape.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{url} does not answer as {who} does: {printable(str(error))}"
        raise ClusterError(message, help="Ray 2.60 is what was tried") from error
