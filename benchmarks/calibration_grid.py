"""Whether a calibrated plan is as fast as the best point of an exhaustive grid, idle or with a core kept busy.

Usage: python -m benchmarks.calibration_grid [NAME] [--busy] [--pairs N] [--max-time S]; NAME defaults to the 270M model.
Calibrates afresh in a state directory of its own, measures every point of threads x steps x batch x flash attention on
the engine that was chosen, then the best point, the calibrated plan and llama-server without any option in turns, each
in an engine started for it. Compared are the medians of prompt, generation and the whole request. Exits 1 where the
plan's request reaches less than 0.97 of the best point's. Nothing else should run meanwhile.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from itertools import product
from typing import Final

from aiohttp import ClientSession
from msgspec.structs import replace

from launcher.backends import build_command
from launcher.cli.measuring import engine_opener
from launcher.cli.options import keep_local
from launcher.domain import Address, Engine, EngineInstall, Inventory, Plan, Refusal, Request, Settings
from launcher.fetch import require_weights
from launcher.inventory import probe_inventory
from launcher.planner.fit import decide
from launcher.profiles import load_profile
from launcher.store import Instance, open_instance
from launcher.supervisor.checks import free_port
from launcher.supervisor.session import open_engine
from launcher.tune.bandwidth import measure_bandwidth
from launcher.tune.calibrate import DEFAULT_MAX_S, OpenEngine, Report, calibrate
from launcher.tune.points import Rate, Sample, Workload, rate_of
from launcher.tune.requests import measure, warm_up

AIM: Final = 0.97
_UBATCHES: Final = (128, 256, 512, 1024)
_BATCHES: Final = (512, 2048)
_WORKLOAD: Final = Workload()
_N_ROUNDS: Final = 3
_N_SHORTLIST: Final = 5


class Bench:
    """One model on this machine: plans at points, and engines to measure."""

    def __init__(self, name: str, inventory: Inventory, instance: Instance) -> None:
        """Hold the request; ``instance`` is locked by the caller."""
        settings = Settings(n_parallel=1)
        self.request = Request(profile=keep_local(load_profile(name), settings), settings=settings)
        self.inventory = inventory
        self.open_plan: OpenEngine = engine_opener(instance)
        self._instance = instance
        self._seed = 0

    def open_bare(self, plan: Plan) -> AbstractAsyncContextManager[ClientSession]:
        """Start the plan's llama-server with the model and the address, and no other option."""
        weights = str(require_weights(plan.artifact))
        address = Address(port=free_port("127.0.0.1"))
        command = build_command(plan, weights_path=weights, address=address, alias=plan.model)
        bare = (*install_of(plan).argv, "--model", weights, "--host", address.host, "--port", str(address.port))
        command = replace(command, argv=bare, expected_gpu_layers=None, expected_footprint=None)
        return open_engine(command, instance=self._instance, plan=plan)

    async def sample(self, plan: Plan, open_: OpenEngine) -> Sample:
        """Measure one request in an engine started for it."""
        self._seed += 1
        async with open_(plan) as session:
            await warm_up(session, plan)
            return await measure(session, plan, _WORKLOAD, seed=self._seed)

    def grid(self, plan: Plan) -> Iterator[Plan]:
        """Yield the plans of every point on the plan's engine."""
        machine = replace(self.inventory, engines=(install_of(plan),))
        threads = range(1, self.inventory.host.n_cpu + 1)
        for n, n_ubatch, n_batch, flash_attn in product(threads, _UBATCHES, _BATCHES, (True, False)):
            if n_ubatch <= n_batch:
                settings = Settings(
                    quantization=plan.quantization,
                    n_parallel=1,
                    n_threads=n,
                    n_ubatch=n_ubatch,
                    n_batch=n_batch,
                    flash_attn=flash_attn,
                )
                outcome = decide(replace(self.request, settings=settings), machine)
                if isinstance(outcome, Plan):
                    yield outcome


def install_of(plan: Plan) -> EngineInstall:
    """Return the engine of a plan for this machine."""
    if plan.install is None:
        message = f"{plan.engine} is not installed"
        raise SystemExit(message)
    return plan.install


def describe(plan: Plan) -> str:
    """Name a plan's point."""
    flash = "on" if plan.flash_attn else "off"
    threads = f"{plan.n_threads}/{plan.n_threads_batch}"
    return f"threads {threads:<5} batch {plan.n_batch:>4}/{plan.n_ubatch:<4} flash attention {flash}"


