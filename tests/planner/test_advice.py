"""Ways out of a refusal, what is given up, and what an old build makes of a plan."""

import pytest
from msgspec.structs import replace

from launcher.backends import build_command
from launcher.domain import (
    Address,
    CacheType,
    Condition,
    DeviceProcess,
    Engine,
    EngineDevice,
    EngineInstall,
    Limits,
    Outcome,
    Plan,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    Wishes,
)
from launcher.inventory import list_machines, load_inventory
from launcher.planner.abilities import NEEDED_OPTIONS
from launcher.planner.advice import plan
from launcher.planner.fit import decide
from launcher.planner.search import Alternatives, smaller_among
from launcher.profiles import load_all, load_profile
from launcher.units import GIB, MIB

_RTX4090 = load_inventory("rtx4090")
_GEMMA = load_profile("gemma2-27b")
_OTHERS = Alternatives(
    smaller=smaller_among(load_all(lambda _: None)),
    machines=lambda: tuple(load_inventory(name) for name in ("rtx5090", "2xrtx3090", "h100", "8xh100")),
)
_CURRENT = frozenset(
    {
        *NEEDED_OPTIONS[Engine.LLAMA_SERVER],
        "--model", "--alias", "--host", "--port", "--no-kv-unified", "--cache-ram", "--ctx-checkpoints", "--op-offload",
        "--fit", "--n-cpu-moe", "--split-mode", "--tensor-split", "--log-colors", "--metrics", "--offline", "--load-mode",
    }
)  # fmt: skip
"""Options of a current build that plans are made of."""


def _build(*, without: str = "", n_devices: int = 1) -> EngineInstall:
    seen = tuple(
        EngineDevice(name=f"CUDA{idx}", description="NVIDIA GeForce", device=f"gpu{idx}") for idx in range(n_devices)
    )
    return EngineInstall(
        engine=Engine.LLAMA_SERVER, argv=("llama-server",), version="b1", flags=_CURRENT - {without}, devices=seen
    )


def _ask(settings: Settings, machine: str = "rtx4090", model: str = "gemma2-27b") -> Outcome:
    request = Request(profile=load_profile(model), settings=settings)
    return plan(request, load_inventory(machine), argv=("plan", "--inventory", machine), alternatives=_OTHERS)


@pytest.mark.parametrize("option", sorted(_CURRENT))
@pytest.mark.parametrize(
    ("model", "machine", "n_devices"), [("gpt-oss-120b", "rtx4090", 1), ("gemma2-27b", "2xrtx3090", 2)]
)
def test_what_a_build_lacks_is_known_when_it_is_planned(option: str, model: str, machine: str, n_devices: int) -> None:
    """Whatever one option a build lacks: the plan starts, or the refusal names the option; never a fault at start."""
    found = replace(load_inventory(machine), engines=(_build(without=option, n_devices=n_devices),))
    outcome = decide(Request(profile=load_profile(model)), found)
    if option in NEEDED_OPTIONS[Engine.LLAMA_SERVER]:
        assert isinstance(outcome, Refusal)
        assert (outcome.code, option in outcome.derivation[0]) == (RefusalCode.ENGINE_TOO_OLD, True)
        return
    assert isinstance(outcome, Plan)
    if option not in {"--model", "--alias", "--host", "--port"}:  # every server since the first has these
        command = build_command(outcome, weights_path="x.gguf", address=Address(), alias="x")
        assert option not in command.argv


def test_an_old_build_is_passed_over_for_a_newer_one() -> None:
    """The note says which and why."""
    old = replace(_build(without="--device"), argv=("old-server",))
    outcome = decide(Request(profile=_GEMMA), replace(_RTX4090, engines=(old, _build())))
    assert isinstance(outcome, Plan)
    assert outcome.install == _build()
    assert "`old-server` (b1) has no --device: it is passed over" in outcome.notes


def test_without_a_split_option_one_device_is_planned() -> None:
    """Two GPUs that the build cannot be told to share: the first alone, and said so."""
    machine = replace(load_inventory("2xrtx3090"), engines=(_build(without="--tensor-split", n_devices=2),))
    outcome = decide(Request(profile=load_profile("llama3.1-70b")), machine)
    assert isinstance(outcome, Plan)
    assert [use.name for use in outcome.footprint.devices] == ["gpu0"]
    assert any("--tensor-split" in note for note in outcome.notes)


