"""What the gateway tells scrapers, read back."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.client.metrics_text import parse_figures
from launcher.domain import DeviceLoad
from launcher.figures import Figures, MemoryFigures
from launcher.gateway.health import Health, MemoryFigure, Observed, Status
from launcher.gateway.meters import Meters
from launcher.gateway.metrics import render_metrics


def test_what_the_gateway_says_is_what_is_read() -> None:
    """Each figure, by the gateway's own writer; memories in its order, and nothing that nobody measured."""
    status = Status(
        memory=(
            MemoryFigure(memory="gpu0", kind="weights", planned_bytes=1),
            MemoryFigure(memory="gpu0", kind="total", planned_bytes=7, measured_bytes=8),
            MemoryFigure(memory='node0/"host"\\', kind="total", planned_bytes=3),
        )
    )
    load = DeviceLoad(name="gpu0", total_bytes=2**41, free_bytes=2**40, utilization=0.5)
    observed = Observed(free_bytes={"gpu0": 2**40, "gpu1": 5}, own_bytes={"gpu0": 6}, loads=(load,))
    gauges = {"requests_running": 2.0, "requests_waiting": 3.0}
    text = render_metrics(Meters(n_events=41), status, Health.DEGRADED, observed, gauges).decode()
    assert parse_figures(text) == Figures(
        health="degraded",
        n_running=2,
        n_waiting=3,
        n_stream_events=41,
        memories=(
            MemoryFigures(name="gpu0", held_bytes=6, free_bytes=2**40, planned_bytes=7, utilization=0.5),
            MemoryFigures(name='node0/"host"\\', planned_bytes=3),
        ),
    )


def test_what_says_nothing_counts_as_not_told() -> None:
    """No text, another program's, and figures that are none."""
    assert parse_figures("") == Figures()
    assert parse_figures("go_goroutines 7\n<html>") == Figures()
    assert parse_figures("launcher_requests_running NaN\nlauncher_requests_waiting 1e400\n") == Figures()
    assert parse_figures("launcher_requests_running -1\nlauncher_stream_events_total x\n") == Figures()


@given(st.text() | st.from_regex(r"launcher_[a-z_]{1,20}(\{[a-z]+=\".{0,9}\"\})? [0-9eE.+-]{1,9}", fullmatch=True))
def test_any_text_is_read(text: str) -> None:
    """Nobody vouches for who answers at the address."""
    figures = parse_figures(text)
    assert figures.n_running >= 0
    assert figures.stream_tps is None
