"""Turn what a guard reports of one engine, that it was started, ended or is gone, into events.

It must not know phases, nor what follows from an event.
"""

import os
from pathlib import Path

from launcher.errors import StateError
from launcher.store import identify
from launcher.supervisor import failures, faults
from launcher.supervisor.account import Account
from launcher.supervisor.failures import Failure
from launcher.supervisor.machine import Event
from launcher.supervisor.processes import OomKills
from launcher.supervisor.setback import Shortage
from launcher.supervisor.signs import Cause
from launcher.supervisor.tether import Tether
from launcher.supervisor.watching import Post, Watched


class Reports:
    """What a guard reports of one engine."""

    def __init__(self, engine: Watched, folder: Path, account: Account, post: Post) -> None:
        """Begin with an engine that is about to be started; ``folder`` is where its guard keeps its record."""
        self._engine = engine
        self._folder = folder
        self._account = account
        self._post = post
        self._oom_kills = OomKills()

    def take(self, report: dict[str, int | str], tether: Tether | None, *, was_ready: bool, is_expected: bool) -> None:
        """Post what a report means; ``is_expected``: the engine was asked to end."""
        number = report.get("errno")
        why = os.strerror(int(number)).lower() if number is not None else ""
        match report["event"]:
            case "spawned":
                assert tether is not None  # noqa: S101 - it is whose guard reports
                self._on_spawned(int(report["pid"]), tether)
            case "spawn-failed":
                message = f"{self._engine.command.argv[0]} cannot be executed: {why}"
                self._post(Event.SPAWN_FAILED, Failure(message=message))
            case "record-failed":
                message = f"cannot write in {self._folder}: {why}"
                help_ = "free some disk space, or set LAUNCHER_STATE_DIR to a folder that can be written"
                self._post(Event.SPAWN_FAILED, Failure(kind=StateError, message=message, help=help_))
            case "exited":
                if tether is not None:
                    tether.drain()  # all that the dead process wrote is in the pipe: read it before judging
                code, signal_number = report.get("code"), report.get("signal")
                self._on_exit(
                    None if code is None else int(code),
                    None if signal_number is None else int(signal_number),
                    was_ready=was_ready,
                    is_expected=is_expected,
                )
            case _:  # "gone", the last
                if report["survivors"]:
                    n = report["survivors"]
                    self._account.notify("engine.stuck", f"{n} processes of the engine hang in the kernel", survivors=n)
                self._post(Event.GONE)

    def _on_spawned(self, pid: int, tether: Tether) -> None:
        engine = identify(pid)
        self._oom_kills = OomKills.of(pid)
        self._account.update(guard=tether.guard, engine=engine)
        program = os.path.basename(self._engine.command.argv[0])  # noqa: PTH119 - a name, not a file
        self._account.notify(
            "engine.spawned",
            f"started {program} as process {pid}",
            pid=pid,
            start_time=None if engine is None else engine.start_time,
        )
        self._post(Event.SPAWNED)

    def _on_exit(self, code: int | None, signal_number: int | None, *, was_ready: bool, is_expected: bool) -> None:
        engine = self._engine
        how = faults.describe_exit(code, signal_number)
        self._account.update(last_exit=how)
        self._account.notify(
            "engine.exited", f"the engine ended ({how})", expected=is_expected, code=code, signal=signal_number
        )
        found = faults.classify(
            faults.End(
                lines=engine.heard.lines_since_ready if was_ready else engine.heard.lines,
                code=code,
                signal_number=signal_number,
                was_ready=was_ready,
                n_oom_kills=self._oom_kills.rise(),
            )
        )
        plan = engine.plan if engine.is_replaceable else None
        failure = failures.of_end(found, how, plan=plan, name=engine.name, log=engine.heard.lines)
        is_own_port = found.cause is Cause.PORT and engine.is_replaceable  # the next start has another
        if failure.setback is not None:
            is_lost = failure.setback.shortage is Shortage.LOST
            self._post(Event.WORKER_LOST if is_lost else Event.OUT_OF_MEMORY, failure)
        else:
            may_mend = found.answer is faults.Answer.RESTART or is_own_port
            self._post(Event.DIED if may_mend else Event.DIED_FOR_GOOD, failure)
