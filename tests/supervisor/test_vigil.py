"""What is remembered of an instance's memories over several engines."""

from pathlib import Path

from msgspec.structs import replace

from launcher.domain import HOST_MEMORY, Budget, Footprint, HostUse, MemoryUse, Plan
from launcher.supervisor.preflight import Preflight
from launcher.supervisor.strain import Gauge, Sample, StrainPolicy
from launcher.supervisor.vigil import Vigil
from launcher.units import GIB, MIB
from tests.fakes.plans import plan_for

LINES = (Path(__file__).parents[1] / "transcripts/llama-server/b10434-silent-cpu-fallback.log").read_text().splitlines()


def plan(n_ctx: int = 2048) -> Plan:
    """A plan for the processor, made when 8 GiB were free."""
    budget = Budget(name=HOST_MEMORY, total_bytes=16 * GIB, free_bytes=8 * GIB, margin_bytes=0)
    return replace(plan_for(), n_ctx=n_ctx, footprint=Footprint(devices=(), host=HostUse()), budgets=(budget,))


def host(free_bytes: int, at_s: float = 0.0) -> Sample:
    """A sample of host memory."""
    return Sample(at_s=at_s, gauges=(Gauge(name=HOST_MEMORY, total_bytes=16 * GIB, free_bytes=free_bytes),))


def hear(vigil: Vigil, of: Plan) -> list[Preflight]:
    """Let an engine start and tell; return each judgement."""
    vigil.expect()
    return [verdict for line in LINES if (verdict := vigil.hear(of, line)) is not None]


def test_each_engine_that_tells_is_heard() -> None:
    """The next plan's engine too, and the same plan's once more: what one told does not stop the ears for another."""
    vigil = Vigil(StrainPolicy())
    for of in (plan(), plan(1024), plan(1024)):
        verdicts = hear(vigil, of)
        assert verdicts[-1].confirmed
        assert verdicts[-1].fits


def test_what_was_told_is_known_for_that_plan_alone() -> None:
    """It is judged at once by what is free now; another plan has only its own figure."""
    vigil = Vigil(StrainPolicy())
    hear(vigil, plan())
    assert vigil.is_known(plan())
    assert not vigil.is_known(plan(1024))
    vigil.see(host(100 * MIB), is_serving=False)
    known, unknown = vigil.foresee(plan()), vigil.foresee(plan(1024))
    assert (known.fits, known.confirmed) == (False, True)
    assert not unknown.confirmed


def test_an_engine_that_died_while_it_told() -> None:
    """Half a table is nothing to go by, and does not mix with the next engine's."""
    vigil = Vigil(StrainPolicy())
    vigil.expect()
    half = next(idx for idx, line in enumerate(LINES) if "- AMX" in line)
    for line in LINES[:half]:
        vigil.hear(plan(), line)
    assert not vigil.is_known(plan())
    whole = hear(vigil, plan())[-1]
    assert whole.needs[0].told is not None
    assert whole.needs[0].told.weights_bytes == 424 * MIB


def test_what_was_free_before_an_engine_ended_is_free_no_longer() -> None:
    """Until the next sample the start is not judged by it, for it still counts what the dead engine held."""
    vigil = Vigil(StrainPolicy())
    vigil.see(host(GIB), is_serving=True)
    assert vigil.free_bytes(plan())[HOST_MEMORY] == GIB
    hear(vigil, plan())
    vigil.bury(10.0)
    assert not vigil.is_known(plan())
    assert vigil.free_bytes(plan())[HOST_MEMORY] == 8 * GIB
    vigil.see(host(2 * GIB, 9.9), is_serving=False)  # was begun before, and comes after
    assert not vigil.is_known(plan())
    vigil.see(host(3 * GIB, 10.1), is_serving=False)
    assert vigil.is_known(plan())
    assert vigil.free_bytes(plan())[HOST_MEMORY] == 3 * GIB


def test_a_memory_that_was_not_seen_since_leaves_a_restart_unknown() -> None:
    """Of a device that only an engine can look at its next engine is asked, which tells what is free there, too."""
    on_device = replace(plan(), footprint=Footprint(devices=(MemoryUse(name="gpu0"),), host=HostUse()))
    vigil = Vigil(StrainPolicy())
    hear(vigil, on_device)
    assert vigil.is_known(on_device)  # what is free was measured for the plan
    vigil.bury(10.0)
    vigil.see(host(3 * GIB, 11.0), is_serving=False)
    assert not vigil.is_known(on_device)
    gpu = Gauge(name="gpu0", total_bytes=GIB, free_bytes=GIB)
    vigil.see(Sample(at_s=12.0, gauges=(gpu, *host(3 * GIB).gauges)), is_serving=False)
    assert vigil.is_known(on_device)
