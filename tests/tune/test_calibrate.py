"""Calibrating over a real small process that pretends to be an engine, and once over a real one."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from launcher.cli.measuring import engine_opener
from launcher.cli.options import keep_local
from launcher.domain import (
    Artifact,
    Calibration,
    Engine,
    EngineDevice,
    EngineInstall,
    Host,
    Inventory,
    Plan,
    Provenance,
    Request,
    Settings,
    Tuning,
)
from launcher.errors import EngineFailedError, EngineMissingError, PortInUseError
from launcher.inventory import load_inventory, probe_inventory
from launcher.planner.calibration import machine_id
from launcher.planner.fit import decide
from launcher.profiles import load_profile
from launcher.store import open_instance, read_calibration, write_calibration
from launcher.supervisor import checks
from launcher.tune.bandwidth import measure_bandwidth
from launcher.tune.calibrate import Outcome, calibrate
from launcher.tune.points import Workload
from launcher.units import GIB, MIB
from tests.fakes.harness import FAKES

# Threads to prompt and generated tokens/s: a machine of three cores, one of them busy with something else.
_RATES: dict[str, list[float]] = {"1": [100, 30], "2": [220, 50], "3": [240, 8]}
_WORKLOAD = Workload(n_prompt=64, n_generated=8)


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the program at an empty state directory."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def _fake(build: str, rates: dict[str, list[float]], *more: str) -> EngineInstall:
    argv = (sys.executable, "-S", str(FAKES / "fake_engine.py"), "--rates", json.dumps(rates), *more)
    return EngineInstall(engine=Engine.LLAMA_SERVER, argv=argv, build=build)


def _machine(*engines: EngineInstall) -> Inventory:
    host = Host(total_bytes=8 * GIB, available_bytes=7 * GIB, n_cpu=3, cpu_name="fake")
    return Inventory(name="here", host=host, engines=engines)


@pytest.fixture
def request_for(tmp_path: Path) -> Request:
    """A request for the 270M model, with an empty file for weights: the fake engine reads none."""
    weights = tmp_path / "weights.gguf"
    weights.touch()
    profile = load_profile("gemma3-270m")
    artifact: Artifact = next(a for a in profile.artifacts if a.quantization == "q4_k_m")
    local = replace(artifact, local_path=str(weights), package=None, files=())
    return Request(profile=replace(profile, artifacts=(local,)), settings=Settings(n_parallel=1))


def _run(request: Request, machine: Inventory, report: Callable[[str], None], max_s: float = 120.0) -> Outcome:
    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")  # shown where the test fails
        report(line)

    with open_instance("calibrate") as instance:
        outcome = asyncio.run(
            calibrate(
                request,
                machine,
                open_engine=engine_opener(instance),
                host_bandwidth_bytes_per_s=10e9,
                report=say,
                workload=_WORKLOAD,
                max_s=max_s,
            )
        )
        assert instance.read_guards() == ()
    assert isinstance(outcome, Outcome)
    return outcome


def test_the_fastest_point_is_found_and_planned_next_time(state_dir: Path, request_for: Request) -> None:
    """Threads apart for prompts and answers, flash attention kept, the slower engine second; the next plan has it."""
    del state_dir
    slow = _fake("slow", {n: [p / 2, g / 2] for n, (p, g) in _RATES.items()})
    fast = _fake("fast", _RATES)
    machine = _machine(slow, fast)
    lines: list[str] = []
    outcome = _run(request_for, machine, lines.append)
    best = outcome.tunings[0]
    assert (best.build, best.n_threads, best.n_threads_batch, best.flash_attn) == ("fast", 2, 3, True)
    assert (best.generation_tps, best.prompt_tps) == pytest.approx((50, 240))
    assert best.request_s < outcome.default.request_s
    assert outcome.complete
    assert any("flash attention off" in line for line in lines)
    write_calibration(outcome.calibration)
    known, warning = read_calibration(machine_id(machine))
    assert (known, warning) == (outcome.calibration, None)
    plan = decide(request_for, machine, calibration=known)
    assert isinstance(plan, Plan)
    assert plan.install == fast
    assert (plan.n_threads, plan.n_threads_batch) == (2, 3)


def test_an_engine_that_dies_is_left_out(state_dir: Path, request_for: Request) -> None:
    """A build that crashes at its default is reported, measured no further, and not preferred."""
    del state_dir
    broken = _fake("broken", _RATES, "--exit-after-load", "1")
    machine = _machine(broken, _fake("good", _RATES))
    lines: list[str] = []
    outcome = _run(request_for, machine, lines.append)
    assert {tuning.build for tuning in outcome.tunings} == {"good"}
    assert sum("the engine ended" in line for line in lines) == 1
    plan = decide(request_for, machine, calibration=outcome.calibration)
    assert isinstance(plan, Plan)
    assert plan.install is not None
    assert plan.install.build == "good"


def test_no_engine_that_works_is_a_fault(state_dir: Path, request_for: Request) -> None:
    """When every engine dies, the first one's fault is raised; when none is there, that is."""
    del state_dir
    with pytest.raises(EngineFailedError, match="the engine ended"):
        _run(request_for, _machine(_fake("broken", _RATES, "--exit-after-load", "1")), lambda _: None)
    with pytest.raises(EngineMissingError):
        _run(request_for, _machine(), lambda _: None)


