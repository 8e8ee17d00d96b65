"""The published faults of vLLM's versions that a served model is open to, as data.

Only what reaches an engine that is served on loopback behind the gateway: whoever wrote the model's folder, whoever sends a
request, other users of the machine. Faults of several machines talking to each other are not among them. It must not know
how a version was found.
"""

from typing import Final, NamedTuple


class Hole(NamedTuple):
    """One advisory of vLLM's project: versions from ``since`` on have it, those from ``mended`` on no longer."""

    ids: str
    since: tuple[int, ...]
    mended: tuple[int, ...]
    what: str


HOLES: Final = (
    Hole(
        ids="CVE-2026-48746, GHSA-94f4-hr76-p5j6",
        since=(0, 3, 0),
        mended=(0, 22, 0),
        what="requests are served without the API key",
    ),
    Hole(
        ids="CVE-2026-34756",
        since=(0, 1, 0),
        mended=(0, 19, 0),
        what="one request takes all memory of the host",
    ),
    Hole(
        ids="CVE-2026-27893, GHSA-7972-pg2x-xr59",
        since=(0, 10, 1),
        mended=(0, 18, 0),
        what="a model's folder can run code although that was not allowed",
    ),
    Hole(
        ids="CVE-2026-22778",
        since=(0, 8, 3),
        mended=(0, 14, 1),
        what="a request with a video can run code",
    ),
    Hole(
        ids="CVE-2026-22807, GHSA-2pc9-4j83-qjmr",
        since=(0, 10, 1),
        mended=(0, 14, 0),
        what="a model's folder can run code although that was not allowed",
    ),
    Hole(
        ids="CVE-2025-59425",
        since=(0,),
        mended=(0, 11, 0),
        what="the API key can be found by timing",
    ),
    Hole(
        ids="CVE-2025-48956",
        since=(0, 1, 0),
        mended=(0, 10, 1, 1),
        what="one request takes all memory of the host",
    ),
    Hole(
        ids="CVE-2025-48944, GHSA-vrq3-r879-7m65",
        since=(0, 8, 0),
        mended=(0, 9, 0),
        what="one request ends the engine",
    ),
)
"""From vLLM's advisories as databases of vulnerabilities repeat them, looked up in November 2026; newest first."""


_MAX_DIGITS: Final = 9


def parse_release(version: str) -> tuple[int, ...] | None:
    """Return the numbers of a release (``0.32.0+cpu``, ``0.18.0rc1``); ``None`` where it begins with none.

    A release candidate counts as its release, a local build (after ``+``) as what it was built from.
    """
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits or len(digits) > _MAX_DIGITS:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers) or None


def find_holes(version: str | None) -> tuple[str, ...]:
    """Return the faults of a version in words; none where it is unknown, as of a build from a working copy."""
    release = parse_release(version) if version and "dev" not in version else None
    if release is None:
        return ()
    return tuple(
        f"{hole.what} ({hole.ids}; mended in {'.'.join(map(str, hole.mended))})"
        for hole in HOLES
        if hole.since <= release < hole.mended
    )
