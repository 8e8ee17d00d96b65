"""The memories of a served plan, measured: real processes, a real control group, a stand-in for NVIDIA's driver."""

import os
import resource
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from launcher.domain import HOST_MEMORY, Device, DeviceKind, Engine, EngineInstall, Footprint, HostUse, MemoryUse, Plan
from launcher.supervisor.pressure import Probe, list_memory, sampling
from launcher.supervisor.processes import survey
from launcher.supervisor.strain import Sample, StrainPolicy, Watched, assess
from launcher.units import GIB, MIB
from tests.fakes.harness import poll
from tests.fakes.memory_group import inside, memory_group
from tests.fakes.nvml import StandIn, compile_stub
from tests.fakes.plans import plan_for

HOG = """
import sys, time
block = bytearray(int(sys.argv[1]))
block[::4096] = b"x" * len(block[::4096])
print("holding", flush=True)
sys.stdin.read()
"""


def hog(n_bytes: int, folder: Path | None = None) -> "subprocess.Popen[str]":
    """A process that holds so many bytes until its input ends; returns once it does."""
    argv = [sys.executable, "-S", "-c", HOG, str(n_bytes)]
    argv = argv if folder is None else inside(folder, argv)
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    """Let it go."""
    process.kill()
    process.communicate()


def plan_on(*names: str, install: EngineInstall | None = None) -> Plan:
    """A plan on devices of these engine names, ours numbered after them."""
    devices = tuple(MemoryUse(name=f"gpu{idx}") for idx in range(len(names)))
    footprint = Footprint(devices=devices, host=HostUse())
    return replace(plan_for(), footprint=footprint, engine_devices=names, install=install)


def test_the_host_and_the_engines_share_of_it() -> None:
    """What is available, and what the processes below a given one hold: here a child that holds 64 MiB."""
    probe = Probe(None)
    child = hog(64 * MIB)
    try:
        sample = probe.look(os.getpid())
        (host,) = sample.gauges
        assert host.name == HOST_MEMORY
        assert 0 < host.free_bytes < host.total_bytes
        assert child.pid in sample.own_pids
        assert (host.own_bytes or 0) >= 64 * MIB
        assert any(process.pid == child.pid for process in survey(None, n_largest=100_000).largest)
    finally:
        end(child)


def test_a_group_that_fills_is_strained_and_the_hog_is_named(tmp_path: Path) -> None:
    """A real control group of version 1, a real process in it that takes almost all: before the kernel kills anybody."""
    with memory_group(512 * MIB) as folder:
        engine = hog(100 * MIB, folder)
        intruder = None
        try:
            root = rooted(tmp_path, folder, engine.pid)
            probe = Probe(None, root=root)
            baseline = probe.look(engine.pid)
            (host,) = baseline.gauges
            assert host.limit == "the control group's memory"
            assert host.total_bytes == 512 * MIB
            assert 300 * MIB < host.free_bytes < 420 * MIB
            intruder = hog(250 * MIB, folder)
            now = Probe(None, root=root).look(engine.pid)
            _, outlook = assess(Watched(), now, baseline=baseline, policy=StrainPolicy(n_low=1))
            (strain,) = outlook.strains
            assert strain.memory == HOST_MEMORY
            assert 200 * MIB < strain.taken_bytes < 320 * MIB
            assert strain.shortfall_bytes > 300 * MIB
            assert engine.poll() is None  # the kernel had no reason yet
            big = next(process for process in survey(None, n_largest=100_000).largest if process.pid == intruder.pid)
            assert (big.used_bytes or 0) >= 250 * MIB
        finally:
            for process in (engine, intruder):
                if process is not None:
                    end(process)


def test_only_who_is_in_a_full_group_is_named(tmp_path: Path) -> None:
    """A real group of version 1 with a group below it: who is outside took none of its memory, however much it holds."""
    with memory_group(512 * MIB) as folder:
        engine, part, others = hog(50 * MIB, folder), folder / "part", []
        part.mkdir()
        try:
            probe = Probe(None, root=rooted(tmp_path, folder, engine.pid))
            baseline = probe.look(engine.pid)
            others = [hog(600 * MIB), hog(300 * MIB, part)]
            now = probe.look(engine.pid)  # 300 MiB less than before: all processes are read again at once
            assert now.gauges[0].sharers == frozenset({engine.pid, others[1].pid})
            _, outlook = assess(Watched(), now, baseline=baseline, policy=StrainPolicy(n_low=1))
            (strain,) = outlook.strains
            assert {taker.pid for taker in strain.takers} == {others[1].pid}
        finally:
            for process in (engine, *others):
                end(process)
            part.rmdir()