def test_the_time_is_bounded(state_dir: Path, request_for: Request, tmp_path: Path) -> None:
    """With no time at all one point is measured, and the result says that it is incomplete."""
    del state_dir
    journal = tmp_path / "starts"
    begin_s = time.monotonic()
    outcome = _run(request_for, _machine(_fake("b", _RATES, "--journal", str(journal))), lambda _: None, max_s=0.1)
    assert time.monotonic() - begin_s < 20
    assert not outcome.complete
    assert journal.read_text().splitlines() == ["3"]


def test_one_late_start_is_no_reason_to_leave_a_point_out(
    state_dir: Path, request_for: Request, tmp_path: Path
) -> None:
    """An engine whose start took many times the quickest run, as on a busy machine, is measured and found to be fastest."""
    del state_dir
    late = tmp_path / "late"
    late.touch()
    slow = _fake("slow", {n: [p / 2, g / 2] for n, (p, g) in _RATES.items()})
    fast = _fake("fast", _RATES, "--slow-file", str(late))
    fixed = replace(request_for, settings=replace(request_for.settings, n_threads=2, n_batch=512, n_ubatch=512))
    outcome = _run(fixed, _machine(slow, fast), lambda _: None)
    assert not late.exists()
    assert outcome.tunings[0].build == "fast"
    assert (outcome.left_out, outcome.complete) == ((), True)


def test_what_the_end_of_the_time_cut_off_is_not_called_complete(state_dir: Path, request_for: Request) -> None:
    """An engine still loading when the time is over has not failed, but more time is offered: it might have won."""
    del state_dir
    late = _fake("late", _RATES, "--never-ready")
    outcome = _run(request_for, _machine(_fake("good", _RATES), late), lambda _: None, max_s=5.0)
    assert {tuning.build for tuning in outcome.tunings} == {"good"}
    assert (outcome.left_out, outcome.complete) == ((), False)


