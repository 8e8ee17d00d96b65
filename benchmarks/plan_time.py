"""Times full plans in this process: every shipped profile on every reference machine, all artifacts, all alternatives.

    python -m benchmarks.plan_time [--rounds 5] [--context N] [--parallel N]

A full plan is ``prepare`` and ``prepare_forms``, ``decide`` and ``list_alternatives``; what a refusal's or a partial plan's advice costs on
top is shown beside it. Each time starts from nothing: whatever the planner remembers between questions is forgotten.
Every round times each combination once, in turn; medians are printed for each profile's slowest machines. Exit code 1
where a full plan takes longer than 60 ms.
"""

import argparse
import gc
import importlib
import pkgutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import _lru_cache_wrapper
from typing import Any, Final, NamedTuple

import launcher
from launcher.domain import Inventory, Profile, Refusal, Request, Settings
from launcher.inventory import list_machines, load_inventory
from launcher.planner.advice import plan
from launcher.planner.fit import decide, list_alternatives
from launcher.planner.forms import prepare_forms
from launcher.planner.search import Alternatives, smaller_among
from launcher.planner.sizing import prepare
from launcher.profiles import load_all

BAR_MS: Final = 60.0
ADVICE_AIM_MS: Final = 150.0


class Times(NamedTuple):
    """Milliseconds of one combination in one round."""

    full: float
    advised: float


def memories() -> list[Callable[[], None]]:
    """Return what forgets each result that the planner remembers between calls."""
    found: dict[int, _lru_cache_wrapper[Any]] = {}
    for module_info in pkgutil.walk_packages(launcher.__path__, "launcher."):
        if module_info.name.startswith(("launcher.planner", "launcher.tensor_types")):
            module = importlib.import_module(module_info.name)
            for value in vars(module).values():
                if isinstance(value, _lru_cache_wrapper):
                    found[id(value)] = value
    return [cached.cache_clear for cached in found.values()]


def time_one(
    profile: Profile,
    machine: Inventory,
    settings: Settings,
    alternatives: Alternatives,
    forget: list[Callable[[], None]],
) -> Times:
    """Time a full plan, then the whole answer with advice, each from nothing."""
    request = Request(profile=profile, settings=settings)
    for clear in forget:
        clear()
    start = time.perf_counter()
    prepared, forms = prepare(profile), prepare_forms(profile)
    decide(request, machine, prepared, forms=forms)
    list_alternatives(request, machine, prepared=prepared, forms=forms)
    full = time.perf_counter() - start
    for clear in forget:
        clear()
    start = time.perf_counter()
    plan(request, machine, alternatives=alternatives)
    return Times(full * 1e3, (time.perf_counter() - start) * 1e3)


def outcome_word(profile: Profile, machine: Inventory, settings: Settings) -> str:
    """Say in a word or two what is decided."""
    outcome = decide(Request(profile=profile, settings=settings), machine)
    if isinstance(outcome, Refusal):
        return outcome.code
    return f"{outcome.quantization} {outcome.n_gpu_layers}/{outcome.n_layer + 1}"


def measure(rounds: int, settings: Settings) -> Iterator[tuple[Profile, Inventory, Times]]:
    """Yield the median times of each combination."""
    profiles = load_all(lambda _: None)
    machines = tuple(load_inventory(name) for name in list_machines())
    by_size = sorted(machines, key=lambda m: (sum(d.total_bytes for d in m.devices), m.host.total_bytes))
    alternatives = Alternatives(smaller=smaller_among(profiles), machines=lambda: tuple(by_size))
    forget = memories()
    samples: dict[tuple[int, int], list[Times]] = {}
    for _ in range(rounds):
        for i, profile in enumerate(profiles):
            for j, machine in enumerate(machines):
                times = time_one(profile, machine, settings, alternatives, forget)
                samples.setdefault((i, j), []).append(times)
    for (i, j), taken in samples.items():
        medians = Times(*(statistics.median(column) for column in zip(*taken, strict=True)))
        yield profiles[i], machines[j], medians


def main() -> int:
    """Print the table and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shown", type=int, default=3, help="slowest machines shown of each profile")
    parser.add_argument("--context", type=int)
    parser.add_argument("--parallel", type=int)
    options = parser.parse_args()
    settings = Settings(n_ctx_per_request=options.context, n_parallel=options.parallel)
    gc.disable()  # as `launch plan` does
    found = list(measure(options.rounds, settings))
    print(f"{'profile':<16}{'machine':<16}{'outcome':<26}{'full plan':>12}{'with advice':>14}")
    for name in dict.fromkeys(profile.name for profile, _, _ in found):
        mine = sorted((row for row in found if row[0].name == name), key=lambda row: -row[2].full)
        for profile, machine, times in mine[: options.shown]:
            word = outcome_word(profile, machine, settings)
            print(f"{name:<16}{machine.name:<16}{word:<26}{times.full:>9.1f} ms{times.advised:>11.1f} ms")
    full = [times.full for _, _, times in found]
    advised = [times.advised for _, _, times in found]
    slow = sum(value > BAR_MS for value in full)
    print(
        f"{len(full)} combinations: full plan median {statistics.median(full):.1f} ms, worst {max(full):.1f} ms "
        f"(at most {BAR_MS:g}: {slow} beyond); with advice median {statistics.median(advised):.1f} ms, "
        f"worst {max(advised):.1f} ms (aim {ADVICE_AIM_MS:g})"
    )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
