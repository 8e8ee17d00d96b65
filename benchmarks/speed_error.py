"""How far predicted speeds are off: each published measurement predicted from the others (leave one out).

Usage: python -m benchmarks.speed_error [--constants]; the latter prints what ``launcher/planner/speed.py`` should hold.
Exits 1 where the median error exceeds 15 %. Two errors are given: with the same GPU's other measurements among those
fitted to, and with none of them, as for a GPU that nobody measured. Of several figures of one source each is left out
alone, so what the source has in common (the build, the host) stays in. Prompt rates have one constant per generation.
"""

import argparse
import statistics
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from launcher.domain import Provenance
from launcher.planner.speed import MOE_LAYER_FACTOR, PLAIN_ATTENTION_FACTOR, Leg, Rates

DATA: Final = Path(__file__).with_name("data") / "speed.toml"
AIM: Final = 0.15
_PRIOR_WEIGHT: Final = 0.3
"""Of what all generations have in common, in measurements: it decides where a generation has hardly any of its own."""
_ROUNDS: Final = 10
_LEAST_ERROR: Final = 0.03
"""Errors below this weigh no more: the fit minimises absolute errors by reweighting squared ones."""
_START: Final = (1.2, 50e-6)


class Row(NamedTuple):
    """One published measurement, beside what the model says it depends on."""

    gpu: str
    generation: str
    model: str
    ideal_s: float
    """Seconds per token at the full bandwidth."""
    n_layer: float
    generation_tps: float
    prompt_flops: float | None
    """Operations per second that the prompt rate comes to, over the GPU's own."""


Fit = tuple[float, float]
"""The inverse of the efficiency, and seconds per layer."""


def load(path: Path = DATA) -> list[Row]:
    """Read the table; a malformed one raises ``KeyError`` or ``ValueError``."""
    data: dict[str, Any] = tomllib.loads(path.read_text())
    rows = []
    for gpu_id, model_id, depth, n_gpu, generation_tps, prompt_tps, source_id in data["rows"]:
        gpu, model, source = data["gpus"][gpu_id], data["models"][model_id], data["sources"][source_id]
        factor = 1.0 if source["flash_attn"] else PLAIN_ATTENTION_FACTOR
        n_bytes = model["read_bytes"] + model["kv_bytes_per_token"] * depth * factor
        flops = gpu.get("f16_tflops", 0) * 1e12
        measured = prompt_tps and flops and n_gpu == 1
        rows.append(
            Row(
                gpu=gpu_id,
                generation=gpu["class"],
                model=model_id,
                ideal_s=n_bytes / (gpu["bandwidth_gb_per_s"] * 1e9),
                n_layer=model["n_layer"] * (MOE_LAYER_FACTOR if model["moe"] else 1.0),
                generation_tps=generation_tps,
                prompt_flops=prompt_tps * 2e9 * model["prompt_parameters_b"] / flops if measured else None,
            )
        )
    return rows


def fit(rows: Iterable[Row], prior: Fit | None = None) -> Fit:
    """Fit both constants by the least relative errors, the efficiency at most 1; ``prior`` stands in for rows."""
    points = [(row.ideal_s * row.generation_tps, row.n_layer * row.generation_tps) for row in rows]
    weights = [1.0] * len(points)
    inverse, layer_s = prior or _START
    for _ in range(_ROUNDS):
        xx, xy, yy, x1, y1 = (
            sum(w * value(x, y) for w, (x, y) in zip(weights, points, strict=True)) for value in _MOMENTS
        )
        if prior is not None:
            xx, x1 = xx + _PRIOR_WEIGHT / prior[0] ** 2, x1 + _PRIOR_WEIGHT / prior[0]
            yy, y1 = yy + _PRIOR_WEIGHT / prior[1] ** 2, y1 + _PRIOR_WEIGHT / prior[1]
        determinant = xx * yy - xy * xy
        inverse, layer_s = (x1 * yy - y1 * xy) / determinant, (y1 * xx - x1 * xy) / determinant
        if layer_s < 0:
            inverse, layer_s = x1 / xx, 0.0
        if inverse < 1:
            inverse, layer_s = 1.0, max(0.0, (y1 - xy) / yy)
        weights = [1 / max(_LEAST_ERROR, abs(inverse * x + layer_s * y - 1)) for x, y in points]
    return inverse, layer_s


