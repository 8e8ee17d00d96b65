"""Plans over several machines: where the ranks are, how many copies there are, and what the network costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import (
    Cluster,
    Device,
    DeviceKind,
    Engine,
    EngineInstall,
    Inventory,
    Limits,
    Network,
    Objective,
    Plan,
    Provenance,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    Wishes,
)
from launcher.inventory import load_inventory, load_machines
from launcher.planner.advice import plan
from launcher.planner.fit import decide, decide_whole, list_alternatives
from launcher.planner.footprint.vllm_place import list_parallelisms, place_ranks
from launcher.planner.hosts import distinct_nodes, hosts_of
from launcher.planner.search import Alternatives
from launcher.profiles import load_profile
from launcher.units import GIB

_VLLM = Settings(engine=Engine.VLLM)


def _cluster(name: str) -> Cluster:
    found = load_machines(name)
    assert isinstance(found, Cluster)
    return found


def _plan(model: str, machines: Cluster | Inventory, **fixed: object) -> Plan:
    found = decide(Request(profile=load_profile(model), settings=replace(Settings(), **fixed)), machines)
    assert isinstance(found, Plan), found
    return found


# --- Bars -------------------------------------------------------------------------------------------------------


def test_llama_405b_fits_two_nodes_of_a100_at_bf16() -> None:
    """Tensors over the eight GPUs of a node, stages over the two nodes; every rank leaves its margin."""
    found = _plan("llama3.1-405b", _cluster("2x8xa100-80g"))
    assert (found.engine, found.quantization) == (Engine.VLLM, "bf16")
    assert (found.tensor_parallel, found.pipeline_parallel, found.replicas) == (8, 2, 1)
    assert [use.host for use in found.footprint.devices] == ["node0"] * 8 + ["node1"] * 8
    for use, budget in zip(found.footprint.devices, found.budgets, strict=False):
        assert (use.name, use.host) == (budget.name, budget.host)
        assert use.total_bytes + budget.margin_bytes <= budget.free_bytes
    assert [budget.name for budget in found.budgets[16:]] == ["node0/host", "node1/host"]
    assert [host.host for host in found.footprint.hosts] == ["node0", "node1"]


def test_llama_405b_at_fp8_is_held_by_each_of_two_nodes() -> None:
    """One node holds a copy, so two nodes hold two: nothing is stretched over the network that need not be."""
    found = _plan("llama3.1-405b", _cluster("2x8xh100"), quantization="fp8")
    assert (found.tensor_parallel, found.pipeline_parallel, found.replicas) == (8, 1, 2)
    assert {use.host for use in found.footprint.devices} == {"node0"}


# --- Where ranks are --------------------------------------------------------------------------------------------


@st.composite
def _hosts(draw: st.DrawFn) -> tuple[tuple[Device, ...], ...]:
    """Up to four hosts of up to five GPUs of three kinds, some partly taken."""
    kinds = {"a": 24 * GIB, "b": 48 * GIB, "c": 80 * GIB}
    hosts = []
    for i in range(draw(st.integers(1, 4))):
        devices = []
        for j in range(draw(st.integers(0, 5))):
            kind = draw(st.sampled_from(sorted(kinds)))
            taken = draw(st.sampled_from([0, 1, 10 * GIB]))
            devices.append(
                Device(
                    name=f"{i}/{j}",
                    kind=DeviceKind.CUDA,
                    description=kind,
                    total_bytes=kinds[kind],
                    free_bytes=kinds[kind] - taken,
                )
            )
        hosts.append(tuple(devices))
    return tuple(hosts)


@given(_hosts())
def test_ranks_of_a_stage_are_equal_gpus_of_one_host(hosts: tuple[tuple[Device, ...], ...]) -> None:
    """No layer is split over unequal devices or over a network, no GPU has two ranks, stages of a host are neighbours."""
    home = {device.name: idx for idx, devices in enumerate(hosts) for device in devices}
    for tp, pp, across in list_parallelisms(hosts):
        for ranks in place_ranks(hosts, tp, pp, across=across):
            names = [device.name for device in ranks.devices]
            assert len(names) == len(set(names)) == tp * pp
            for slot in ranks.slots:
                assert {home[device.name] for device in slot.devices} == {slot.host_idx}
                assert len({device.description for device in slot.devices}) == 1
            changes = sum(a != b for a, b in zip(ranks.hosts, ranks.hosts[1:], strict=False))
            assert changes == len(set(ranks.hosts)) - 1
            assert across or len(set(ranks.hosts)) == 1


@given(_hosts(), st.integers(1, 4), st.integers(1, 6))
def test_a_place_is_found_wherever_there_is_one(hosts: tuple[tuple[Device, ...], ...], tp: int, pp: int) -> None:
    """Stages find room exactly where hosts have so many groups of equal GPUs, on one of them or on all."""
    n_slots = [sum([device.description for device in devices].count(kind) // tp for kind in "abc") for devices in hosts]
    assert any(place_ranks(hosts, tp, pp, across=True)) is (sum(n_slots) >= pp)
    assert any(place_ranks(hosts, tp, pp, across=False)) is (max(n_slots) >= pp)


def test_tensors_are_not_split_over_unequal_gpus() -> None:
    """A third GPU of another kind is left out, though three would hold more."""
    a100, l40s = load_inventory("a100-80g").devices[0], load_inventory("l40s").devices[0]
    devices = (replace(l40s, name="gpu0"), replace(a100, name="gpu1"), replace(a100, name="gpu2"))
    machine = replace(load_inventory("8xa100-80g"), devices=devices)
    found = _plan("llama3.1-70b", machine, engine=Engine.VLLM)
    assert [use.name for use in found.footprint.devices] == ["gpu1", "gpu2"]
    assert found.tensor_parallel == 2


def test_a_pipeline_may_lie_over_unequal_hosts() -> None:
    """Stages have memory of their own: one is on the larger GPUs, one on the smaller."""
    pair = (load_inventory("l40s"), load_inventory("a100-40g"))
    nodes = tuple(replace(machine, name=f"node{idx}") for idx, machine in enumerate(pair))
    found = _plan("llama3.1-70b", Cluster(name="pair", nodes=nodes), engine=Engine.VLLM, quantization="fp8")
    assert (found.tensor_parallel, found.pipeline_parallel) == (1, 2)
    assert [use.name for use in found.footprint.devices] == ["node0/gpu0", "node1/gpu0"]


def test_a_stage_has_the_layers_that_vllm_gives_it() -> None:
    """126 layers over four stages: 31, 32, 32, 31, so the stages in the middle weigh more; ends have embeddings and head."""
    found = _plan("llama3.1-405b", _cluster("4x4xrtx4090"), engine=Engine.VLLM, quantization="awq-int4")
    assert found.pipeline_parallel == 3
    weights = [found.footprint.devices[idx * 4].weights_bytes for idx in range(3)]
    # 42 layers each; the first has the embeddings besides, the last the head.
    assert weights[0] > weights[1]
    assert weights[2] > weights[1]


# --- Copies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machines", "model", "quantization", "copies"),
    [
        ("2x8xh100", "llama3.1-8b", "bf16", 16),
        ("2x8xh100", "llama3.1-70b", "bf16", 8),
        ("8x8xh100", "llama3.1-405b", "bf16", 4),
        ("3x8xh100", "llama3.1-405b", "bf16", 1),
        ("4x4xrtx4090", "llama3.1-70b", "bf16", 2),
    ],
)
def test_copies_are_as_many_as_find_room(machines: str, model: str, quantization: str, copies: int) -> None:
    """GPUs over what one copy takes, whole nodes at a time where a copy spans nodes."""
    assert _plan(model, _cluster(machines), engine=Engine.VLLM, quantization=quantization).replicas == copies


def test_gpus_that_others_use_hold_no_copy() -> None:
    """Four of sixteen GPUs are taken: twelve copies are left."""
    cluster = _cluster("2x8xh100")
    busy = tuple(replace(device, free_bytes=GIB) for device in cluster.nodes[1].devices[:4])
    node = replace(cluster.nodes[1], devices=(*busy, *cluster.nodes[1].devices[4:]))
    found = _plan("llama3.1-8b", replace(cluster, nodes=(cluster.nodes[0], node)), engine=Engine.VLLM)
    assert found.replicas == 12


def test_copies_need_host_memory_too() -> None:
    """Each has processes: a host with room for two copies' holds two, however many GPUs it has."""
    cluster = _cluster("2x8xh100")
    host = replace(cluster.nodes[0].host, total_bytes=11 * GIB, available_bytes=11 * GIB)
    nodes = tuple(replace(node, host=host) for node in cluster.nodes)
    found = _plan("llama3.1-8b", replace(cluster, nodes=nodes), engine=Engine.VLLM)
    assert found.replicas == 4
    poor = replace(host, total_bytes=3 * GIB, available_bytes=3 * GIB)
    refused = decide(
        Request(profile=load_profile("llama3.1-8b"), settings=_VLLM),
        replace(cluster, nodes=tuple(replace(node, host=poor) for node in cluster.nodes)),
    )
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.EXCEEDS_HOST_MEMORY