@pytest.mark.parametrize("limit", ["memory.max", "memory.high"])
def test_who_shares_a_group_of_version_2(tmp_path: Path, limit: str) -> None:
    """A recorded tree around a real process: those of the group that binds, a parent, and of all groups below it."""
    me = tmp_path / "proc/self"
    me.mkdir(parents=True)
    (tmp_path / "proc/meminfo").symlink_to("/proc/meminfo")
    (me / "cgroup").write_text("0::/pod/me\n")
    (me / "mountinfo").write_text("31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    pod = tmp_path / "sys/fs/cgroup/pod"
    (pod / "sibling").mkdir(parents=True)
    (pod / "me").mkdir()
    (pod / limit).write_text(f"{MIB}\n")
    (pod / "memory.current").write_text(f"{MIB - 4096}\n")
    (pod / "cgroup.procs").write_text("")
    (pod / "me/cgroup.procs").write_text(f"{os.getpid()}\n0\n")
    (pod / "sibling/cgroup.procs").write_text("4194305\n")
    (gauge,) = Probe(None, root=tmp_path).look().gauges
    assert gauge.limit == "the control group's memory"
    assert gauge.sharers == frozenset({os.getpid(), 4194305})
    (pod / limit).write_text("max\n")
    (gauge,) = Probe(None, root=tmp_path).look().gauges
    assert (gauge.limit, gauge.sharers) == ("host memory", None)


def rooted(tmp_path: Path, folder: Path, pid: int) -> Path:
    """A root under which the group of ``pid`` is this process's own, by links to the real files."""
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/self").symlink_to(f"/proc/{pid}")
    for top in ("sys", "proc/pressure"):
        (root / top).symlink_to(f"/{top}")
    assert folder.name in Path(f"/proc/{pid}/cgroup").read_text()
    return root


WATCH_GPU = """
import sys
import msgspec
from launcher.domain import Plan
from launcher.inventory.nvidia_live import open_nvidia
from launcher.supervisor.pressure import Probe
plan = msgspec.json.decode(sys.argv[1], type=Plan)
with open_nvidia() as nvidia:
    probe = Probe(plan, (), nvidia)
    for line in sys.stdin:
        print(msgspec.json.encode(probe.look(int(line))).decode(), flush=True)
"""


def test_another_program_that_takes_the_gpu_is_named(tmp_path: Path) -> None:
    """Through the real pynvml: the engine is a child of the guard, the intruder is not; the strain names the intruder."""
    stand_in = StandIn(compile_stub(tmp_path), tmp_path / "machine")
    engine = hog(MIB)
    gpu: dict[str, object] = {"count": 1, "0.total": 24 * GIB, f"process.{engine.pid}": "/opt/llama-server"}
    gpu["process.99"] = "/usr/bin/blender"

    def state(free_mib: int, *more: str) -> None:
        compute = " ".join((f"{engine.pid}:{20 * GIB}", *more))
        stand_in.answer({**gpu, "0.free": free_mib * MIB, "0.compute": compute})

    state(3000)
    text = msgspec.json.encode(plan_on("CUDA0")).decode()
    with subprocess.Popen(
        [sys.executable, "-c", WATCH_GPU, text],
        env=stand_in.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None

        def look() -> Sample:
            assert watcher.stdin is not None
            assert watcher.stdout is not None
            watcher.stdin.write(f"{os.getpid()}\n")
            watcher.stdin.flush()
            return msgspec.json.decode(watcher.stdout.readline(), type=Sample)

        try:
            baseline = look()
            state(40, f"99:{2960 * MIB}")
            now = look()
            watcher.stdin.close()
        finally:
            end(engine)
    assert [gauge.name for gauge in now.gauges] == ["gpu0", HOST_MEMORY]
    assert now.gauges[0].own_bytes == 20 * GIB
    assert now.loads[0].name == "gpu0"
    _, outlook = assess(Watched(), now, baseline=baseline, policy=StrainPolicy())
    (strain,) = outlook.strains
    assert [(taker.name, taker.pid, taker.n_bytes) for taker in strain.takers] == [("blender", 99, 2960 * MIB)]
    assert strain.taken_bytes == 2960 * MIB


def test_a_device_that_only_an_engine_lists(tmp_path: Path) -> None:
    """It is asked, seldom: in between the device is in no sample, which is not the same as being free."""
    program = tmp_path / "llama-server"
    count = tmp_path / "count"
    program.write_text(
        f"#!/bin/sh\necho x >> {count}\necho 'Available devices:'\necho '  RPC0: 10.0.0.7:50052 (8000 MiB, 1234 MiB free)'\n"
    )
    program.chmod(0o755)
    install = EngineInstall(
        engine=Engine.LLAMA_SERVER, argv=(str(program),), flags=frozenset({"--list-devices"})
    )  # fmt: skip
    probe = Probe(plan_on("RPC0", install=install))
    device, _ = probe.look().gauges
    assert (device.name, device.total_bytes, device.free_bytes) == ("gpu0", 8000 * MIB, 1234 * MIB)
    assert [gauge.name for gauge in probe.look().gauges] == [HOST_MEMORY]
    urgent = Probe(plan_on("RPC0", install=install)).look(is_urgent=True)
    assert [gauge.name for gauge in urgent.gauges] == [HOST_MEMORY]
    assert count.read_text() == "x\n"
    assert list_memory(replace(install, flags=frozenset())) == {}


def test_an_amd_gpu_is_read_from_sysfs(tmp_path: Path) -> None:
    """A file each, matched by the bus address; nobody holds names."""
    device = tmp_path / "sys/bus/pci/0000:03:00.0"
    device.mkdir(parents=True)
    for name, text in {"vendor": "0x1002", "mem_info_vram_total": 16 * GIB, "mem_info_vram_used": 15 * GIB}.items():
        (device / name).write_text(f"{text}\n")
    card = tmp_path / "sys/class/drm/card0"
    card.mkdir(parents=True)
    (card / "device").symlink_to(device)
    known = Device(name="gpu0", kind=DeviceKind.ROCM, description="x", total_bytes=16 * GIB, bus_id="0000:03:00.0")
    gauge, _ = Probe(plan_on("ROCm0"), (known,), root=tmp_path).look().gauges
    assert (gauge.name, gauge.free_bytes, gauge.own_bytes) == ("gpu0", GIB, None)


def test_a_sampler_without_a_driver_does_not_pay_for_one() -> None:
    """NVML's bindings are imported where there is a driver, psutil where the kernel tells less than it should."""
    code = "import sys; import launcher.supervisor.pressure; print(*{'psutil', 'pynvml'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_sampling_goes_on_until_the_block_ends() -> None:
    """The first sample comes at once, and none long after the end; the engine's number is asked for each time."""
    samples: list[Sample] = []
    asked: list[None] = []
    lost: list[Exception] = []

    def top() -> int:
        asked.append(None)
        return os.getpid()

    with sampling(None, top=top, on_sample=samples.append, on_lost=lost.append, period_s=0.01):
        assert poll(lambda: len(samples) >= 3)
    assert lost == []
    n_threads = sum(thread.name == "pressure" for thread in threading.enumerate())
    assert n_threads == 0
    assert len(asked) >= len(samples)
    assert all(a.at_s < b.at_s for a, b in pairwise(samples))


def test_a_look_is_made_at_once_where_one_is_asked_for() -> None:
    """It is begun after the asking, also where another was under way then; who asks does not wait for it."""
    samples: list[Sample] = []
    is_held, may_go = threading.Event(), threading.Event()

    def top() -> None:
        is_held.set()
        may_go.wait(60)

    def fail(error: Exception) -> None:
        pytest.fail(str(error))

    with sampling(None, top=top, on_sample=samples.append, on_lost=fail, period_s=3600) as ring:
        assert is_held.wait(60)
        ring()
        asked_s = time.monotonic()
        assert samples == []
        may_go.set()
        assert poll(lambda: len(samples) == 2)
        assert samples[1].at_s >= asked_s
        ring()
        assert poll(lambda: len(samples) == 3)


def test_a_look_that_fails_is_heard_of() -> None:
    """Whatever it is: an engine that nobody watches is not to go unnoticed."""
    lost: list[Exception] = []

    def fail() -> int:
        raise ProcessLookupError

    def ignore(_: Any) -> None:
        pytest.fail("there is no sample")

    with sampling(None, top=fail, on_sample=ignore, on_lost=lost.append, period_s=0.01):
        assert poll(lambda: lost)
    assert [type(error) for error in lost] == [ProcessLookupError]


@pytest.mark.heavy
def test_a_sampler_costs_less_than_one_percent_of_a_core() -> None:
    """Processor time of this process over ten looks a second apart, less what a second of waiting costs.

    Where the machine is busy a look takes longer by the clock, hardly more processor time.
    """
    looked = threading.Event()
    n_seen = 0

    def count(_: Sample) -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen == 12:
            looked.set()

    lost: list[Exception] = []
    before, begin_s = _cpu_s(), time.monotonic()
    with sampling(None, top=os.getpid, on_sample=count, on_lost=lost.append):
        assert looked.wait(60)
    share = (_cpu_s() - before) / (time.monotonic() - begin_s)
    assert lost == []
    assert share < 0.01, share


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def test_a_survey_finds_what_is_below() -> None:
    """Children and their children, never the process itself; names as they can be shown."""
    child = subprocess.Popen(["/bin/sh", "-c", "sleep 60 & wait"], start_new_session=True)
    try:
        assert poll(lambda: len(survey(child.pid).below) == 1)
        below = survey(os.getpid()).below
        assert child.pid in below
        assert survey(child.pid).below < below
        assert os.getpid() not in below
        assert survey(None).below == frozenset()
    finally:
        os.killpg(child.pid, 9)
        child.wait()