@pytest.mark.parametrize("taken", ["before the start", "before the engine binds it"])
def test_a_port_that_another_process_took_is_no_reason_to_leave_a_point_out(
    taken: str, state_dir: Path, request_for: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is tried on another port, whoever found the first one taken: the check before it, or the engine."""
    del state_dir
    crash, options = tmp_path / "crash", list[str]()
    with socket.create_server(("127.0.0.1", 0)) as other:
        if taken == "before the start":
            ports = iter([other.getsockname()[1]])
            monkeypatch.setattr(
                checks, "free_port", lambda host, real=checks.free_port: next(ports, None) or real(host)
            )
        else:
            crash.touch()
            words = "srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080"
            options += ["--crash-file", str(crash), "--say", words]
        outcome = _run(request_for, _machine(_fake("good", _RATES, *options)), lambda _: None, max_s=2.0)
    assert not crash.exists()
    assert {tuning.build for tuning in outcome.tunings} == {"good"}
    assert outcome.left_out == ()


def test_ports_that_are_always_taken_are_a_fault(
    state_dir: Path, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ports are tried; then the point is left out, and where nothing else could be measured, that is the fault."""
    del state_dir
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = iter([other.getsockname()[1]] * 4)
        monkeypatch.setattr(checks, "free_port", lambda _: next(ports))
        with pytest.raises(PortInUseError, match="is taken"):
            _run(request_for, _machine(_fake("good", _RATES)), lambda _: None)
    assert len(list(ports)) == 1


def test_an_engine_that_hangs_is_given_up(state_dir: Path, request_for: Request) -> None:
    """Once there is a yardstick, a run that takes several times as long ends, and the rest goes on."""
    del state_dir
    hanging = _fake("hanging", _RATES, "--canary-hangs")
    lines: list[str] = []
    outcome = _run(request_for, _machine(_fake("good", _RATES), hanging), lines.append)
    assert {tuning.build for tuning in outcome.tunings} == {"good"}
    assert any("hanging" in line and "given up" in line for line in lines), lines
    assert [line.split(",")[0] for line in outcome.left_out] == ["llama-server hanging"]


def test_on_a_gpu_threads_are_left_out_and_its_own_efficiency_is_learned(
    state_dir: Path, request_for: Request, tmp_path: Path
) -> None:
    """With every layer on the device, one thread count is tried, and what is learned is the device's."""
    del state_dir
    journal = tmp_path / "starts"
    seen = EngineDevice(name="CUDA0", description="NVIDIA GeForce RTX 4090", device="gpu0")
    said = ("--say", "load_tensors: offloaded 19/19 layers to GPU")
    engine = replace(_fake("gpu", _RATES, "--journal", str(journal), *said), devices=(seen,))
    gpu = replace(load_inventory("rtx4090").devices[0], name="gpu0")
    machine = replace(_machine(engine), devices=(gpu,))
    outcome = _run(request_for, machine, lambda _: None)
    assert set(journal.read_text().split()) == {"3"}
    assert outcome.tunings[0].n_gpu_layers == 19
    rates = outcome.calibration.rates_of("gpu0")
    assert rates is not None
    assert rates.bandwidth_bytes_per_s == gpu.bandwidth_bytes_per_s
    assert outcome.calibration.rates_of("host") is None
    plan = decide(request_for, machine, calibration=outcome.calibration)
    assert isinstance(plan, Plan)
    assert plan.speed is not None
    assert plan.speed.basis is Provenance.MEASURED


def test_what_the_user_fixed_is_not_varied(state_dir: Path, request_for: Request, tmp_path: Path) -> None:
    """With threads fixed, no other count is tried."""
    del state_dir
    journal = tmp_path / "starts"
    fixed = replace(request_for, settings=replace(request_for.settings, n_threads=1))
    outcome = _run(fixed, _machine(_fake("b", _RATES, "--journal", str(journal))), lambda _: None)
    assert outcome.tunings[0].n_threads == 1
    assert set(journal.read_text().split()) == {"1"}


def test_a_corrupt_calibration_is_set_aside_with_a_warning(state_dir: Path) -> None:
    """A file that cannot be understood warns once and is never used; that of a newer launcher stays, and warns each time."""
    write_calibration(Calibration(machine="m"))
    path = state_dir / "calibrations" / "m.json"
    assert path.stat().st_mode & 0o077 == 0
    for content in (b"{", b'{"machine":"other"}', b'{"machine":"m","x":1}'):
        path.write_bytes(content)
        known, warning = read_calibration("m")
        assert known is None
        assert warning is not None
        assert "set aside" in warning
        assert read_calibration("m") == (None, None)
    path.write_bytes(b'{"machine":"m","schema_version":99}')
    for _ in range(2):
        known, warning = read_calibration("m")
        assert known is None
        assert "newer launcher" in str(warning)


def test_bandwidth_is_that_of_a_memory() -> None:
    """Between what a slow bus and the fastest servers deliver; two threads on small blocks also work."""
    assert 1e8 < measure_bandwidth(2, n_bytes=64 * MIB, duration_s=0.2) < 5e12


@pytest.mark.engine
@pytest.mark.heavy
def test_a_real_engine_is_calibrated(state_dir: Path, real_model: Path, llama_server: EngineInstall) -> None:
    """A short run on the real model: rates are measured, the host's efficiency is learned, nothing is left running."""
    del state_dir, real_model
    settings = Settings(n_parallel=1, n_ctx_per_request=1024)
    request = Request(profile=keep_local(load_profile("gemma3-270m"), settings), settings=settings)
    machine = replace(probe_inventory(), engines=(llama_server,), devices=())
    outcome = _run(request, machine, lambda _: None, max_s=20.0)
    best: Tuning = outcome.tunings[0]
    assert best.generation_tps > 0.1
    assert best.n_prompt > _WORKLOAD.n_prompt / 2
    rates = outcome.calibration.rates_of("host")
    assert rates is not None
    assert 0 < rates.efficiency <= 1
    plan = decide(request, machine, calibration=outcome.calibration)
    assert isinstance(plan, Plan)
    assert plan.n_threads == best.n_threads <= (os.cpu_count() or 1)
