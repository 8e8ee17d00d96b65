"""The published faults of vLLM's versions that a served model is open to, as data.

Only what reaches an engine that is served on loopback behind the gateway: whoever wrote the model's folder, whoever sends a
request, other users of the machine. Faults of several machines talking to each other are not among them. It must not know
how a version was found.
"""

from typing import Final

from launcher.inventory.holes import Hole, describe_holes, parse_release

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
        ids="CVE-2025-62164",
        since=(0, 10, 2),
        mended=(0, 11, 1),
        what="a request can write beyond the engine's memory",
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


def find_holes(version: str | None) -> tuple[str, ...]:
    """Return the faults of a version in words; none where it is unknown, as of a build from a working copy."""
    release = parse_release(version) if version and "dev" not in version else None
    return () if release is None else describe_holes(HOLES, release)
