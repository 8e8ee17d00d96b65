"""Workers of llama.cpp's RPC as devices to plan for: their place, their network, what they do not change."""

from msgspec.structs import replace

from launcher.domain import (
    Device,
    DeviceKind,
    Engine,
    EngineDevice,
    EngineInstall,
    Host,
    Inventory,
    Plan,
    Provenance,
    Refusal,
    Request,
    Settings,
)
from launcher.inventory import load_inventory
from launcher.planner.advice import plan
from launcher.planner.calibration import machine_id
from launcher.planner.fit import decide
from launcher.planner.search import Alternatives, smaller_among
from launcher.planner.speed import NETWORK_ROUND_TRIP_S
from launcher.planner.target import build_target
from launcher.profiles import load_profile
from launcher.units import GIB

_WORKERS = ("10.0.0.1:50052", "10.0.0.2:50052")
_HOST = Host(total_bytes=64 * GIB, available_bytes=60 * GIB, n_cpu=8)


def _device(name: str, kind: DeviceKind, free_bytes: int) -> Device:
    return Device(name=name, kind=kind, description=name, total_bytes=24 * GIB, free_bytes=free_bytes)


def _machine(*free_bytes: int, gpu_bytes: int | None = None) -> Inventory:
    """Return a machine with as many workers as free bytes are given, and a GPU of its own if it is to have one."""
    remote = tuple(_device(name, DeviceKind.RPC, n) for name, n in zip(_WORKERS, free_bytes, strict=False))
    own = () if gpu_bytes is None else (replace(_device("gpu0", DeviceKind.CUDA, gpu_bytes), total_bytes=8 * GIB),)
    listed = [EngineDevice(name="CUDA0", description="gpu0", device="gpu0") for _ in own]
    listed += [
        EngineDevice(name=f"RPC{idx}", description=device.name, device=device.name) for idx, device in enumerate(remote)
    ]
    install = EngineInstall(
        engine=Engine.LLAMA_SERVER,
        argv=("/opt/llama-server",),
        devices=tuple(listed),
        workers=tuple(device.name for device in remote),
    )
    return Inventory(name="m", host=_HOST, devices=(*own, *remote), engines=(install,))


def _plan(machine: Inventory, profile: str = "gemma2-27b", settings: Settings | None = None) -> Plan:
    outcome = decide(Request(profile=load_profile(profile), settings=settings or Settings()), machine)
    assert isinstance(outcome, Plan)
    return outcome


def test_a_model_is_split_over_workers_within_their_budgets() -> None:
    """What no single one holds both do, each with its margin; the names are the engine's own."""
    plan = _plan(_machine(12 * GIB, 14 * GIB))
    assert plan.is_whole
    assert plan.workers == _WORKERS
    assert set(plan.engine_devices) == {"RPC0", "RPC1"}
    budgets = {budget.name: budget.budget_bytes for budget in plan.budgets}
    assert all(0 < use.total_bytes <= budgets[use.name] for use in plan.footprint.devices)


def test_the_machines_own_devices_come_before_workers() -> None:
    """Also a smaller one: a network lies before the others."""
    machine = _machine(23 * GIB, gpu_bytes=7 * GIB)
    target = build_target(Engine.LLAMA_SERVER, (machine.engines or ())[0], machine)
    assert target.engine_devices == ("CUDA0", "RPC0")
    alone = _plan(machine, "gemma3-270m")
    assert (alone.engine_devices, alone.workers) == (("CUDA0",), ())


def test_the_network_costs_time_and_is_said_to_be_assumed() -> None:
    """The same device behind a network is slower by the round trip at least, each worker adds its own."""
    remote = _machine(23 * GIB)
    device = replace(remote.devices[0], kind=DeviceKind.VULKAN)
    near, far = _plan(replace(remote, devices=(device,))), _plan(remote)
    assert near.speed is not None
    assert far.speed is not None
    assert near.quantization == far.quantization
    assert 1 / far.speed.generation_tps - 1 / near.speed.generation_tps > NETWORK_ROUND_TRIP_S
    assert far.speed.basis is Provenance.ASSUMED
    told = next(basis for basis in far.basis if basis.figure == "speed")
    assert told.provenance is Provenance.ASSUMED
    assert "118 MB/s and 0.5 ms a token of network" in told.text


def test_workers_that_would_hold_nothing_are_left_out() -> None:
    """An engine that is started with a worker ends with it."""
    plan = _plan(_machine(GIB // 2, GIB // 2), "gemma3-270m")
    assert (plan.n_gpu_layers, plan.engine_devices, plan.workers) == (0, (), ())
    bare = replace(_machine(), devices=())
    assert plan.footprint == _plan(bare, "gemma3-270m").footprint


def test_a_calibration_stays_valid_with_workers_and_without() -> None:
    """They are of other machines, and come and go."""
    assert machine_id(_machine(GIB)) == machine_id(_machine()) == machine_id(_machine(GIB, 2 * GIB))
    assert machine_id(_machine(GIB, gpu_bytes=GIB)) != machine_id(_machine(GIB))


def test_advice_for_another_machine_leaves_the_workers_out() -> None:
    """They are of this one; advice for it names them again."""
    machine = _machine(GIB)
    argv = ("plan", "--rpc", _WORKERS[0])
    others = Alternatives(
        smaller=smaller_among([load_profile("gemma2-9b")]), machines=lambda: (load_inventory("8xh100"),)
    )
    request = Request(profile=load_profile("llama3.1-405b"))
    refusal = plan(request, replace(machine, host=_HOST), argv=argv, alternatives=others)
    assert isinstance(refusal, Refusal)
    commands = [item.argv for item in refusal.advice]
    elsewhere = [command for command in commands if "--inventory" in command]
    assert elsewhere
    assert not any("--rpc" in command for command in elsewhere)
    assert all("--rpc" in command for command in commands if command not in elsewhere)
