"""What is said of an instance from the moment that `launch serve` holds it until an engine is started for it."""

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.domain import Address, InstanceRecord
    from launcher.store import Instance
    from launcher.supervisor.notices import Report


@contextmanager
def beginning(instance: "Instance", address: "Address", report: "Report") -> "Iterator[None]":
    """Show others who is at it while the block plans, and then starts: `launch stop` ends it, as signals do.

    Where it fails or is refused before anything was started, the record is again what it was before.

    Raises:
        Exit: it was told to stop before anything was started.
        PortInUseError: whatever would be planned could not be served.
        StateError: the disk does not take the record.
    """
    from launcher.cli.pulling import interruptible
    from launcher.domain import State
    from launcher.supervisor.account import Account
    from launcher.supervisor.checks import check_port
    from launcher.supervisor.options import RunOptions

    check_port(address)
    before = instance.read()
    account = Account(instance, address, None, RunOptions(), report)
    account.update(reason="it is being planned", application=before.application if before is not None else None)
    try:
        with interruptible():
            yield
    except BaseException as error:
        if not _has_only_begun(instance.read()):
            raise
        if not isinstance(error, KeyboardInterrupt):
            _put_back(instance, before)
            raise
        account.update(state=State.STOPPED, reason="stopped before anything was started")
        account.notify("instance.stopped", "stopped; nothing had been started")
        raise typer.Exit(0) from None
    finally:
        account.close()


def _has_only_begun(record: "InstanceRecord | None") -> bool:
    """Whether nobody has put down more than that it begins: how it ended is not said yet, and nothing runs."""
    from launcher.domain import State

    return record is not None and record.state is State.STARTING and record.guard is None and record.engine is None


def _put_back(instance: "Instance", before: "InstanceRecord | None") -> None:
    with suppress(OSError):  # why it failed is what has to be told
        if before is None:
            instance.forget()
        else:
            instance.write(before)
