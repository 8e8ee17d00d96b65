"""Count what passes through the gateway.

Plain numbers, no library: counting is on the way of every token. It must not know how figures are shown (`metrics`).
"""

from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from launcher.gateway.policy import Outcome

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the buckets of every histogram here."""

_N_PACES: Final = 16

_ROUTES: Final = frozenset(
    {
        "/apply-template",
        "/completion",
        "/completions",
        "/detokenize",
        "/embedding",
        "/embeddings",
        "/health",
        "/infill",
        "/metrics",
        "/props",
        "/rerank",
        "/slots",
        "/tokenize",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/models",
        "/v1/rerank",
        "/v1/responses",
    }
)


def route_of(path: str) -> str:
    """Return the label of a path: clients choose paths, so unknown ones share one."""
    return path if path in _ROUTES else "other"


@dataclass(slots=True)
class Histogram:
    """How often a time fell into each bucket; the last has no upper bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum_s += seconds


class Pace(NamedTuple):
    """How fast an engine sent one stream while it had no other request, in events, and when that ended.

    Counted from the first event on, and only while the engine was waited for: a client that reads slowly, or a long
    prompt, does not count. An event is about one token.
    """

    at_s: float
    tps: float


@dataclass(slots=True)
class Meters:
    """Everything that is counted, since the gateway was made."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By route and status."""
    refusals: Counter[str] = field(default_factory=Counter)
    """By the code in the answer."""
    paces: deque[Pace] = field(default_factory=lambda: deque(maxlen=_N_PACES))
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """Of whole answers that made the engine compute."""
    n_replays: int = 0
    n_streams_ended: int = 0
    """Streams that the gateway ended with an error event."""
    n_cut: int = 0
    """Answers of which only a part could be sent, without a way to say so in them."""
    n_disconnects: int = 0
    """Clients that left before their answer was complete."""
    n_stalled: int = 0
    """Clients that were cut because they did not read."""
    n_events: int = 0
    """Events of streams, as they pass: about one per token."""
    n_received_bytes: int = 0
    """Of answers' bodies, from engines."""
    n_prompt_tokens: int = 0
    n_generated_tokens: int = 0
    n_faults: int = 0
    """Requests that failed through the gateway's own fault."""
    n_bodies_bytes: int = 0
    """Of requests that are held now."""
    last_byte_s: float = 0.0
    """When an engine last sent something, on the loop's clock."""
    waited: Histogram = field(default_factory=Histogram)
    first_byte: Histogram = field(default_factory=Histogram)
    """From a request's head to the first byte of its answer."""
    lasted: Histogram = field(default_factory=Histogram)
