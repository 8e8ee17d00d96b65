"""The page of ``launch status``: how an instance came to give less than it could."""

from msgspec.structs import replace

from launcher.domain import Address, InstanceRecord, InstanceView, ProcessId, State
from launcher.render.instances import render_status

RECORD = InstanceRecord(
    name="tiny",
    state=State.READY,
    supervisor=ProcessId(pid=1, start_time=1, boot_id="b"),
    address=Address(port=8080),
    started_at=0.0,
    changed_at=0.0,
)


def degraded(record: InstanceRecord) -> list[str]:
    """The lines of the page that say so."""
    view = InstanceView(
        name="tiny", state=State.READY, path="/p", log_path="/p/log", supervisor_alive=True, record=record
    )
    lines = render_status(view, now=60.0).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == "degraded"]


def test_a_slow_engine_is_told_beside_what_was_given_up() -> None:
    """Both are ways to be degraded; an instance that is neither has no such line."""
    slow = "it generates 3.0 tokens/s where 40 were expected"
    assert degraded(RECORD) == []
    assert degraded(replace(RECORD, slow=slow)) == [slow]
    assert degraded(replace(RECORD, slow=slow, n_ladder_steps=1)) == ["1 step below what was planned first", slow]