def test_layers_for_a_gpu_that_is_not_there_are_refused() -> None:
    """What the user fixed is not dropped in silence; without it the request fits."""
    outcome = _ask(Settings(n_gpu_layers=9), "cpu-64g")
    assert isinstance(outcome, Refusal)
    assert outcome.derivation == ("--n-gpu-layers 9: no GPU is reached by `llama-server`",)
    assert "--n-gpu-layers" not in outcome.advice[0].argv


def test_the_next_better_quantization_is_named_with_why_it_was_not_taken() -> None:
    """By the bytes that are missing; nothing where the user named one."""
    outcome = _ask(Settings())
    assert isinstance(outcome, Plan)
    (lost,) = outcome.given_up
    assert lost.startswith("q6_k (KL divergence ")
    assert lost.endswith("MiB more than gpu0 can give")
    named = _ask(Settings(quantization="q4_k_m"))
    assert isinstance(named, Plan)
    assert named.given_up == ()


def test_each_figure_says_what_it_rests_on() -> None:
    """From the weights to the speed; on a reference machine nothing is measured."""
    outcome = _ask(Settings())
    assert isinstance(outcome, Plan)
    found = {basis.figure: basis.provenance.value for basis in outcome.basis}
    assert found == {
        "weights": "derived",
        "kv cache, compute": "derived",
        "free": "published",
        "margin": "assumed",
        "driver": "published",
        "speed": "published",
        "prompts": "published",
    }


def test_three_verdicts_where_they_differ() -> None:
    """Now, once the named program leaves, with another device; none where all is well."""
    held = DeviceProcess(pid=4321, name="game", used_bytes=14 * GIB)
    gpu = replace(_RTX4090.devices[0], free_bytes=9 * GIB, processes=(held,))
    outcome = plan(Request(profile=_GEMMA), replace(_RTX4090, devices=(gpu,)), alternatives=_OTHERS)
    assert isinstance(outcome, Plan)
    assert [verdict.condition for verdict in outcome.verdicts] == list(Condition)[:3]
    assert outcome.verdicts[2].machine == "rtx5090"
    calm = _ask(Settings())
    assert isinstance(calm, Plan)
    assert calm.verdicts == ()


def test_a_refusal_has_verdicts_too() -> None:
    """What does not fit now, with the device on which it would."""
    outcome = _ask(Settings(quantization="q8_0", n_gpu_layers=99))
    assert isinstance(outcome, Refusal)
    assert [(verdict.fits, verdict.machine) for verdict in outcome.verdicts] == [(False, None), (True, "rtx5090")]


def test_only_margins_can_be_forced_away() -> None:
    """Within the margin a refusal is an estimate that ``--force`` overrides and prices; beyond, nothing does."""
    request = Request(profile=_GEMMA, settings=Settings(quantization="q5_k_m", n_gpu_layers=99))
    need = decide(request, _RTX4090)
    assert isinstance(need, Plan)
    used = need.footprint.devices[0].total_bytes + need.budgets[0].residual_bytes

    def on(free_bytes: int, *, force: bool) -> Outcome:
        machine = replace(_RTX4090, devices=(replace(_RTX4090.devices[0], free_bytes=free_bytes),))
        return plan(replace(request, force=force), machine, alternatives=_OTHERS)

    tight = on(used + 100 * MIB, force=False)
    assert isinstance(tight, Refusal)
    assert not tight.certain
    said = [*tight.derivation, *(advice.text for advice in tight.advice)]
    assert any("--force runs it all the same: q5_k_m, about " in text for text in said), said
    forced = on(used + 100 * MIB, force=True)
    assert isinstance(forced, Plan)
    assert any("nothing is left free on purpose" in fact for fact in forced.given_up)
    beyond = on(used - GIB, force=True)
    assert isinstance(beyond, Refusal)
    assert beyond.certain
    assert any("--force does not change this" in line for line in beyond.derivation)


