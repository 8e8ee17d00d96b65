"""Measure what the launcher adds: its commands against ``import typer``, and serving against the bare engine.

Every round runs each contender once, in turn, so that a busy machine slows all of them alike; medians and their ratios
are printed. Exit code 1 where a promise is broken: ``launch --help`` and ``launch plan`` within 3 times the yardstick,
readiness within 1.0 s of the bare engine's own.
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

import psutil

from benchmarks.programs import LAUNCH, answers, running, serving
from benchmarks.turns import in_turns
from launcher.supervisor.checks import free_port

MAX_RATIO: Final = 3.0
MAX_ADDED_S: Final = 1.0


def _time_process(argv: tuple[str, ...]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)  # noqa: S603 - our own words
    return time.perf_counter() - start


def print_samples(title: str, samples: dict[str, list[float]]) -> dict[str, float]:
    """Print a row for each contender; return their medians in seconds."""
    print(f"{title}\n  {'':<44}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in samples.items():
        row = (statistics.median(values), min(values), max(values))
        print(f"  {name:<44}" + "".join(f"{value * 1e3:>6.0f} ms" for value in row))
    return {name: statistics.median(values) for name, values in samples.items()}


def measure_commands(rounds: int) -> bool:
    """Time ``launch --help`` and ``launch plan`` against ``python -c "import typer"``."""
    yardstick = "python -c 'import typer'"
    commands = {
        yardstick: (sys.executable, "-c", "import typer"),
        "launch --help": (LAUNCH, "--help"),
        "launch plan gemma2-27b --inventory rtx4090": (LAUNCH, "plan", "gemma2-27b", "--inventory", "rtx4090"),
    }
    samples = in_turns({name: lambda argv=argv: _time_process(argv) for name, argv in commands.items()}, rounds)  # type: ignore[misc]  # a lambda's default has no annotation
    medians = print_samples("start-up", samples)
    kept = True
    for name, median in medians.items():
        if name != yardstick:
            ratio = median / medians[yardstick]
            print(f"  {name}: {ratio:.2f} x the yardstick (at most {MAX_RATIO:g})")
            kept = kept and ratio <= MAX_RATIO
    return kept


def time_bare(argv: list[str], env: dict[str, str]) -> float:
    """Start the engine as the launcher did, on the port and with the key that it was given then."""
    is_server = "llama_cpp.server" not in argv
    ready, key = ("/health", "LLAMA_API_KEY") if is_server else ("/v1/models", "API_KEY")
    url = f"http://127.0.0.1:{argv[argv.index('--port') + 1]}{ready}"
    with running(argv, env, is_there=lambda: answers(url, env[key])) as (_, seconds):
        return seconds


def time_launch(words: list[str], env: dict[str, str]) -> float:
    """Return the seconds from `launch serve` to its endpoint line."""
    start = time.perf_counter()
    with serving(words, env):
        return time.perf_counter() - start


def engine_command(words: list[str], env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Serve, and read from the kernel the command and environment that the engine was started with."""
    with serving(words, env) as process:
        for child in psutil.Process(process.pid).children(recursive=True):
            command = child.cmdline()
            if "--port" in command and "--model" in command:
                return command, child.environ()
    message = "no engine was found below launch serve"
    raise SystemExit(message)


def measure_serving(rounds: int) -> bool:
    """Time from ``launch serve`` to ready against the bare engine with the same arguments to its own ready."""
    with tempfile.TemporaryDirectory() as state:
        env = {**os.environ, "LAUNCHER_STATE_DIR": state}
        words = ["gemma3-270m", "--port", str(free_port("127.0.0.1")), "--context", "2048"]
        time_launch(words, env)  # a plan's first start asks the engine for its account: `preflight_cost` measures that
        argv, engine_env = engine_command(words, env)
        bare, launched = f"bare {Path(argv[0]).name}", "launch serve gemma3-270m, to its endpoint line"
        contenders = {
            bare: lambda: time_bare(argv, engine_env),
            launched: lambda: time_launch(words, env),
        }
        medians = print_samples("from start to ready", in_turns(contenders, rounds))
    added = medians[launched] - medians[bare]
    print(f"  added: {added:.2f} s (at most {MAX_ADDED_S:g} s)")
    return added <= MAX_ADDED_S


def main() -> int:
    """Measure both and say whether the promises were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve-rounds", type=int, default=7)
    options = parser.parse_args()
    kept = measure_commands(options.rounds)
    kept = measure_serving(options.serve_rounds) and kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
