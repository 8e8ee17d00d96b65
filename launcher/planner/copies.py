"""How many whole copies of a vLLM server the hosts of a cluster have room for.

It must not choose a configuration: every copy has that of the first.
"""

from collections.abc import Sequence

from launcher.domain import Device
from launcher.planner.footprint.vllm import HOST_BYTES, HOST_RANK_BYTES, VllmChoice, estimate, find_shortage
from launcher.planner.footprint.vllm_place import Hosts, Ranks, place_ranks


def host_bytes(ranks: Ranks) -> dict[int, int]:
    """Return the host memory that one copy's processes take on each host: a worker per rank, the server on the first."""
    taken = {ranks.hosts[0]: HOST_BYTES}
    for slot in ranks.slots:
        taken[slot.host_idx] = taken.get(slot.host_idx, 0) + HOST_RANK_BYTES * len(slot.devices)
    return taken


def within_memory(devices: Sequence[Device], budget_bytes: int) -> tuple[Device, ...]:
    """Return those devices of a host that its memory allows a worker process each, the freest first."""
    n_rank = max(0, (budget_bytes - HOST_BYTES) // HOST_RANK_BYTES)
    if n_rank >= len(devices):
        return tuple(devices)
    return tuple(sorted(devices, key=lambda device: -device.known_free_bytes)[:n_rank])


def count_copies(choice: VllmChoice, hosts: Hosts, budgets: Sequence[int]) -> int:
    """Return how many copies find room at the same time, the chosen one counted.

    ``budgets`` are the bytes of each host's memory that plans may use. Copies are placed one after the other, each where
    the choice itself would be if what is taken were not there.
    """
    left, memory = [tuple(devices) for devices in hosts], list(budgets)
    known: dict[tuple[object, ...], bool] = {}
    n_copies = 0
    ranks: Ranks | None = choice.ranks
    while ranks is not None:
        n_copies += 1
        taken = {device.name for device in ranks.devices}
        for idx, n_bytes in host_bytes(ranks).items():
            memory[idx] -= n_bytes
            rest = tuple(device for device in left[idx] if device.name not in taken)
            left[idx] = within_memory(rest, memory[idx])
        ranks = _next(choice, left, known)
    return n_copies


def _next(choice: VllmChoice, left: Hosts, known: dict[tuple[object, ...], bool]) -> Ranks | None:
    """Return where one more copy would run; ``known`` remembers which ranks hold one."""
    tp, pp = choice.config.tensor_parallel_size, choice.config.pipeline_parallel_size
    for across in (False, True):
        for ranks in place_ranks(left, tp, pp, across=across):
            signature = tuple(slot.signature for slot in ranks.slots)
            if signature not in known:
                found = estimate(choice.model, choice.config, ranks.devices)
                known[signature] = find_shortage(choice.config, found) is None
            if known[signature]:
                return ranks
    return None
