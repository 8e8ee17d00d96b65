"""The published faults of llama.cpp's builds, and of llama-cpp-python, that a served model is open to, as data.

Only what reaches an engine that is served on loopback behind the gateway: whoever wrote the model's file, whoever sends a
request. Faults of its RPC are not among them: workers are experimental, and what is said of them in SECURITY.md holds for every
build. It must not know how a version was found.
"""

import re
from typing import Final

from launcher.inventory.holes import Hole, describe_holes, parse_release

BUILD_HOLES: Final = (
    Hole(
        ids="CVE-2026-21869, GHSA-8947-pfff-2f3c",
        since=(0,),
        mended=(8940,),
        what="a request can write beyond the engine's memory",
    ),
    Hole(
        ids="CVE-2026-27940, GHSA-3p4r-fq3f-q74v",
        since=(0,),
        mended=(8146,),
        what="a model's file can write beyond the engine's memory",
    ),
    Hole(
        ids="GHSA-96jg-mvhq-q7q7",
        since=(0,),
        mended=(7824,),
        what="a model's file can write beyond the engine's memory",
    ),
    Hole(
        ids="CVE-2025-52566, GHSA-7rxv-5jhh-j6xx",
        since=(0,),
        mended=(5721,),
        what="a prompt can write beyond the engine's memory",
    ),
    Hole(
        ids="CVE-2025-49847, GHSA-8wwf-w4qm-gpqr",
        since=(0,),
        mended=(5662,),
        what="a model's file can write beyond the engine's memory",
    ),
)
"""By build, newest first; from llama.cpp's advisories as databases of vulnerabilities repeat them, looked up in November 2026.

The first is mended by commit c78fb909b of 23 April 2026, which lies between the builds 8895 and 8940. Since builds only count
from 1, ``since`` says that all earlier ones have them.
"""
PYTHON_HOLES: Final = (
    Hole(
        ids="CVE-2024-34359, GHSA-56xg-wfcc-g829",
        since=(0, 2, 30),
        mended=(0, 2, 72),
        what="a model's file can run code",
    ),
)
"""By release of llama-cpp-python. Of the llama.cpp inside it only `PYTHON_BUILDS` tells anything."""

_BUILD: Final = re.compile(r"\(build (\d{3,6}),|(?:^|, )b?(\d{3,6})(?: \(|$)|^0\.(\d{4,6})\.\d+(?:,|$)")
"""Since September 2026 it tells ``0.5.0 (build 11175, commit abc1234)``, before that ``6123 (abc1234)``; the wheel's package has the
build in its own version."""


def parse_build(version: str | None) -> int | None:
    """Return the build number in what is known of a llama-server's version, ``None`` where there is none.

    A build from a bare source tree counts none (``build 0``), one from a shallow copy of the repository few.
    """
    found = _BUILD.search(version or "")
    return int(next(filter(None, found.groups()))) if found else None


def find_build_holes(version: str | None) -> tuple[str, ...]:
    """Return the faults of a llama-server in words; none where its build is unknown."""
    build = parse_build(version)
    return () if build is None else describe_holes(BUILD_HOLES, (build,))


def find_python_holes(version: str | None) -> tuple[str, ...]:
    """Return the faults of a llama-cpp-python in words; none where its release is unknown."""
    release = parse_release(version) if version else None
    return () if release is None else describe_holes(PYTHON_HOLES, release)
