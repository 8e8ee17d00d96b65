"""What supervising costs while nothing is asked: processor time and memory of supervisor, gateway and guard together.

Usage: python -m benchmarks.idle_cost [NAME] [--seconds S]; NAME defaults to the 270M model. Serves it for real, asks it
one thing and its metrics once, so that all that is loaded on demand is there, then leaves it alone. Memory is the
proportional set size. Exits 1 beyond 1 % of a core or 80 MiB.
"""

import argparse
import os
import sys
import tempfile
import time
import urllib.request
from typing import Final

import psutil

from benchmarks.programs import cpu_s, pss_bytes, serving
from launcher.supervisor.checks import free_port
from launcher.units import MIB

MAX_SHARE: Final = 0.01
MAX_BYTES: Final = 80 * MIB
_SETTLE_S: Final = 5.0
_BODY: Final = b'{"messages":[{"role":"user","content":"hello"}],"max_tokens":4}'


def ask(url: str, body: bytes | None = None) -> None:
    """Send one request and read its answer."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - http, by the caller
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - as above
        answer.read()


def main() -> int:
    """Serve, measure, print; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default="gemma3-270m")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    port = free_port("127.0.0.1")
    with tempfile.TemporaryDirectory() as state:
        env = {**os.environ, "LAUNCHER_STATE_DIR": state}
        with serving([args.name, "--port", str(port)], env) as process:
            ask(f"http://127.0.0.1:{port}/v1/chat/completions", _BODY)
            ask(f"http://127.0.0.1:{port}/metrics")
            time.sleep(_SETTLE_S)
            supervisor = psutil.Process(process.pid)
            ours = [supervisor, *supervisor.children()]  # the engine is below the guard
            before, start_s = cpu_s(ours), time.monotonic()
            time.sleep(args.seconds)
            share = (cpu_s(ours) - before) / (time.monotonic() - start_s)
            n_bytes = pss_bytes(ours)
    print(f"idle for {args.seconds:.0f} s: {share:.2%} of a core (at most {MAX_SHARE:.0%}), ", end="")
    print(f"{n_bytes / MIB:.1f} MiB (at most {MAX_BYTES / MIB:.0f}) in {len(ours)} processes")
    return 0 if share <= MAX_SHARE and n_bytes <= MAX_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
