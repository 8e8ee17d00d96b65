"""The table of ``launch top``, and its JSON."""

import json

import jsonschema
import msgspec
from msgspec.structs import replace

from launcher.domain import Address, InstanceRecord, InstanceView, ProcessId, State
from launcher.figures import Figures, MemoryFigures, Sighting
from launcher.render.instances import render_instances_json
from launcher.render.top import render_top, render_top_json
from launcher.units import GIB
from tests.fakes.plans import plan_for

RECORD = InstanceRecord(
    name="tiny",
    state=State.READY,
    supervisor=ProcessId(pid=1, start_time=1, boot_id="b"),
    address=Address(port=8080),
    started_at=0.0,
    changed_at=0.0,
    n_ladder_steps=2,
    plan=plan_for(),
)
VIEW = InstanceView(name="tiny", state=State.READY, path="/p", log_path="/p/log", supervisor_alive=True, record=RECORD)
FIGURES = Figures(
    health="ready",
    n_running=1,
    n_waiting=12,
    n_stream_events=99,
    stream_tps=41.26,
    memories=(
        MemoryFigures(name="gpu0", held_bytes=2 * GIB, free_bytes=20 * GIB, planned_bytes=3 * GIB, utilization=0.97),
        MemoryFigures(name="host", planned_bytes=GIB),
    ),
)


def test_the_table() -> None:
    """A line per instance, its memories below it; what nobody told is a dash, never a nought."""
    other = replace(
        VIEW, name="other", state=State.FAILED, reason="it ran\x1b[2J out", record=None, supervisor_alive=False
    )
    starting = replace(VIEW, name="third", state=State.STARTING, record=replace(RECORD, fetching="3% of 9 GiB"))
    text = render_top(
        (
            Sighting(view=VIEW, figures=FIGURES),
            Sighting(view=other),
            Sighting(view=starting, unread="it does not listen yet"),
        )
    )
    assert text == (
        "NAME   STATE     ENGINE        TOK/S  RUN  WAIT  CONTEXT  STEP\n"
        "tiny   ready     llama-server   41.3    1    12   2048x1     2\n"
        "  gpu0  held 2.0 GiB  planned 3.0 GiB  free 20.0 GiB  busy 97%\n"
        "  host  held -        planned 1.0 GiB  free -\n"
        "other  failed    -                 -    -     -        -     -\n"
        "  it ran\\x1b[2J out\n"
        "third  starting  llama-server      -    -     -   2048x1     2\n"
        "  download: 3% of 9 GiB\n"
        "  no figures: it does not listen yet\n"
    )


def test_nothing_is_served() -> None:
    """It is said."""
    assert render_top(()) == "nothing is served\n"


def test_its_json_is_that_of_ps_with_figures() -> None:
    """Whoever reads ``ps --json`` reads this; `figures` and `unread` are what it has besides."""
    sightings = (Sighting(view=VIEW, figures=FIGURES), Sighting(view=VIEW, unread="it wants an API key"))
    document = json.loads(render_top_json(sightings))
    figures = [(each.pop("figures"), each.pop("unread")) for each in document["instances"]]
    assert document == json.loads(render_instances_json((VIEW, VIEW)))
    assert figures[1] == (None, "it wants an API key")
    assert msgspec.convert(figures[0][0], Figures) == FIGURES
    jsonschema.validate(figures[0][0], msgspec.json.schema(Figures))
