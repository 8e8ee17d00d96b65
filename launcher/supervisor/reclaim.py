"""End what a killed guard has left behind, of this supervisor or of an earlier one.

It must not know how engines are started; it goes by the guards' records, the token, and adopted orphans. A process
that cleaned its environment and forked twice is out of reach when supervisor and guard were both killed: only a
control group holds that one.
"""

import contextlib
import os
import signal
import time
from typing import Final

from launcher.errors import EngineFailedError
from launcher.store import GuardRecord, Instance, boot_id, is_alive
from launcher.supervisor.guard import read_stat
from launcher.supervisor.processes import all_pids, kill_marked

_POLL_S: Final = 0.02
_GUARD_PATIENCE_S: Final = 5.0
"""A guard whose supervisor is gone ends its engine within its grace (one second) and leaves: assumed five at most."""


def reclaim(instance: Instance) -> int:
    """End all that the recorded guards have left, under the instance's lock; return how many records there were.

    Raises:
        EngineFailedError: a process withstands SIGKILL, which is the kernel's or the driver's doing.
    """
    records = instance.read_guards()
    for record in records:
        reclaim_one(instance, record)
    return len(records)


def reclaim_one(instance: Instance, record: GuardRecord) -> None:
    """End one guard's tree: let a living guard do it, then kill what is left, then forget the record."""
    same_boot = record.guard is None or record.guard.boot_id == boot_id()
    if same_boot:
        _await_guard(record)
        stuck = kill_marked(record.token, root=record.engine)
        if stuck:
            message = f"processes {', '.join(map(str, stuck))} of an earlier `{instance.name}` cannot be killed"
            raise EngineFailedError(
                message, help="they hang in the kernel, often in a GPU driver; `dmesg` may tell, a reboot ends them"
            )
    instance.forget_guard(record.token)


def end_adopted(known: frozenset[int]) -> None:
    """Kill what a killed guard has left to this process, which must be a subreaper: its children outside ``known``.

    That reaches also those that cleaned their environment and left their session. Their own children come up, round
    by round, until none is left.
    """
    give_up = time.monotonic() + _GUARD_PATIENCE_S
    while adopted := [pid for pid in children() if pid not in known]:
        for pid in adopted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > give_up:
            return
        time.sleep(_POLL_S)


def children() -> frozenset[int]:
    """Return this process's own children."""
    me = os.getpid()
    return frozenset(pid for pid in all_pids() if (stat := read_stat(pid)) is not None and stat[0] == me)


def _await_guard(record: GuardRecord) -> None:
    """Give a guard that still lives the time it needs; one that takes longer is killed, as its engine will be."""
    if record.guard is None:
        return
    give_up = time.monotonic() + _GUARD_PATIENCE_S
    while is_alive(record.guard):
        if time.monotonic() > give_up:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.guard.pid, signal.SIGKILL)
        time.sleep(_POLL_S)