def test_force_states_the_speed_that_it_accepts() -> None:
    """A plan below the floor says so."""
    request = Request(profile=load_profile("llama3.1-70b"), force=True)
    outcome = plan(request, load_inventory("cpu-64g"))
    assert isinstance(outcome, Plan)
    assert any(fact.startswith("speed: about 0.") and "below the floor of 2" in fact for fact in outcome.given_up)


def test_a_wish_for_context_gives_way_down_to_its_limit() -> None:
    """Less than wished for and said so; with a limit at the wish itself it is refused."""
    wide = replace(_GEMMA, wishes=Wishes(n_ctx_per_request=8192), pins=Settings(quantization="q6_k", n_gpu_layers=99))
    outcome = decide(Request(profile=replace(wide, limits=Limits(min_n_ctx_per_request=2048))), _RTX4090)
    assert isinstance(outcome, Plan)
    assert 2048 <= outcome.n_ctx_per_request < 8192
    assert outcome.given_up[0].startswith("context lowered from 8192 to ")
    assert isinstance(
        decide(Request(profile=replace(wide, limits=Limits(min_n_ctx_per_request=8192))), _RTX4090), Refusal
    )


def test_a_harmless_cache_is_advised_where_a_wide_one_was_fixed() -> None:
    """Llama's q8_0 cache, with its price."""
    fixed = Settings(
        quantization="q8_0", n_ctx_per_request=65536, cache_type_k=CacheType.F16, cache_type_v=CacheType.F16
    )
    machine = replace(_RTX4090, devices=(replace(_RTX4090.devices[0], free_bytes=15 * GIB),))
    request = Request(profile=load_profile("llama3.1-8b"), settings=replace(fixed, n_gpu_layers=99))
    outcome = plan(request, machine)
    assert isinstance(outcome, Refusal)
    texts = [advice.text for advice in outcome.advice]
    assert any("with a q8_0 cache" in text and "KL divergence 0.001" in text for text in texts), texts


def test_a_ruinous_quantization_comes_last_with_its_price() -> None:
    """By what the user loses: below the default floor another model, or another machine, is the better answer."""
    profile = replace(load_profile("llama3.1-70b"), limits=Limits(min_generation_tps=20.0))
    outcome = plan(Request(profile=profile), _RTX4090, alternatives=_OTHERS)
    assert isinstance(outcome, Refusal)
    assert len(outcome.advice) == 3
    last = outcome.advice[-1]
    assert (last.argv[2], last.argv[3]) == ("llama3.1-70b", "--quant")
    assert "KL divergence" in last.text
    assert all(advice.argv[2] != "llama3.1-70b" or "--inventory" in advice.argv for advice in outcome.advice[:-1])
    assert any(fact.startswith("--force runs it all the same: ") for fact in outcome.derivation)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_tiny_context_is_no_fault(context: int) -> None:
    """Advice halves what there is to halve."""
    assert isinstance(_ask(Settings(n_ctx_per_request=context), "cpu-16g", "llama3.1-405b"), Refusal)


def test_machines_of_a_cloud_are_known() -> None:
    """The desktops are not, the nodes with eight GPUs are."""
    cloud = {name for name in list_machines() if load_inventory(name).is_cloud}
    assert {"8xh100", "8xa100-80g", "t4"} <= cloud
    assert not cloud & {"rtx4090", "cpu-64g", "2xrtx3090"}


def test_programs_that_hold_the_hosts_memory_are_named() -> None:
    """On a machine without a GPU the host's memory is what others take."""
    machine = load_inventory("cpu-32g")
    busy = replace(machine, host=replace(machine.host, available_bytes=8 * GIB))
    hog = DeviceProcess(pid=99, name="chrome", used_bytes=20 * GIB)
    request = Request(profile=load_profile("gpt-oss-20b"))
    outcome = plan(request, busy, alternatives=Alternatives(programs=lambda: (hog,)))
    assert isinstance(outcome, Refusal)
    assert [verdict.text for verdict in outcome.verdicts] == [
        "does not fit",
        "fits at mxfp4, all on the CPU once chrome (pid 99, 20.0 GiB of memory) leaves",
    ]
    calm = plan(request, machine, alternatives=Alternatives(programs=lambda: (hog,)))
    assert isinstance(calm, Plan)
    assert calm.verdicts == ()
