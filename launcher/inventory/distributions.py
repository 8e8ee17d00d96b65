"""The version of an installed distribution, from its metadata on disk.

It must not know which distributions matter, nor import any: some take ten seconds.
"""

import contextlib
from pathlib import Path


def read_version(distribution: str, folder: Path) -> str | None:
    """Return the version of a distribution whose metadata stand in ``folder``; ``None`` where none do, or tell none."""
    for found in folder.glob(f"{distribution.replace('-', '_')}-*.dist-info"):
        with contextlib.suppress(OSError), (found / "METADATA").open(errors="replace") as lines:
            for line in iter(lines.readline, "\n"):
                if not line or line.startswith("Version:"):
                    return line.partition(":")[2].strip() or None
    return None