def test_a_copy_lies_where_there_is_host_memory() -> None:
    """Of two machines with equal GPUs the one whose memory holds the processes is taken."""
    cluster = _cluster("2x1xh100")
    poor = replace(cluster.nodes[0].host, total_bytes=2 * GIB, available_bytes=2 * GIB)
    nodes = (replace(cluster.nodes[0], host=poor), cluster.nodes[1])
    found = _plan("llama3.1-8b", replace(cluster, nodes=nodes), engine=Engine.VLLM)
    assert [use.host for use in found.footprint.devices] == ["node1"]


# --- The network ------------------------------------------------------------------------------------------------


def test_a_slower_network_slows_what_spans_it() -> None:
    """By the time that a token's states take, both ways counted; what is on one machine is as fast."""
    cluster = _cluster("2x8xa100-80g")
    slow = Network(bandwidth_bytes_per_s=125e6, latency_s=1e-3, provenance=Provenance.MEASURED)
    fast, slowed = (
        _plan("llama3.1-405b", replace(cluster, network=network), engine=Engine.VLLM, quantization="bf16")
        for network in (cluster.network, slow)
    )
    assert fast.speed is not None
    assert slowed.speed is not None
    token_bytes = 2 * 16384 * 2
    expected_s = 2 * (1e-3 - 50e-6) + token_bytes / 125e6 - token_bytes / 1.25e9
    assert 1 / slowed.speed.generation_tps - 1 / fast.speed.generation_tps == pytest.approx(expected_s, rel=1e-6)
    assert fast.speed.prompt_tps is not None
    assert slowed.speed.prompt_tps is not None
    assert slowed.speed.prompt_tps < fast.speed.prompt_tps
    assert [basis.provenance for basis in slowed.basis if basis.figure == "network"] == [Provenance.MEASURED]
    alone = [
        _plan("llama3.1-8b", replace(cluster, network=network), engine=Engine.VLLM)
        for network in (cluster.network, slow)
    ]
    assert alone[0].speed == alone[1].speed
    assert not any(basis.figure == "network" for basis in alone[0].basis)


