"""The published faults of Ray's releases that a cluster which serves models is open to, as data.

Those of libraries of Ray that serving does not use (reading data sets) are not among them. It must not know how a version was found.
"""

from typing import Final

from launcher.inventory.holes import Hole, describe_holes, parse_release

HOLES: Final = (
    Hole(
        ids="CVE-2026-27482, GHSA-q5fh-2hc8-f6rq",
        since=(0,),
        mended=(2, 54, 0),
        what="a web page in a browser that reaches the dashboard can end what is served",
    ),
    Hole(
        ids="CVE-2025-62593, GHSA-q279-jhrf-cc6v",
        since=(0,),
        mended=(2, 52, 0),
        what="a web page in a browser that reaches the dashboard can run programs on the cluster",
    ),
)
"""From Ray's advisories as databases of vulnerabilities repeat them, looked up in November 2026; newest first."""


def find_holes(version: str) -> tuple[str, ...]:
    """Return the faults of a release in words; none where it is unknown."""
    release = parse_release(version)
    return () if release is None else describe_holes(HOLES, release)
