"""An engine's own figures compared with a plan and with what is free."""

from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import Budget, Footprint, HostUse, MemoryUse, Plan
from launcher.supervisor.breakdown import Breakdown, DeviceRow, read_line, remembered
from launcher.supervisor.placement import Placement, parse_placement
from launcher.supervisor.preflight import Preflight, describe, judge, told_after_load
from launcher.units import GIB, MIB
from tests.fakes.plans import plan_for

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
ROOMY = {"gpu0": 24 * GIB, "host": 64 * GIB}


def use(name: str, weights: int, context: int = 0, compute: int = 0) -> MemoryUse:
    """A memory's use in MiB."""
    return MemoryUse(name=name, weights_bytes=weights * MIB, kv_cache_bytes=context * MIB, compute_bytes=compute * MIB)


def plan() -> Plan:
    """16 GiB on one device, 2 GiB on the host and 1 GiB of prompt cache, with margins and residuals."""
    return replace(
        plan_for(),
        footprint=Footprint(
            devices=(use("gpu0", 14336, 1536, 512),),
            host=HostUse(weights_bytes=2 * GIB, prompt_cache_bytes=GIB),
        ),
        budgets=(
            Budget(name="gpu0", total_bytes=24 * GIB, free_bytes=24 * GIB, margin_bytes=512 * MIB, residual_bytes=450 * MIB),
            Budget(name="host", total_bytes=64 * GIB, free_bytes=64 * GIB, margin_bytes=GIB, residual_bytes=256 * MIB),
        ),
        engine_devices=("CUDA0",),
    )  # fmt: skip


def told(device: MemoryUse | None, host: MemoryUse | None, *, free: int = 24 * GIB, complete: bool = True) -> Breakdown:
    """An engine's account with at most one device."""
    devices = (DeviceRow(use=device, free_bytes=free),) if device else ()
    return Breakdown(devices=devices, hosts=(host,) if host else (), complete=complete)


AS_PLANNED = told(use("CUDA0", 14336, 1536, 512), use("Host", 2048))


def test_an_engine_that_agrees() -> None:
    """It fits, confirmed, with nothing unaccounted for."""
    found = judge(plan(), ROOMY, AS_PLANNED)
    assert found.fits
    assert found.confirmed
    assert [(need.name, need.engine_name, need.unaccounted_bytes) for need in found.needs] == [
        ("gpu0", "CUDA0", 0),
        ("host", "host", 0),
    ]
    assert describe(found) == "it fits"


def test_the_shortfall_is_exact_and_names_the_memory() -> None:
    """Need, plus half of the margin, less what is free now."""
    found = judge(plan(), {**ROOMY, "gpu0": 10 * GIB}, AS_PLANNED)
    (short,) = found.exceeded
    assert short.name == "gpu0"
    assert short.shortfall_bytes == 16 * GIB + 256 * MIB - 10 * GIB
    assert describe(found) == (
        "gpu0 needs 16.0 GiB and keeps 256 MiB free, of which 10.0 GiB is free: 6.2 GiB too much"
    )


def test_a_plan_that_was_too_small_is_caught() -> None:
    """The engine needs 10 GiB more than planned: that is what counts, and what is to be remembered."""
    found = judge(plan(), ROOMY, told(use("CUDA0", 24576, 1536, 512), use("Host", 2048)))
    (short,) = found.exceeded
    assert short.unaccounted_bytes == 10 * GIB
    assert not found.fits


def test_a_difference_within_the_margin_is_no_excess() -> None:
    """Half of the margin was for the planner's error: what uses it up still starts."""
    tight = {**ROOMY, "gpu0": 16 * GIB + 512 * MIB}
    assert judge(plan(), tight, told(use("CUDA0", 14336 + 256, 1536, 512), use("Host", 2048))).fits
    assert not judge(plan(), tight, told(use("CUDA0", 14336 + 257, 1536, 512), use("Host", 2048))).fits


def test_the_lesser_free_figure_counts() -> None:
    """A back end may know only the total; the driver knows better, and the other way round."""
    assert not judge(plan(), {**ROOMY, "gpu0": 2 * GIB}, AS_PLANNED).fits
    assert not judge(plan(), ROOMY, told(use("CUDA0", 14336, 1536, 512), None, free=2 * GIB)).fits


def test_the_prompt_cache_is_not_in_the_engines_account() -> None:
    """It grows while serving, so the host must have room for it."""
    short = judge(plan(), {**ROOMY, "host": 2 * GIB + 512 * MIB}, AS_PLANNED).exceeded
    assert [(need.name, need.shortfall_bytes) for need in short] == [("host", GIB)]


def test_an_excess_is_certain_before_the_last_row() -> None:
    """One row suffices to say no; that all fits is confirmed only by the whole table."""
    first = told(use("CUDA0", 30000), None, complete=False)
    assert not judge(plan(), ROOMY, first).fits
    roomy = judge(plan(), {**ROOMY, "host": 1}, told(use("CUDA0", 14336, 1536, 512), None, complete=False))
    assert roomy.fits  # nothing was told of the host yet
    assert not roomy.confirmed


