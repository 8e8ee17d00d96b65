"""The page of ``launch status``: where an instance's layers are, and how it came to give less than it could."""

import pytest
from msgspec.structs import replace

from launcher.domain import Address, InstanceRecord, InstanceView, Plan, ProcessId, Request, Settings, State
from launcher.inventory import load_inventory
from launcher.planner.advice import plan
from launcher.profiles import load_profile
from launcher.render.instances import render_instances, render_status

RECORD = InstanceRecord(
    name="tiny",
    state=State.READY,
    supervisor=ProcessId(pid=1, start_time=1, boot_id="b"),
    address=Address(port=8080),
    started_at=0.0,
    changed_at=0.0,
)


def facts(record: InstanceRecord, name: str) -> list[str]:
    """What the page says under a name."""
    view = InstanceView(
        name="tiny", state=State.READY, path="/p", log_path="/p/log", supervisor_alive=True, record=record
    )
    lines = render_status(view, now=60.0).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == name]


def test_a_port_that_is_not_chosen_yet_has_no_number() -> None:
    """While weights come, a service with ``--port 0`` has none."""
    assert facts(replace(RECORD, address=Address(port=None)), "address") == ["127.0.0.1:-"]
    assert facts(RECORD, "address") == ["127.0.0.1:8080"]


def test_a_slow_engine_is_told_beside_what_was_given_up() -> None:
    """Both are ways to be degraded; an instance that is neither has no such line."""
    slow = "it generates 3.0 tokens/s where 40 were expected"
    assert facts(RECORD, "degraded") == []
    assert facts(replace(RECORD, slow=slow), "degraded") == [slow]
    assert facts(replace(RECORD, slow=slow, n_ladder_steps=1), "degraded") == [
        "1 step below what was planned first",
        slow,
    ]


@pytest.mark.parametrize(
    ("machine", "n_gpu_layers", "said"),
    [
        ("rtx4090", None, ["all 47 layers on gpu0"]),
        ("rtx4090", 20, ["20 of 47 layers on the GPU, the rest on the CPU"]),
        ("cpu-64g", None, ["on the CPU"]),
    ],
)
def test_where_its_layers_are_is_said_as_in_the_plan(machine: str, n_gpu_layers: int | None, said: list[str]) -> None:
    """The output layer counts: it is never more layers than there are."""
    request = Request(profile=load_profile("gemma2-27b"), settings=Settings(n_gpu_layers=n_gpu_layers), force=True)
    outcome = plan(request, load_inventory(machine))
    assert isinstance(outcome, Plan)
    assert facts(replace(RECORD, plan=outcome), "placement") == said


def test_a_record_cannot_steer_a_terminal() -> None:
    """What was written to disk may be of anybody's making (found by `make fuzz`)."""
    hostile = replace(
        RECORD, name="a\x1b[2J", reason="\u202eevil", details=("a\nb",), story=("\x07",), n_ladder_steps=1
    )
    view = InstanceView(
        name="a\x1b[2J",
        state=State.READY,
        path="/p",
        log_path="/p\r",
        supervisor_alive=True,
        reason="\x1b]0;x\x07",
        record=hostile,
    )
    for text in (render_status(view, now=60.0), render_instances((view,), now=60.0)):
        assert all(line.isprintable() for line in text.split("\n"))