# --- One host only ----------------------------------------------------------------------------------------------


def test_llama_cpp_plans_for_the_best_machine_and_says_so() -> None:
    """Its plan is that of the best machine alone, under the machine's name."""
    nodes = tuple(replace(load_inventory(name), name=name) for name in ("t4", "rtx4090", "cpu-16g"))
    cluster = Cluster(name="rack", nodes=nodes)
    request = Request(profile=load_profile("gemma2-9b"), settings=Settings(engine=Engine.LLAMA_SERVER))
    found, alone = decide(request, cluster), decide(request, load_inventory("rtx4090"))
    assert isinstance(found, Plan)
    assert isinstance(alone, Plan)
    assert (found.quantization, found.speed) == (alone.quantization, alone.speed)
    assert [budget.name for budget in found.budgets] == ["rtx4090/gpu0", "rtx4090/host"]
    assert "`rtx4090`" in found.notes[0]
    assert "`rack`" in found.notes[0]


def test_machines_that_are_alike_are_asked_once() -> None:
    """Sixty-four equal machines are one question; of those that are alike the freest one is asked."""
    cluster = _cluster("8x8xh100")
    ((node, n),) = distinct_nodes(cluster)
    assert (node, n) == (cluster.nodes[0], 8)
    freest = replace(
        cluster.nodes[3], devices=tuple(replace(device, free_bytes=device.total_bytes) for device in node.devices)
    )
    ((node, _),) = distinct_nodes(replace(cluster, nodes=(*cluster.nodes[:3], freest, *cluster.nodes[4:])))
    assert node == freest


def test_devices_of_a_cluster_have_names_of_their_own() -> None:
    """``gpu0`` of two machines are two devices; a single machine's keep their names."""
    names = [device.name for host in hosts_of(_cluster("2x2xh100")) for device in host.devices]
    assert names == ["node0/gpu0", "node0/gpu1", "node1/gpu0", "node1/gpu1"]
    assert [device.name for device in hosts_of(load_inventory("2xh100"))[0].devices] == ["gpu0", "gpu1"]


def test_a_cluster_of_one_machine_is_that_machine() -> None:
    """The same quantization, parallelism and speed."""
    one, alone = _plan("llama3.1-405b", _cluster("1x8xh100")), _plan("llama3.1-405b", load_inventory("8xh100"))
    assert (one.quantization, one.speed, one.tensor_parallel) == (
        alone.quantization,
        alone.speed,
        alone.tensor_parallel,
    )
    assert one.replicas == 1


# --- Answers ----------------------------------------------------------------------------------------------------


def test_more_machines_never_refuse_what_one_serves() -> None:
    """Whatever a machine serves alone, it serves among others."""
    for model in ("gemma2-27b", "llama3.1-70b", "gpt-oss-120b", "qwen3-30b-a3b"):
        for name in ("1xrtx4090", "4xrtx4090", "1xt4"):
            alone = decide(Request(profile=load_profile(model)), load_machines(name))
            together = decide(Request(profile=load_profile(model)), _cluster(f"2x{name}"))
            assert isinstance(together, Plan) or isinstance(alone, Refusal)


