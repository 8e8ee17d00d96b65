"""Records of instances that are served by whoever writes them: this very process."""

import os
import time
from typing import Any

from msgspec.structs import replace

from launcher.domain import Address, InstanceRecord, ProcessId, State
from launcher.store import identify, open_instance
from tests.fakes.plans import plan_for

GONE = ProcessId(pid=2**22 + 1, start_time=1, boot_id="x")
"""No process: Linux gives no such number."""


def record_served(name: str, port: int | None, **fields: Any) -> InstanceRecord:
    """Write a record that says that this process serves the name at a port of loopback; return it."""
    this = identify(os.getpid())
    assert this is not None
    now = time.time()
    record = InstanceRecord(
        name=name,
        state=State.READY,
        supervisor=this,
        address=Address(port=port),
        started_at=now,
        changed_at=now,
        ready_at=now,
        plan=plan_for(),
    )
    record = replace(record, **fields)
    with open_instance(name) as instance:
        instance.write(record)
    return record