_MOMENTS: Final[tuple[Callable[[float, float], float], ...]] = (
    lambda x, _: x * x,
    lambda x, y: x * y,
    lambda _, y: y * y,
    lambda x, _: x,
    lambda _, y: y,
)


def predict(row: Row, fitted: Fit) -> float:
    """Return tokens per second as the planner's own leg computes them."""
    rates = Rates(efficiency=1 / fitted[0], layer_s=fitted[1])
    leg = Leg(
        name=row.gpu,
        n_bytes=row.ideal_s,
        n_layer=row.n_layer,
        bandwidth_bytes_per_s=1.0,
        rates=rates,
        basis=Provenance.PUBLISHED,
    )
    return 1 / leg.seconds


def error(row: Row, fitted: Fit) -> float:
    """Return by which share the prediction exceeds the measurement."""
    return predict(row, fitted) / row.generation_tps - 1


def left_out(rows: Sequence[Row], *, whole_gpu: bool) -> list[tuple[Row, float]]:
    """Return each row with the error of its prediction from the rows that remain of its generation."""
    common = fit(rows)
    errors = []
    for row in rows:
        kin = [other for other in rows if other.generation == row.generation and other is not row]
        kin = [other for other in kin if not whole_gpu or other.gpu != row.gpu]
        errors.append((row, error(row, fit(kin, common) if kin else common)))
    return errors


def prompt_errors(rows: Sequence[Row]) -> list[float]:
    """Return the leave-one-out errors of the prompt rates, by the median of the generation's other measurements."""
    errors = []
    for row in rows:
        if row.prompt_flops is not None:
            kin = [r.prompt_flops for r in rows if r.generation == row.generation and r is not row and r.prompt_flops]
            errors += [statistics.median(kin) / row.prompt_flops - 1] if kin else []
    return errors


def constants(rows: Sequence[Row]) -> dict[str, Rates]:
    """Fit every generation to all its rows, rounded as the planner holds them."""
    common = fit(rows)
    fitted = {}
    for generation in dict.fromkeys(row.generation for row in rows):
        kin = [row for row in rows if row.generation == generation]
        inverse, layer_s = fit(kin, common)
        flops = [row.prompt_flops for row in kin if row.prompt_flops is not None]
        fitted[generation] = Rates(
            efficiency=round(1 / inverse, 2),
            layer_s=round(layer_s, 6),
            prompt_efficiency=round(statistics.median(flops), 2) if flops else None,
        )
    return fitted


def _summary(errors: Iterable[float]) -> str:
    found = list(errors)
    worst = max(found, key=abs)
    return f"{len(found):>5}{statistics.median(map(abs, found)):>9.0%}{worst:>+9.0%}"


def main() -> int:
    """Print the table of errors; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constants", action="store_true")
    options = parser.parse_args()
    rows = load()
    if options.constants:
        for generation, rates in sorted(constants(rows).items()):
            prompt = "" if rates.prompt_efficiency is None else f", prompt_efficiency={rates.prompt_efficiency}"
            text = f"Rates(efficiency={rates.efficiency}, layer_s={rates.layer_s * 1e6:.0f}e-6{prompt})"
            print(f'    "{generation}": {text},')
        return 0
    errors = left_out(rows, whole_gpu=False)
    by_gpu: dict[str, list[float]] = defaultdict(list)
    for row, off in errors:
        by_gpu[row.gpu].append(off)
    print(f"{'generated tokens/s':<20}{'rows':>5}{'median':>9}{'worst':>9}")
    for gpu, offs in sorted(by_gpu.items()):
        print(f"  {gpu:<18}{_summary(offs)}")
    print(f"{'all, one row out':<20}{_summary(off for _, off in errors)}")
    print(f"{'all, one GPU out':<20}{_summary(off for _, off in left_out(rows, whole_gpu=True))}")
    print(f"{'prompt tokens/s':<20}{_summary(prompt_errors(rows))}")
    median = statistics.median(abs(off) for _, off in errors)
    print(f"median error {median:.1%} of {len(rows)} measurements on {len(by_gpu)} GPUs (aim: {AIM:.0%})")
    return 0 if median <= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
