"""Kill a process of a served instance at random moments, and count what is left: a table, and exit code 1 if anything is.

    python -m benchmarks.kill_storm [--rounds 20] [--seed N] [--victim supervisor|engine|guard|any]

Run from the checkout's root. Each round starts a supervisor over a fake engine with a stubborn tree, kills the victim
with SIGKILL after a random time between its first instant and a second of serving, lets the instance end, and then
looks for surviving processes, the port, the lock, and whether the next serve of the same name and port works.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.programs import listens
from launcher.domain import Address
from launcher.errors import AlreadyServedError, PortInUseError
from launcher.store import open_instance
from launcher.supervisor.checks import check_port, free_port
from tests.fakes.harness import Served, poll, start, survivors

LOAD_S = 1.0
VICTIMS = ("supervisor", "engine", "guard")
ENGINE = ("--load-s", str(LOAD_S), "--stubborn-tree", "--ignore-sigterm")
OPTIONS = {"restarts": {"first_delay_s": 0.1, "jitter_s": 0.0}}


def victim_pid(served: Served, victim: str) -> int | None:
    """Return the number to kill, or ``None`` where that process does not exist at this moment."""
    if victim == "supervisor":
        return served.process.pid
    try:
        return served.engine_pid() if victim == "engine" else served.guard_pid()
    except (IndexError, OSError):
        return None


def kill_one(served: Served, victim: str) -> str:
    """Kill the victim, if it is there; return what was done."""
    pid = victim_pid(served, victim)
    if pid is None:
        return "not there yet"
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return "gone already"
    return "killed"


def lock_is_free(name: str) -> bool:
    """Whether the instance's lock can be had."""
    try:
        with open_instance(name):
            return True
    except AlreadyServedError:
        return False


def port_is_free(port: int) -> bool:
    """Whether the port can be listened on."""
    try:
        check_port(Address(port=port))
    except PortInUseError:
        return False
    return True


def play(number: int, victim: str, at_s: float, folder: Path) -> tuple[str, int, bool, bool, bool, float]:
    """Run one round; return what was done, survivors, whether port and lock are free, the next serve, seconds to clean."""
    port = free_port("127.0.0.1")
    served = start(*ENGINE, name="storm", port=port, output=folder / f"{number}.out", options=OPTIONS)
    time.sleep(at_s)
    done = kill_one(served, victim)
    killed_s = time.monotonic()
    if victim != "supervisor" or done != "killed":
        served.process.terminate()
    served.process.wait(30)
    poll(lambda: not survivors(port), 10)
    clean_s = time.monotonic() - killed_s
    left, port_free, lock_free = len(survivors(port)), port_is_free(port), lock_is_free("storm")
    again = start(name="storm", port=port, output=folder / f"{number}.again")
    works = bool(poll(lambda: "engine.ready" in again.events() or again.process.poll() is not None))
    works = works and listens(port)
    again.process.terminate()
    return done, left, port_free, lock_free, works and again.process.wait(30) == 0 and not survivors(port), clean_s


def main() -> int:
    """Play all rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--victim", choices=(*VICTIMS, "any"), default="any")
    parser.add_argument(
        "--within", type=float, default=LOAD_S + 1.5, help="kill at most this many seconds after the start"
    )
    args = parser.parse_args()
    dice = random.Random(args.seed)  # noqa: S311 - moments, no secrets
    failures = 0
    print(" #  victim      at      what           survivors  port free  lock free  next serve  clean after")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LAUNCHER_STATE_DIR"] = f"{folder}/state"
        for number in range(1, args.rounds + 1):
            victim = dice.choice(VICTIMS) if args.victim == "any" else args.victim
            at_s = dice.uniform(0.0, args.within)
            done, left, port_free, lock_free, works, clean_s = play(number, victim, at_s, Path(folder))
            good = left == 0 and port_free and lock_free and works
            failures += not good
            words = ["yes" if flag else "NO" for flag in (port_free, lock_free, works)]
            print(
                f"{number:2}  {victim:10}  {at_s:4.2f} s  {done:13}  {left:9}  {words[0]:9}  {words[1]:9}  "
                f"{words[2]:10}  {clean_s:5.2f} s",
                flush=True,
            )
    print(f"{args.rounds - failures} of {args.rounds} left nothing behind")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
