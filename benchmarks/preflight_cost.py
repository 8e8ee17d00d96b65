"""Measure what judging a start by the engine's own account of its memory adds to that start.

Every round runs each contender once, in turn; medians and medians of the differences within a round are printed. The
engine is `llama-server` with the arguments that the launcher gives it; asked for its account it builds the model once
more, without allocating it. That is asked once for each plan on a machine: later starts recall it.
Exit code 1 where recalling and judging, or a later start over the bare engine's, breaks its promise: 0.1 s, 1.0 s.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from benchmarks.start_up import MAX_ADDED_S as MAX_LAUNCH_S
from benchmarks.start_up import engine_command, print_samples, time_bare, time_launch
from benchmarks.turns import in_turns
from launcher.domain import Command
from launcher.store import find_instance
from launcher.supervisor.checks import free_port
from launcher.supervisor.preflight import judge
from launcher.supervisor.recall import Recall

MAX_ADDED_S: Final = 0.1
_MODEL: Final = "gemma3-270m"
_NO_VOCABULARY: Final = "tokenizer.ggml.model=str:none,gemma3.vocab_size=int:262144"
"""For this model: what the account does not depend on, and most of the time that it takes."""
_N_RECALLS: Final = 200
_PATIENCE_S: Final = 120.0


def _with_fit(argv: list[str], word: str) -> list[str]:
    idx = argv.index("--fit") + 1
    return [*argv[:idx], word, *argv[idx + 1 :]]


def _time_first(words: list[str], env: dict[str, str]) -> float:
    """Time a launch on a machine that knows nothing yet."""
    with tempfile.TemporaryDirectory() as state:
        return time_launch(words, {**env, "LAUNCHER_STATE_DIR": state})


def _time_account(argv: list[str], env: dict[str, str]) -> float:
    """Time from the start of a process until it has told what the host would hold, and end it there."""
    began_s = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) as process:  # noqa: S603 - the launcher's own words
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        patience = threading.Timer(_PATIENCE_S, process.kill)  # one that prints nothing would be read for ever
        patience.start()
        try:
            for line in process.stdout:
                if b"|   - Host" in line:
                    return time.perf_counter() - began_s
        finally:
            patience.cancel()
            process.kill()
    message = "the engine told nothing of its memory"
    raise SystemExit(message)


def _time_recall(argv: list[str]) -> float:
    """Time finding the account on disk and judging a start by it, in this process."""
    record = find_instance(_MODEL).record
    if record is None or record.plan is None:
        message = "the instance left no plan"
        raise SystemExit(message)
    plan, (machine,) = record.plan, (Path(os.environ["LAUNCHER_STATE_DIR"]) / "accounts").iterdir()
    command = Command(argv=tuple(argv), address=record.address, ready_path="", canary_path="", canary_body="")
    free = {budget.name: budget.free_bytes for budget in plan.budgets}
    began_s = time.perf_counter()
    for _ in range(_N_RECALLS):
        told = Recall(machine.name).find(command, plan.install)
        if told is None or not judge(plan, free, told).confirmed:
            message = "the account is not found again"
            raise SystemExit(message)
    return (time.perf_counter() - began_s) / _N_RECALLS


def _difference(one: list[float], other: list[float]) -> float:
    return statistics.median(a - b for a, b in zip(one, other, strict=True))


def main() -> int:
    """Measure, print, and say whether the promises were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    words = [_MODEL, "--engine", "llama-server", "--port", str(free_port("127.0.0.1")), "--context", "2048"]
    with tempfile.TemporaryDirectory() as state:
        os.environ["LAUNCHER_STATE_DIR"] = state
        env = dict(os.environ)
        time_launch(words, env)
        argv, engine_env = engine_command(words, env)
        plain, asked = _with_fit(argv, "off"), _with_fit(argv, "on")
        samples = in_turns(
            {
                "engine alone, not asked": lambda: time_bare(plain, engine_env),
                "engine alone, asked (its own default)": lambda: time_bare(asked, engine_env),
                "launch serve, first start of a plan": lambda: _time_first(words, env),
                "launch serve, every later start": lambda: time_launch(words, env),
                "a process that only tells": lambda: _time_account(asked, engine_env),
                "the same without its vocabulary": lambda: _time_account(
                    [*asked, "--override-kv", _NO_VOCABULARY], engine_env
                ),
            },
            options.rounds,
        )
        recall_s = _time_recall(argv)
    print_samples("from start to ready, and to the account", samples)
    alone, told, first, later = list(samples.values())[:4]
    kept = argv[argv.index("--fit") + 1] == "off"
    print(f"  the account takes, in the engine alone: {_difference(told, alone):.2f} s")
    print(f"  the account takes, in a plan's first start: {_difference(first, later):.2f} s")
    print(
        f"  a later start: not asked {kept}; recalled and judged in {recall_s * 1e3:.1f} ms (at most {MAX_ADDED_S:g} s)"
    )
    print(
        f"  a later start takes beyond the engine alone: {_difference(later, alone):.2f} s (at most {MAX_LAUNCH_S:g} s)"
    )
    return 0 if kept and recall_s <= MAX_ADDED_S and _difference(later, alone) <= MAX_LAUNCH_S else 1


if __name__ == "__main__":
    sys.exit(main())
