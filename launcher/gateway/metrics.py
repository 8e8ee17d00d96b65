"""Show the gateway's figures in Prometheus' text format.

It must not count anything itself. Importing it costs what `prometheus_client` costs: it is imported when first asked.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from launcher.domain import State
from launcher.gateway.health import Health, Observed, Status
from launcher.gateway.meters import SECONDS, Histogram, Meters
from launcher.gateway.policy import Outcome

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class _Snapshot(Collector):
    """One scrape: the figures as they are now."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def render_metrics(
    meters: Meters, status: Status, health: Health, observed: Observed, gauges: Mapping[str, float]
) -> bytes:
    """Return every figure; ``gauges`` are further ones that have no labels, by name."""
    registry = CollectorRegistry(auto_describe=False)
    families = [*_requests(meters), *_tokens(meters), *_instance(status, health), *_observed(observed)]
    registry.register(_Snapshot([*families, *_gauges(gauges)]))
    return generate_latest(registry)


def _counter(name: str, text: str, n: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"launcher_{name}", text, value=n)


def _requests(meters: Meters) -> Iterator[Metric]:
    answers = CounterMetricFamily("launcher_requests", "Answered requests.", labels=("path", "code"))
    for (route, code), n in sorted(meters.answers.items()):
        answers.add_metric((route, str(code)), n)
    yield answers
    refusals = CounterMetricFamily("launcher_refusals", "Requests that no engine was asked for.", labels=("reason",))
    for reason, n in sorted(meters.refusals.items()):
        refusals.add_metric((reason,), n)
    yield refusals
    outcomes = CounterMetricFamily(
        "launcher_engine_answers", "Engines' answers to requests that made them compute.", labels=("outcome",)
    )
    for outcome in Outcome:
        outcomes.add_metric((outcome,), meters.outcomes[outcome])
    yield outcomes
    yield _counter("replays", "Requests sent again after an engine was lost.", meters.n_replays)
    yield _counter(
        "streams_ended", "Streams ended with an error event, their engine being lost.", meters.n_streams_ended
    )
    yield _counter("answers_cut", "Answers cut by closing the connection, their engine being lost.", meters.n_cut)
    yield _counter("client_disconnects", "Clients that left before their answer was complete.", meters.n_disconnects)
    yield _counter("clients_stalled", "Clients that were cut because they did not read.", meters.n_stalled)
    yield _counter("faults", "Requests that failed through the gateway's own fault.", meters.n_faults)
    yield _histogram("request_wait_seconds", "Time in line, of requests that got their turn.", meters.waited)
    yield _histogram("first_byte_seconds", "Time until the answer's first byte.", meters.first_byte)
    yield _histogram("request_seconds", "Time until the answer's end.", meters.lasted)


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets, total = [], 0
    for bound, n in zip([*map(str, SECONDS), "+Inf"], histogram.counts, strict=True):
        total += n
        buckets.append((bound, total))
    return HistogramMetricFamily(f"launcher_{name}", text, buckets=buckets, sum_value=histogram.sum_s)


def _tokens(meters: Meters) -> Iterator[Metric]:
    tokens = CounterMetricFamily("launcher_tokens", "Tokens of complete answers, as engines count.", labels=("kind",))
    tokens.add_metric(("prompt",), meters.n_prompt_tokens)
    tokens.add_metric(("generated",), meters.n_generated_tokens)
    yield tokens
    yield _counter("stream_events", "Events passed on, as they pass: about one per token.", meters.n_events)


def _instance(status: Status, health: Health) -> Iterator[Metric]:
    yield _counter("engine_restarts", "Engines started again.", status.n_restarts)
    yield _counter("ladder_steps", "Steps down to a smaller plan.", status.n_ladder_steps)
    state = GaugeMetricFamily("launcher_state", "1 for the instance's state.", labels=("state",))
    for each in State:
        state.add_metric((each,), each is status.state)
    yield state
    word = GaugeMetricFamily("launcher_health", "1 for what /health says.", labels=("health",))
    for one in Health:
        word.add_metric((one,), one is health)
    yield word
    memory = GaugeMetricFamily(
        "launcher_memory_bytes", "Bytes by memory and kind, planned and measured.", labels=("memory", "kind", "figure")
    )
    for figure in status.memory:
        for name, n_bytes in (("planned", figure.planned_bytes), ("measured", figure.measured_bytes)):
            if n_bytes is not None:
                memory.add_metric((figure.memory, figure.kind, name), n_bytes)
    yield memory


def _observed(observed: Observed) -> Iterator[Metric]:
    """Yield what was measured last, and nothing of what nobody tells."""
    loads = observed.loads
    figures: tuple[tuple[str, str, Mapping[str, float | None]], ...] = (
        ("memory_free_bytes", "Free bytes by memory.", observed.free_bytes),
        ("memory_held_bytes", "Bytes that the engine's processes hold.", observed.own_bytes),
        ("device_utilization_ratio", "Share of time in which it computed.", {d.name: d.utilization for d in loads}),
        ("device_power_watts", "Power it takes.", {d.name: d.power_w for d in loads}),
        ("device_power_limit_watts", "Power it may take.", {d.name: d.power_limit_w for d in loads}),
        ("device_temperature_celsius", "Its temperature.", {d.name: d.temperature_c for d in loads}),
    )
    for name, text, values in figures:
        family = GaugeMetricFamily(f"launcher_{name}", text, labels=(name.partition("_")[0],))
        for key, value in values.items():
            if value is not None:
                family.add_metric((key,), value)
        yield family
    throttled = GaugeMetricFamily(
        "launcher_device_throttled", "1 while clocks are lowered.", labels=("device", "reason")
    )
    for load in loads:
        for reason in load.throttled:
            throttled.add_metric((load.name, reason), 1)
    yield throttled
    if observed.stalled is not None:
        yield GaugeMetricFamily(
            "launcher_memory_stalled_ratio", "Share of time in which all tasks waited for memory.", observed.stalled
        )


def _gauges(gauges: Mapping[str, float]) -> Iterator[Metric]:
    for name, value in gauges.items():
        yield GaugeMetricFamily(f"launcher_{name}", name.replace("_", " ").capitalize() + ".", value=value)
