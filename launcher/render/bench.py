"""What ``launch bench`` measured, beside what the plan predicted, as text and as JSON with its schema. Pure."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from launcher.domain import SCHEMA_VERSION, Refusal
from launcher.measured import COVERAGE, AtLoad, Bench, Figure
from launcher.render.plan import render_choice, schema_of
from launcher.render.text import wrapped

_THREE_DIGITS: Final = 100
_TWO_DIGITS: Final = 10


def bench_json(bench: Bench) -> str:
    """Return the versioned JSON of what was measured: ``{"schema_version", "bench": {...}}``."""
    body: dict[str, Any] = msgspec.to_builtins(bench)
    del body["plan"]["outcome"]
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION, "bench": body}, order="deterministic").decode() + "\n"


def bench_schema() -> str:
    """Return the JSON Schema of the documents of ``launch bench --json``, as it is kept in ``docs/bench.schema.json``."""
    (bench, refusal), components = msgspec.json.schema_components((Bench, Refusal), ref_template="#/$defs/{name}")
    return schema_of("launch bench --json", {"bench": bench, "refusal": refusal}, components)


def render_bench(bench: Bench) -> str:
    """Return the plan's choice, and a table: what was measured, how sure that is, what was predicted."""
    lines = [
        *render_choice(bench.plan),
        "",
        f"measured in {bench.elapsed_s:.0f} s, requests of {bench.n_prompt} tokens in and {bench.n_generated} out",
        f"  {'':<28}{'median':>9}{'95 % interval':>21}{'predicted':>11}{'ratio':>7}",
    ]
    for load in bench.loads:
        lines += _rows(load)
    return "\n".join([*lines, *(line for note in _notes(bench) for line in _note(note))]) + "\n"


def _rows(load: AtLoad) -> Iterator[str]:
    is_one = load.n_requests == 1
    n_turns = load.prompt_tps.n_turns
    turns = "1 turn" if n_turns == 1 else f"{n_turns} turns"
    yield f"  {'1 request' if is_one else f'{load.n_requests} requests at once'}, {turns}"
    together = "" if is_one else ", together"
    yield _row(f"prompt tokens/s{together}", load.prompt_tps)
    yield _row(f"generated tokens/s{together}", load.generation_tps)
    if not is_one:
        yield _row("generated tokens/s, each", load.each_generation_tps)
    yield _row("first token after, s", load.first_token_s)


def _row(name: str, figure: Figure) -> str:
    interval = f"{_written(figure.low)} .. {_written(figure.high)}" if figure.n_turns > 1 else "-"
    predicted = "-" if figure.predicted is None else _written(figure.predicted)
    ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
    return f"    {name:<28}{_written(figure.median):>7}{interval:>21}{predicted:>11}{ratio:>7}"


def _written(value: float) -> str:
    """Write a figure with three digits, or all before the point."""
    if value >= _THREE_DIGITS:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= _TWO_DIGITS else f"{value:.2f}"


def _notes(bench: Bench) -> Iterator[str]:
    if bench.is_served:
        yield "a served instance was asked by its endpoint: what its other clients ask for counts in"
    if len(bench.loads) > 1:
        yield "the plan predicts one request alone"
    n_turns, coverage = min((load.prompt_tps.n_turns, load.prompt_tps.coverage) for load in bench.loads)
    if n_turns == 1:
        yield "one turn does not tell how sure its figures are"
    elif coverage < COVERAGE:
        yield f"the interval of {n_turns} turns is their range, which holds the true median with {coverage:.0%} only"
    if not bench.is_complete:
        yield "the time was over before all was measured that was asked for; `--seconds` gives more"


def _note(text: str) -> list[str]:
    return wrapped(text, first="  note      ", rest=" " * 12)
