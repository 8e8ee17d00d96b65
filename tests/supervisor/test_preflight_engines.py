"""A real engine that tells its memory, and is ended by what it told before it opens the weights again."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from launcher.backends import build_command, tell_before_load
from launcher.domain import Address, EngineInstall, Footprint, HostUse, Noun, Plan
from launcher.inventory.proc import run_bounded
from launcher.store import open_instance
from launcher.supervisor.breakdown import Breakdown, read_line
from launcher.supervisor.checks import free_port
from launcher.supervisor.placement import parse_placement
from launcher.supervisor.preflight import judge, told_after_load
from launcher.supervisor.tether import Tether
from launcher.units import GIB, MIB
from tests.fakes.plans import plan_for

pytestmark = pytest.mark.engine
DEADLINE_S = 60.0


class Flight(Noun, frozen=True):
    """What came of one start: its account, how it was judged, its lines after that, how it ended."""

    told: Breakdown
    fits: bool
    lines_after: tuple[str, ...]
    report: dict[str, int | str]
    end_s: float
    """From the verdict to the end of the engine, or to its being ready."""


async def fly(plan: Plan, weights: Path, folder: str, free: dict[str, int]) -> Flight:
    """Start the plan's engine so that it tells first, end it where it exceeds, else wait until it listens."""
    address = Address(port=free_port("127.0.0.1"))
    command = tell_before_load(build_command(plan, weights_path=str(weights), address=address, alias="m"), plan.engine)
    assert command is not None
    told, after, fits = Breakdown(), [], True
    judged_s = 0.0
    done: asyncio.Future[dict[str, int | str]] = asyncio.get_running_loop().create_future()

    def on_line(line: str) -> None:
        nonlocal told, fits, judged_s
        if judged_s:
            after.append(line)
            if "listening on" in line and not done.done():
                done.set_result({"event": "listening"})
        elif (now := read_line(told, line)) is not told:
            told, verdict = now, judge(plan, free, now)
            fits = verdict.fits
            if not fits or verdict.confirmed:
                judged_s = time.monotonic()
            if not fits:
                tether.kill()

    def on_report(report: dict[str, int | str]) -> None:
        if report["event"] == "exited" and not done.done():
            done.set_result(report)

    with open_instance(folder) as instance:
        tether = Tether(
            command.argv,
            dict(command.env),
            record_path=instance.guard_path("t"),
            token="t",  # noqa: S106 - a mark
            orphan_grace_s=0.1,
            on_report=on_report,
            on_line=on_line,
            on_lost=lambda: None,
        )
        try:
            report = await asyncio.wait_for(done, DEADLINE_S)
            end_s = time.monotonic() - judged_s
        finally:
            tether.kill()
            await tether.close()
    return Flight(told=told, fits=fits, lines_after=tuple(after), report=report, end_s=end_s)


def plan_on(install: EngineInstall) -> Plan:
    """A small plan for the processor of this machine."""
    return replace(plan_for(), install=install, budgets=(), footprint=Footprint(devices=(), host=HostUse()))


@pytest.mark.usefixtures("state_dir")
def test_an_excess_ends_the_engine_before_it_loads(llama_server: EngineInstall, real_model: Path) -> None:
    """It is gone without having begun to load tensors: the vocabulary and the libraries are all it ever held."""
    flight = asyncio.run(fly(plan_on(llama_server), real_model, "m", {"host": 100 * MIB}))
    assert not flight.fits
    assert flight.report["signal"] in {signal.SIGTERM, signal.SIGKILL}
    assert flight.told.host.total_bytes > 200 * MIB
    assert not [line for line in flight.lines_after if "load_tensors" in line or "buffer size" in line]


@pytest.mark.usefixtures("state_dir")
def test_what_fits_is_loaded_as_planned_and_as_told(llama_server: EngineInstall, real_model: Path) -> None:
    """The same process goes on; its buffers are what it told, to the MiB that each row is rounded by."""
    plan = plan_on(llama_server)
    flight = asyncio.run(fly(plan, real_model, "m", {"host": 8 * GIB}))
    assert flight.fits
    assert flight.report["event"] == "listening"
    assert flight.told.complete
    loaded = told_after_load(parse_placement(flight.lines_after))
    assert loaded is not None
    for field in ("kv_cache_bytes", "compute_bytes"):
        assert abs(getattr(loaded.host, field) - getattr(flight.told.host, field)) <= 2 * MIB
    assert any(f"n_ctx                 = {plan.n_ctx}" in line for line in flight.lines_after)


@pytest.fixture
def software_gpu(llama_server: EngineInstall) -> EngineInstall:
    """The same engine with Mesa's software renderer as its device: a real Vulkan device of 2 GiB."""
    env = {**llama_server.env, "GGML_VK_VISIBLE_DEVICES": "0"}
    listed = run_bounded([*llama_server.argv, "--list-devices"], timeout_s=30, env=env).stdout
    if "llvmpipe" not in listed:
        pytest.skip("needs a llama-server with Vulkan, and: apt-get install mesa-vulkan-drivers")
    return replace(llama_server, env=env)


@pytest.mark.usefixtures("state_dir")
def test_a_device_is_exceeded_by_its_own_free_figure(software_gpu: EngineInstall, real_model: Path) -> None:
    """A cache of more than the device has: the engine's row alone says no, and nothing is allocated there."""
    plan = replace(
        plan_on(software_gpu),
        n_ctx=262144,
        n_parallel=16,
        n_gpu_layers=19,
        swa_full=True,
        engine_devices=("Vulkan0",),
    )
    flight = asyncio.run(fly(plan, real_model, "m", {"host": 64 * GIB}))
    assert not flight.fits
    assert flight.told.devices[0].use.kv_cache_bytes > 2 * GIB
    assert not [line for line in flight.lines_after if "load_tensors" in line or "ErrorOutOfDevice" in line]