def test_a_refusal_tells_of_one_machine_and_of_all() -> None:
    """What the largest machine lacks, and what vLLM would lack over all; each piece of advice was planned."""
    others = Alternatives(machines=lambda: (load_inventory("8xh100"), load_machines("2x8xh100")))
    request = Request(profile=load_profile("llama3.1-405b"), settings=Settings(quantization="bf16"))
    outcome = plan(request, _cluster("2x4xrtx4090"), argv=("plan", "--inventory", "2x4xrtx4090"), alternatives=others)
    assert isinstance(outcome, Refusal)
    assert any(line.startswith("bf16: weights") or "over several" in line for line in outcome.derivation)
    assert any("2x8xh100" in advice.argv for advice in outcome.advice)


def test_several_machines_are_advised_where_no_one_does() -> None:
    """bf16 of 405B fits no machine: two are named, and the command fits."""
    machines = (load_inventory("8xh100"), load_machines("2x8xh100"))
    request = Request(profile=load_profile("llama3.1-405b"), settings=replace(_VLLM, quantization="bf16"))
    outcome = plan(request, load_inventory("rtx4090"), alternatives=Alternatives(machines=lambda: machines))
    assert isinstance(outcome, Refusal)
    (advice,) = outcome.advice
    assert advice.argv[-1] == "2x8xh100"
    assert isinstance(decide_whole(request, load_machines(advice.argv[-1])), Plan)


def test_why_vllm_was_not_asked_is_said() -> None:
    """Another engine by name, a profile without it, no GPU: each has its words."""
    profile = load_profile("llama3.1-405b")
    cases = (
        (
            Request(profile=profile, settings=Settings(engine=Engine.LLAMA_SERVER)),
            "2x1xt4",
            "llama-server was asked for",
        ),
        (
            Request(profile=replace(profile, engines=(Engine.LLAMA_SERVER,))),
            "2x1xt4",
            "not among the profile's engines",
        ),
        (Request(profile=profile), "2xcpu-16g", "there is no GPU"),
        (Request(profile=profile, settings=Settings(n_gpu_layers=99)), "2x1xt4", "it has no n_gpu_layers"),
    )
    for request, machines, words in cases:
        outcome = decide(request, _cluster(machines))
        assert isinstance(outcome, Refusal)
        assert words in outcome.derivation[-1]


def test_machines_without_vllm_are_left_out() -> None:
    """It runs on those machines that have it; where none has, that is the refusal."""
    cluster = _cluster("2x8xh100")
    without = replace(cluster.nodes[0], engines=(EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",)),))
    request = Request(profile=load_profile("llama3.1-405b"), settings=_VLLM)
    found = decide(request, replace(cluster, nodes=(without, cluster.nodes[1])))
    assert isinstance(found, Plan)
    assert {use.host for use in found.footprint.devices} == {"node1"}
    none = decide(request, replace(cluster, nodes=(without, replace(without, name="node1"))))
    assert isinstance(none, Refusal)
    assert none.code is RefusalCode.NO_ENGINE


def test_alternatives_over_several_machines_are_on_the_front() -> None:
    """Each is better than the next and slower, whether on one machine or over many."""
    plans = list_alternatives(Request(profile=load_profile("llama3.1-70b")), _cluster("2x1xrtx4090"))
    speeds = [found.speed.generation_tps for found in plans if found.speed is not None]
    assert speeds == sorted(speeds)
    assert {found.engine for found in plans} == {Engine.VLLM, Engine.LLAMA_SERVER}


def test_objectives_hold_over_several_machines() -> None:
    """For speed the fastest plan is taken, for context the longest that fits."""
    profile, cluster = load_profile("llama3.1-70b"), _cluster("2x8xh100")
    best, fast, long = (
        decide(Request(profile=replace(profile, wishes=Wishes(objective=objective))), cluster)
        for objective in Objective
    )
    assert isinstance(best, Plan)
    assert isinstance(fast, Plan)
    assert isinstance(long, Plan)
    assert best.speed is not None
    assert fast.speed is not None
    assert fast.speed.generation_tps > best.speed.generation_tps
    assert long.n_ctx_per_request > best.n_ctx_per_request


def test_a_floor_of_speed_holds_over_several_machines() -> None:
    """More GPUs of a node share a layer where fewer are too slow."""
    cluster = _cluster("2x8xh100")
    profile = load_profile("llama3.1-8b")
    slow = _plan("llama3.1-8b", cluster, engine=Engine.VLLM, quantization="bf16")
    assert slow.speed is not None
    floor = replace(profile, limits=Limits(min_generation_tps=slow.speed.generation_tps * 1.5))
    quick = decide(Request(profile=floor, settings=replace(_VLLM, quantization="bf16")), cluster)
    assert isinstance(quick, Plan)
    assert quick.tensor_parallel > slow.tensor_parallel
    assert quick.replicas < slow.replicas
