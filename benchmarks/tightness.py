"""Checks plans against the engine: is no device exceeded, and how many more layers would truly have fitted?

    python -m benchmarks.tightness [--machines 100] [--seed N] [--server PATH]

Run from the checkout's root. Each round draws a model (the shipped profiles' shapes, and shapes that no formula was
fitted to), its quantization, context, parallel requests, cache type, and one to two devices whose free memory is drawn
around the need. The planner chooses; then llama-server itself is asked for its breakdown of the plan, and of plans
with more layers (or fewer experts on the host), with workers of its own build as devices. Where the engine gives no
account of a draw (build 11434 aborts on some small models with several slots: its graph outgrows its own bound) that is
counted apart. Exit code 1 where a plan exceeds a device, leaves more than one layer out that would have fitted or is
refused, and where more than a tenth of the draws has no account.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from msgspec.structs import replace

from benchmarks.engine_account import Row, Server, find_servers, read_account, rpc_workers
from benchmarks.footprint_error import unseen_lines, unseen_spec
from benchmarks.shape_file import write_shape
from launcher.domain import (
    Artifact,
    CacheType,
    Device,
    DeviceKind,
    Host,
    Inventory,
    Limits,
    ModelSpec,
    Plan,
    Profile,
    Request,
    Settings,
    WeightsFormat,
)
from launcher.planner.fit import decide
from launcher.planner.footprint.llama_cpp import LlamaCppConfig, estimate_footprint
from launcher.planner.sizing import Candidate, prepare
from launcher.planner.target import DEVICE_MARGIN_BYTES
from launcher.profiles import load_all
from launcher.supervisor.checks import free_port
from launcher.units import GIB, MIB

_NO_FLOOR: Final = Limits(min_generation_tps=1e-9)
_CONTEXTS: Final = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
MOST_OFF: Final = 1
"""Layers that a plan may leave out although they would have fitted."""
MOST_SILENT: Final = 0.1
"""Share of the draws of which the engine may give no account: beyond that the others prove too little."""


class Draw(NamedTuple):
    """One random question."""

    name: str
    profile: Profile
    spec: ModelSpec
    settings: Settings
    machine: Inventory

    @property
    def words(self) -> str:
        """The question in one line."""
        fixed = self.settings
        free = "+".join(f"{(device.free_bytes or 0) / GIB:.2f}" for device in self.machine.devices)
        cache = fixed.cache_type_k or "f16"
        step = f" ub {fixed.n_ubatch}" if fixed.n_ubatch else ""
        return f"{self.name:<28} {free:>12} GiB  ctx {fixed.n_ctx} np {fixed.n_parallel} {cache}{step}"


class Finding(NamedTuple):
    """What the engine says of a plan: by how much it exceeds a device, and what more would have fitted."""

    over_mib: float
    n_left_out: int
    what: str


def shapes() -> list[tuple[str, Profile]]:
    """Return every shape at every quantization, each as a profile of one artifact."""
    found = [
        (f"{profile.name} {artifact.quantization}", profile, artifact)
        for profile in load_all(lambda _: None)
        for artifact in profile.artifacts
        if artifact.format is WeightsFormat.GGUF and artifact.spec is not None
    ]
    for model, line in unseen_lines().items():
        artifact = Artifact(format=WeightsFormat.GGUF, quantization="q4_k_m", spec=unseen_spec(line))
        found.append((f"unseen {model}", Profile(name=model, artifacts=(artifact,)), artifact))
    return [
        (name, replace(profile, artifacts=(artifact,), pins=Settings(), limits=_NO_FLOOR))
        for name, profile, artifact in found
    ]


def draw_model(dice: random.Random, every: Mapping[str, list[tuple[str, Profile]]]) -> tuple[str, Profile]:
    """Draw a model, then one of its quantizations, so that those with many are not drawn more often."""
    return dice.choice(every[dice.choice(sorted(every))])


def draw_question(dice: random.Random, name: str, profile: Profile) -> Draw:
    """Draw settings, then devices that hold a random share of what the model needs with them."""
    (artifact,) = profile.artifacts
    assert artifact.spec is not None  # noqa: S101 - shapes() has no other
    (candidate,) = prepare(profile)
    trained = candidate.architecture.n_ctx_train
    cache = dice.choice((None, None, None, CacheType.Q8_0))
    settings = Settings(
        quantization=artifact.quantization,
        n_ctx=dice.choice([n for n in _CONTEXTS if n <= trained] or [trained]),
        n_parallel=dice.choice((1, 1, 2, 4, 8)),
        cache_type_k=cache,
        cache_type_v=cache,
        n_ubatch=dice.choice((None, None, None, 128, 1024)),
        n_cpu_moe=dice.choice((None, 0)),
    )
    need = need_bytes(candidate, settings)
    n_devices = dice.choice((1, 1, 1, 2))
    free = [
        int(need * dice.uniform(0.02, 1.1) / n_devices) + DEVICE_MARGIN_BYTES + dice.randrange(600 * MIB)
        for _ in range(n_devices)
    ]
    return Draw(name, profile, artifact.spec, settings, machine(free))


def need_bytes(candidate: Candidate, settings: Settings) -> int:
    """Weights and cache with everything on one device, without compute buffers: what machines are drawn around."""
    config = LlamaCppConfig(
        n_ctx=settings.n_ctx or 0, n_gpu_layers=candidate.architecture.n_layer + 1, n_parallel=settings.n_parallel or 1
    )
    (use,) = estimate_footprint(candidate.architecture, candidate.weights, config, ("gpu0",)).devices
    return use.weights_bytes + use.kv_cache_bytes


def machine(free: list[int]) -> Inventory:
    """A machine of remote workers, whose host holds anything."""
    devices = tuple(
        Device(
            name=f"gpu{idx}",
            kind=DeviceKind.RPC,
            description="drawn",
            total_bytes=n_bytes,
            free_bytes=n_bytes,
            bandwidth_bytes_per_s=600e9,
        )
        for idx, n_bytes in enumerate(free)
    )
    host = Host(total_bytes=4096 * GIB, available_bytes=4096 * GIB, n_cpu=8, bandwidth_bytes_per_s=60e9)
    return Inventory(name="drawn", host=host, devices=devices)


def arguments(plan: Plan, path: Path, n_gpu_layers: int, n_cpu_moe: int) -> list[str]:
    """Return what makes llama-server account for a plan, at its own or another placement."""
    words: list[object] = ["-m", path, "-c", plan.n_ctx, "-np", plan.n_parallel, "-b", plan.n_batch]
    words += ["-ub", plan.n_ubatch, "-ctk", plan.cache_type_k, "-ctv", plan.cache_type_v, "-ngl", n_gpu_layers]
    words += ["-fa", "on" if plan.flash_attn else "off"]
    if n_cpu_moe:
        words += ["-ncmoe", n_cpu_moe]
    if plan.tensor_split:
        words += ["-ts", ",".join(f"{share:g}" for share in plan.tensor_split)]
    return [str(word) for word in words]


def excess_mib(plan: Plan, rows: Mapping[str, Row]) -> float:
    """Return by how much the fullest device exceeds its budget; negative where all hold."""
    return max(
        (rows[f"RPC{idx}"].total if f"RPC{idx}" in rows else 0) - budget.budget_bytes / MIB
        for idx, budget in enumerate(plan.budgets[:-1])
    )


def larger(plan: Plan) -> Iterator[tuple[int, int]]:
    """Yield the placements with more on the devices, nearest first: fewer experts on the host, else more layers."""
    if plan.n_cpu_moe and plan.n_gpu_layers > plan.n_layer:
        yield from ((plan.n_gpu_layers, n) for n in range(plan.n_cpu_moe - 1, -1, -1))
    else:
        yield from ((n, plan.n_cpu_moe) for n in range(plan.n_gpu_layers + 1, plan.n_layer + 2))


def examine(plan: Plan, path: Path, server: Server, rpc: tuple[str, ...]) -> Finding:
    """Ask the engine for the plan, then for larger ones until two in turn do not fit."""

    def excess(n_gpu_layers: int, n_cpu_moe: int) -> float:
        words = (*arguments(plan, path, n_gpu_layers, n_cpu_moe), *rpc)
        return excess_mib(plan, read_account(server, words).rows)

    left_out = failures = 0
    for idx, (n_gpu_layers, n_cpu_moe) in enumerate(larger(plan), 1):
        if excess(n_gpu_layers, n_cpu_moe) <= -1:  # the engine rounds down
            left_out, failures = idx, 0
        else:
            failures += 1
        if failures == 2:  # noqa: PLR2004 - memory does not grow strictly with layers
            break
    what = f"{plan.n_gpu_layers}/{plan.n_layer + 1} layers"
    if plan.n_cpu_moe:
        what += f", experts of {plan.n_cpu_moe} on the host"
    return Finding(excess(plan.n_gpu_layers, plan.n_cpu_moe), left_out, what)


def main() -> int:
    """Play all rounds and print the distribution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=100)
    parser.add_argument("--per-model", type=int, default=3, help="machines drawn for each model that is drawn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", type=Path, help="a llama-server with its ggml-rpc-server beside it")
    options = parser.parse_args()
    (server, *_) = find_servers([options.server] if options.server else [])
    dice = random.Random(options.seed)  # noqa: S311 - machines, no secrets
    every: dict[str, list[tuple[str, Profile]]] = {}
    for name, profile in shapes():
        every.setdefault(profile.name, []).append((name, profile))
    shipped = {model: found for model, found in every.items() if not found[0][0].startswith("unseen")}
    ports = [free_port("127.0.0.1") for _ in range(2)]
    counts: Counter[str] = Counter()
    worst_mib, n_wrong = -float("inf"), 0
    print(f"{server.name}; over: MiB by which the fullest device exceeds its budget; out: layers left out that fit")
    with tempfile.TemporaryDirectory() as folder, rpc_workers(server, ports) as rpc:
        while counts.total() < options.machines:
            name, profile = draw_model(dice, dice.choice((shipped, every)))
            path = Path(folder) / "model.gguf"
            for question in (draw_question(dice, name, profile) for _ in range(options.per_model)):
                outcome = decide(Request(profile=question.profile, settings=question.settings), question.machine)
                if not isinstance(outcome, Plan):
                    counts["refused"] += 1
                    print(f"{question.words}  refused: {outcome.fact}", flush=True)
                    continue
                if not path.exists():
                    write_shape(question.spec, path)
                try:
                    finding = examine(outcome, path, server, _only(rpc, len(outcome.budgets) - 1))
                except RuntimeError as error:
                    counts["no account"] += 1
                    print(f"{question.words}  {str(error).partition(chr(10))[0][:200]}", flush=True)
                    continue
                counts[f"{finding.n_left_out}"] += 1
                worst_mib = max(worst_mib, finding.over_mib)
                wrong = finding.over_mib > 0 or finding.n_left_out > MOST_OFF
                n_wrong += wrong
                mark = "  <-- WRONG" if wrong else ""
                print(
                    f"{question.words}  {finding.what}  over {finding.over_mib:.0f}  out {finding.n_left_out}{mark}",
                    flush=True,
                )
            path.unlink(missing_ok=True)
    print(f"left out: {dict(sorted(counts.items()))}; most over a budget {worst_mib:.0f} MiB; {n_wrong} wrong")
    is_told_too_little = counts["no account"] > MOST_SILENT * counts.total()
    return 1 if n_wrong or counts["refused"] or is_told_too_little else 0


def _only(rpc: tuple[str, ...], n: int) -> tuple[str, ...]:
    """Return the arguments for the first ``n`` workers."""
    option, addresses = rpc
    return (option, ",".join(addresses.split(",")[:n]))


if __name__ == "__main__":
    sys.exit(main())