def test_what_was_told_once_holds_for_the_next_start() -> None:
    """Its needs do, not what was free then: a restart is judged without asking the engine again."""
    assert not judge(plan(), {**ROOMY, "gpu0": 2 * GIB}, remembered(AS_PLANNED)).fits
    starved = told(use("CUDA0", 14336, 1536, 512), use("Host", 2048), free=0)
    found = judge(plan(), ROOMY, remembered(starved))
    assert (found.fits, found.confirmed) == (True, True)


def test_a_device_that_the_engine_does_not_see() -> None:
    """All fell back to the host: nothing is needed of the device, and the host's row says what it costs."""
    found = judge(plan(), {**ROOMY, "host": 8 * GIB}, told(None, use("Host", 18000)))
    assert [(need.name, need.needed_bytes) for need in found.needs] == [("gpu0", 0), ("host", 18000 * MIB + GIB)]
    assert [need.name for need in found.exceeded] == ["host"]


def test_a_device_that_nobody_planned() -> None:
    """It appears under the engine's own name, with all its bytes unaccounted for."""
    strange = Breakdown(
        devices=(*AS_PLANNED.devices, DeviceRow(use=use("CUDA1", 100), free_bytes=50 * MIB)),
        hosts=AS_PLANNED.hosts,
        complete=True,
    )
    (short,) = judge(plan(), ROOMY, strange).exceeded
    assert (short.name, short.unaccounted_bytes) == ("CUDA1", 100 * MIB)


def test_an_engine_that_tells_nothing_is_unconfirmed() -> None:
    """The plan's figure with what was learned of the driver stands in, and it is said."""
    found = judge(plan(), ROOMY)
    assert (found.fits, found.confirmed) == (True, False)
    assert [need.needed_bytes for need in found.needs] == [
        16 * GIB + 450 * MIB,
        3 * GIB + 256 * MIB,
    ]
    assert "does not confirm" in describe(found)
    assert not judge(plan(), {**ROOMY, "gpu0": 16 * GIB}).fits


def test_such_an_engine_is_checked_after_it_has_loaded() -> None:
    """llama-cpp-python prints its buffers while loading: they confirm the plan, or tell the difference."""
    lines = (TRANSCRIPTS / "llama-cpp-python" / "0.3.36-cpu-verbose.log").read_text().splitlines()
    loaded = told_after_load(parse_placement(lines))
    assert loaded is not None
    on_host = replace(plan(), footprint=Footprint(devices=(), host=HostUse(weights_bytes=GIB)), engine_devices=())
    found = judge(on_host, {}, loaded)
    assert found.confirmed
    assert found.needs[0].unaccounted_bytes == loaded.host.total_bytes - GIB
    assert loaded.host.weights_bytes > 200 * MIB
    assert told_after_load(Placement()) is None


def test_a_remote_device_is_recognised_by_its_name_alone() -> None:
    """Buffers carry the worker's address behind the name; the plan may have either."""
    remote = replace(plan(), engine_devices=("RPC0[127.0.0.1:50052]",))
    (device, _) = judge(remote, ROOMY, told(use("RPC0", 10), use("Host", 1))).needs
    assert device.told == use("RPC0", 10)


@pytest.mark.parametrize("name", ["b11434-two-devices-text.log", "b10434-lavapipe-ngl10.log"])
def test_a_recorded_breakdown_against_a_plan(name: str) -> None:
    """Real rows, with the plan's devices in the engine's order."""
    lines = (TRANSCRIPTS / "llama-server" / name).read_text().splitlines()
    seen = reduce(read_line, lines, Breakdown())
    names = tuple(f"gpu{idx}" for idx in range(len(seen.devices)))
    mine = replace(
        plan(),
        footprint=Footprint(devices=tuple(use(name, 0) for name in names), host=HostUse()),
        engine_devices=tuple(row.use.name for row in seen.devices),
    )
    found = judge(mine, {"host": GIB}, seen)
    assert found.fits
    assert [need.unaccounted_bytes for need in found.needs] == [
        *(row.use.total_bytes for row in seen.devices),
        seen.host.total_bytes,
    ]


@given(
    needed=st.integers(0, 40 * GIB),
    free=st.integers(0, 40 * GIB),
    taken=st.integers(0, GIB),
)
def test_less_free_never_makes_it_fit(needed: int, free: int, taken: int) -> None:
    """Taking memory away grows the shortfall by as much, or keeps it at nothing."""

    def shortfall(free_bytes: int) -> int:
        row = MemoryUse(name="CUDA0", weights_bytes=needed)
        found: Preflight = judge(plan(), {"gpu0": free_bytes}, told(row, use("Host", 0)))
        return found.needs[0].shortfall_bytes

    before, after = shortfall(free), shortfall(max(0, free - taken))
    assert before <= after <= before + taken