@contextmanager
def busy_core(*, wanted: bool) -> Iterator[None]:
    """Keep one core busy with another program for as long as the block lasts."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def show(name: str, samples: list[Sample], best: Rate) -> Rate:
    """Print the medians of one contender beside the best point's; return them."""
    rate = rate_of(samples, _WORKLOAD.n_prompt, _WORKLOAD.n_generated)
    ratio = best.request_s / rate.request_s
    print(
        f"  {name:<22}{rate.prompt_tps:>9.0f}{rate.prompt_tps / best.prompt_tps:>7.2f}"
        f"{rate.generation_tps:>11.1f}{rate.generation_tps / best.generation_tps:>7.2f}"
        f"{rate.request_s:>9.2f}{ratio:>7.2f}"
    )
    return rate


async def best_of_grid(bench: Bench, points: list[Plan], progress: Report) -> Plan:
    """Measure every point once, the quickest few twice more: one lucky sample makes no yardstick."""
    samples: list[list[Sample]] = [[] for _ in points]

    def request_s(n: int) -> float:
        return rate_of(samples[n], _WORKLOAD.n_prompt, _WORKLOAD.n_generated).request_s

    wanted = list(range(len(points)))
    for n_round in range(_N_ROUNDS):
        for n in wanted:
            sample = await bench.sample(points[n], bench.open_plan)
            samples[n].append(sample)
            rates = f"{sample.prompt_tps:.0f}, {sample.generation_tps:.1f} tokens/s"
            progress(f"  round {n_round + 1}, point {n + 1} of {len(points)}, {describe(points[n])}: {rates}")
        wanted = sorted(wanted, key=request_s)[:_N_SHORTLIST]
    return points[min(wanted, key=request_s)]


async def run(bench: Bench, n_pairs: int, max_s: float) -> int:
    """Calibrate, measure the grid, compare; return the exit code."""

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    outcome = await calibrate(
        bench.request,
        bench.inventory,
        open_engine=bench.open_plan,
        host_bandwidth_bytes_per_s=measure_bandwidth(bench.inventory.host.n_cpu),
        report=progress,
        max_s=max_s,
        workload=_WORKLOAD,
    )
    if isinstance(outcome, Refusal):
        print(outcome.fact)
        return 1
    print(f"calibrated in {outcome.elapsed_s:.0f} s{'' if outcome.complete else ' (cut short)'}")
    plan = decide(bench.request, bench.inventory, calibration=outcome.calibration)
    if isinstance(plan, Refusal):
        print(plan.fact)
        return 1
    points = list(bench.grid(plan))
    best = await best_of_grid(bench, points, progress)
    contenders: dict[str, tuple[Plan, OpenEngine]] = {
        "best point of the grid": (best, bench.open_plan),
        "calibrated plan": (plan, bench.open_plan),
    }
    if plan.engine is Engine.LLAMA_SERVER:
        contenders["llama-server defaults"] = (plan, bench.open_bare)
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for n in range(n_pairs):
        names = list(contenders) if n % 2 == 0 else list(reversed(contenders))
        for name in names:
            samples[name].append(await bench.sample(*contenders[name]))
        progress(f"  pair {n + 1} of {n_pairs}")
    print(f"best      {describe(best)}, of {len(points)} points")
    print(f"plan      {describe(plan)}")
    print(f"  {f'medians of {n_pairs}':<22}{'prompt':>9}{'':>7}{'generated':>11}{'':>7}{'request s':>9}{'':>7}")
    yardstick = rate_of(samples["best point of the grid"], _WORKLOAD.n_prompt, _WORKLOAD.n_generated)
    rates = {name: show(name, found, yardstick) for name, found in samples.items()}
    reached = yardstick.request_s / rates["calibrated plan"].request_s
    spread = statistics.quantiles([s.generation_tps for s in samples["calibrated plan"]], n=4)
    print(
        f"plan reaches {reached:.3f} of the best point (aim {AIM}); quartiles of its generation {spread[0]:.1f} to {spread[2]:.1f}"
    )
    return 0 if reached >= AIM else 1


def main() -> int:
    """Read the arguments, take a state directory of one's own, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="gemma3-270m")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--max-time", type=float, default=DEFAULT_MAX_S)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, busy_core(wanted=options.busy):
        os.environ["LAUNCHER_STATE_DIR"] = folder
        print(f"{options.name}, {'with a core kept busy' if options.busy else 'idle'}; load {os.getloadavg()[0]:.2f}")
        with open_instance("calibrate") as instance:
            bench = Bench(options.name, probe_inventory(), instance)
            return asyncio.run(run(bench, options.pairs, options.max_time))


if __name__ == "__main__":
    sys.exit(main())
