"""Keep the account of an instance: its record on disk, its events, its engine's log, and whoever listens.

It must not know what an act means, nor fail because a disk or a terminal does.
"""

import contextlib
import os
import time
from collections.abc import Callable

from msgspec.structs import replace

from launcher.domain import Address, InstanceRecord, Plan, State
from launcher.errors import StateError
from launcher.store import Instance, identify
from launcher.supervisor.logs import RotatingFile
from launcher.supervisor.notices import Fact, Notice, Report, write_notice
from launcher.supervisor.options import RunOptions


def without_tensors(plan: Plan | None) -> Plan | None:
    """Return a plan for the record: the tensors of a large model are most of its bytes, and nobody reads them there."""
    return plan and replace(plan, artifact=replace(plan.artifact, spec=None))


class Account:
    """What others can know of an instance; written by its supervisor alone."""

    def __init__(
        self, instance: Instance, address: Address, plan: Plan | None, options: RunOptions, report: Report
    ) -> None:
        """Open the files and write the first record.

        Raises:
            StateError: the disk does not take it.
        """
        self._instance = instance
        self._report = report
        self._is_unwritable = False
        self._log = RotatingFile(instance.log_path, options.log_bytes, self._on_log_fault)
        self._events = RotatingFile(instance.events_path, options.events_bytes, lambda _: None)
        self._listener: Callable[[InstanceRecord], None] | None = None
        me = identify(os.getpid())
        assert me is not None, "a running process has an entry in /proc"  # noqa: S101
        self.record = InstanceRecord(
            name=instance.name,
            state=State.STARTING,
            supervisor=me,
            address=address,
            started_at=time.time(),
            changed_at=time.time(),
            log_path=str(instance.log_path),
            plan=without_tensors(plan),
        )
        try:
            instance.write(self.record)
        except OSError as error:
            message = f"cannot write in {instance.path}: {(error.strerror or str(error)).lower()}"
            raise StateError(
                message, help="free some disk space, or set LAUNCHER_STATE_DIR to a folder that can be written"
            ) from error

    def notify(self, event: str, text: str, *, transient: bool = False, **facts: Fact) -> None:
        """Report one act, in words and as a line of the events file."""
        self.report(Notice(event=event, text=text, facts=facts, transient=transient))

    def report(self, notice: Notice) -> None:
        """Report one act that is worded already."""
        if not notice.transient:
            write_notice(self._events, notice)
        with contextlib.suppress(OSError):  # a closed terminal must not end the supervision
            self._report(notice)

    def update(self, **changes: object) -> None:
        """Replace the record; a disk that no longer takes it does not end the serving."""
        self.record = replace(self.record, changed_at=time.time(), **changes)
        try:
            self._instance.write(self.record)
        except OSError as error:
            if not self._is_unwritable:
                self._is_unwritable = True
                why = (error.strerror or str(error)).lower()
                self.notify(
                    "state.unwritable", f"the state cannot be written ({why}); `launch ps` is out of date", error=why
                )
        else:
            self._is_unwritable = False
        if self._listener is not None:
            self._listener(self.record)

    def tell(self, listener: Callable[[InstanceRecord], None]) -> None:
        """Hand every later record to a listener, too."""
        self._listener = listener

    def write_line(self, line: str) -> None:
        """Append a line to the engine's log."""
        self._log.write(line)

    def _on_log_fault(self, error: OSError) -> None:
        why = (error.strerror or str(error)).lower()
        self.notify("log.dropped", f"the engine's log cannot be written ({why}); its lines are dropped", error=why)

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self._events.close()
