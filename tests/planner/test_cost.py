"""What a full plan costs, counted rather than timed: how many graphs are built for it."""

import pytest

from benchmarks.plan_time import memories
from launcher.domain import Request, Settings
from launcher.inventory import load_inventory
from launcher.planner.fit import decide, list_alternatives
from launcher.planner.footprint import compute
from launcher.planner.footprint.families import build_graph
from launcher.planner.footprint.family import Model
from launcher.planner.footprint.graph import Graph
from launcher.planner.sizing import prepare
from launcher.profiles import load_profile


@pytest.mark.parametrize(
    ("name", "machine", "most_graphs", "most_blocks"),
    [
        ("llama3.1-405b", "4xrtx4090", 6, 110),
        ("llama3.1-70b", "rtx5090", 7, 45),
        ("llama3.1-8b", "rtx4090", 2, 10),
        ("qwen3.6-27b", "rtx3060-12g", 10, 200),
    ],
)
def test_quantizations_of_a_model_share_their_graphs(
    name: str, machine: str, most_graphs: int, most_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dozens of placements are sized for a full plan; graphs are built for each kind of placement and cache only, whatever the step."""
    for forget in memories():
        forget()
    built: list[int] = []

    def count(model: Model) -> Graph:
        built.append(len(model.layers))
        return build_graph(model)

    monkeypatch.setattr(compute, "build_graph", count)
    request, inventory = Request(profile=load_profile(name), settings=Settings()), load_inventory(machine)
    prepared = prepare(request.profile)
    decide(request, inventory, prepared)
    list_alternatives(request, inventory, prepared=prepared)
    assert 0 < len(built) <= most_graphs
    assert sum(built) <= most_blocks
