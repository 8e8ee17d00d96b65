"""Facts to findings: each kind of finding from the facts that lead to it, recorded or made up, and laws over all."""

from typing import Any

import click
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.cli import app
from launcher.doctor.facts import (
    Clock,
    DisplayCard,
    EngineBuild,
    Facts,
    Kernel,
    Leftover,
    Limits,
    Model,
    Network,
    Port,
    Proxy,
    Silent,
    State,
    StateFolder,
    Systemd,
    Told,
    Unit,
    User,
    VulkanDriver,
    WeightsFile,
)
from launcher.doctor.judge import judge
from launcher.domain import (
    Address,
    Advice,
    DeviceProcess,
    Host,
    InstanceRecord,
    InstanceView,
    Inventory,
    ProcessId,
    Refusal,
    RefusalCode,
)
from launcher.domain import State as Phase
from launcher.findings import Finding, FindingCode, Severity
from launcher.units import GIB, MIB
from tests.doctor.conftest import CARD, CPU_SERVER, GPU, HEALTHY, NVIDIA, SERVER, disk, node
from tests.fakes.plans import plan_for

AMD_CARD = replace(CARD, vendor="0x1002", device="0x744c", driver="amdgpu")
HOST = HEALTHY.inventory.host
FOLDER = StateFolder(path="/s", owner_uid=1000, mode=0o700)
SUPERVISOR = ProcessId(pid=77, start_time=1, boot_id="b")
MODEL = Model(name="gemma2-27b", asked="gemma2-27b", source="/p/gemma2-27b.toml", is_local=True, outcome=plan_for())
UNIT = Unit(name="launch@x.service", scope="user", active="active", sub="running", enabled="enabled", path="/u/x")


def drivers(**fields: object) -> Facts:
    """The healthy machine with other drivers."""
    return replace(HEALTHY, drivers=replace(HEALTHY.drivers, **fields))


def host(**fields: object) -> Facts:
    """The healthy machine with another host."""
    return replace(HEALTHY, inventory=replace(HEALTHY.inventory, host=replace(HOST, **fields)))


def inventory(**fields: object) -> Facts:
    """The healthy machine with other devices or engines."""
    return replace(HEALTHY, inventory=replace(HEALTHY.inventory, **fields))


def state(**fields: object) -> Facts:
    """The healthy machine with another state directory."""
    return replace(HEALTHY, state=State(**{"folder": FOLDER, **fields}))  # type: ignore[arg-type]  # as each case says


def model(**fields: object) -> Facts:
    """The healthy machine, asked about a model."""
    return replace(HEALTHY, model=replace(MODEL, **fields))


def unit(lingers: bool | None = True, **fields: object) -> Facts:  # noqa: FBT001, FBT002 - a fact, not a switch
    """The healthy machine with one unit."""
    return replace(HEALTHY, systemd=Systemd(units=(replace(UNIT, **fields),), lingers=lingers))


def view(phase: Phase, *, recorded: Phase | None = None) -> InstanceView:
    """An instance whose supervisor does not run."""
    record = InstanceRecord(
        name="x", state=recorded or phase, supervisor=SUPERVISOR, address=Address(), started_at=1.0, changed_at=2.0
    )
    return InstanceView(
        name="x",
        state=phase,
        path="/s/instances/x",
        log_path="",
        supervisor_alive=False,
        reason="it broke",
        record=record,
    )


CASES: list[tuple[str, Facts, FindingCode, Severity, str]] = [
    ("two versions", drivers(nvidia=replace(NVIDIA, library_version="550.90.07")), FindingCode.NVIDIA_MISMATCH, Severity.FAULT, "550.90.07"),
    ("NVML says 18", drivers(nvidia=replace(NVIDIA, error_code=18, error="version mismatch")), FindingCode.NVIDIA_MISMATCH, Severity.FAULT, "code 18"),
    ("nouveau", drivers(cards=(replace(CARD, driver="nouveau"),), nvidia=None), FindingCode.NVIDIA_NOT_LOADED, Severity.FAULT, "kernel driver nouveau"),
    ("a container", drivers(nvidia=None, container="/.dockerenv", nodes=()), FindingCode.NVIDIA_NOT_LOADED, Severity.FAULT, "/.dockerenv"),
    ("NVML says 999", drivers(nvidia=replace(NVIDIA, error_code=999, error="Unknown Error")), FindingCode.NVIDIA_UNUSABLE, Severity.FAULT, "Unknown Error"),
    ("a lost GPU", replace(HEALTHY, nvidia_notes=("NVIDIA's GPU 1 is out of use: GPU is lost",)), FindingCode.GPU_OUT_OF_USE, Severity.FAULT, "GPU is lost"),
    ("a GPU without memory of its own", replace(HEALTHY, nvidia_notes=("NVIDIA's GPU 0 does not tell its memory; only an engine can",)), FindingCode.GPU_MEMORY_UNTOLD, Severity.NOTE, "only an engine can"),
    ("a module without its library", drivers(nvidia=replace(NVIDIA, error_code=12, error="NVML Shared Library Not Found")), FindingCode.NVIDIA_UNUSABLE, Severity.FAULT, "code 12"),
    ("a container on a machine with its driver", drivers(nvidia=replace(NVIDIA, error_code=12, error="NVML Shared Library Not Found"), container="/.dockerenv", nodes=()), FindingCode.NVIDIA_NOT_LOADED, Severity.FAULT, "/.dockerenv"),
    ("few lanes", replace(HEALTHY, nvidia_notes=("gpu1 uses 4 of the 16 PCI Express lanes it could",)), FindingCode.GPU_LINK, Severity.NOTE, "4 of the 16"),
    ("CUDA 13 on 12.4", replace(HEALTHY, builds=(replace(HEALTHY.builds[0], cuda=(13, None)),)), FindingCode.CUDA_TOO_OLD, Severity.FAULT, "12.4"),
    ("CUDA 12.8 on 12.4", replace(HEALTHY, builds=(replace(HEALTHY.builds[0], cuda=(12, 8)),)), FindingCode.CUDA_OLDER, Severity.NOTE, "12.8"),
    ("no amdgpu", drivers(cards=(replace(AMD_CARD, driver=None),)), FindingCode.AMD_NOT_LOADED, Severity.FAULT, "0x1002:0x744c"),
    ("a card of the kernel's older driver", drivers(cards=(replace(AMD_CARD, driver="radeon"),)), FindingCode.AMD_NOT_LOADED, Severity.NOTE, "kernel driver radeon"),
    ("no kfd", replace(drivers(cards=(AMD_CARD,)), builds=(EngineBuild(argv=SERVER.argv, backends=("hip",)),)), FindingCode.KFD_MISSING, Severity.FAULT, "built with hip"),
    ("no ICD", replace(HEALTHY, builds=(EngineBuild(argv=SERVER.argv, backends=("vulkan",)),)), FindingCode.VULKAN_NO_DRIVER, Severity.WARNING, "no manifest"),
    ("a dead ICD", replace(drivers(vulkan=(VulkanDriver(manifest="/i/x.json", library="libx.so", is_there=False),)), builds=(EngineBuild(argv=SERVER.argv, backends=("vulkan",)),)), FindingCode.VULKAN_BROKEN_DRIVER, Severity.WARNING, "libx.so"),
    ("lavapipe", replace(HEALTHY, device_notes=("gpu1 is a software renderer that runs on the processor, no GPU",)), FindingCode.SOFTWARE_RENDERER, Severity.NOTE, "software renderer"),
    ("no engine", inventory(engines=()), FindingCode.NO_ENGINE_FOUND, Severity.FAULT, "PATH"),
    ("an engine that hangs", replace(HEALTHY, engine_notes=("`/x` is not used: it did not answer within 5 s",)), FindingCode.ENGINE_UNUSABLE, Severity.FAULT, "did not answer within 5 s"),
    ("a broken engine", replace(HEALTHY, engine_notes=("`/x` is not used: it ended with exit code 1",)), FindingCode.ENGINE_UNUSABLE, Severity.WARNING, "exit code 1"),
    ("CPU only on a GPU", replace(inventory(engines=(CPU_SERVER,)), builds=()), FindingCode.ENGINE_WITHOUT_GPU, Severity.FAULT, "devices: none"),
    ("a back end without its library", replace(inventory(engines=(CPU_SERVER,)), builds=(EngineBuild(argv=CPU_SERVER.argv, backends=("cuda",), missing=("libcudart.so.12 of libggml-cuda.so",)),)), FindingCode.BACKEND_NOT_LOADED, Severity.FAULT, "libcudart.so.12"),
    ("two engines", inventory(engines=(CPU_SERVER, SERVER)), FindingCode.SEVERAL_ENGINES, Severity.NOTE, "/opt/cpu/llama-server"),
    ("little memory", replace(host(available_bytes=3 * GIB), holders=(DeviceProcess(pid=9, name="chrome", used_bytes=40 * GIB),)), FindingCode.MEMORY_LOW, Severity.WARNING, "9 (chrome)"),
    ("programs", replace(HEALTHY, holders=(DeviceProcess(pid=9, name="chrome", used_bytes=4 * GIB),)), FindingCode.MEMORY_USERS, Severity.NOTE, "holds 4.0 GiB"),
    ("a GPU in use", inventory(devices=(replace(GPU, free_bytes=4 * GIB, processes=(DeviceProcess(pid=8, name="Xorg", used_bytes=20 * GIB),)),)), FindingCode.GPU_MEMORY_USERS, Severity.WARNING, "8 (Xorg)"),
    ("a GPU in use by nobody", inventory(devices=(replace(GPU, free_bytes=20 * GIB),)), FindingCode.GPU_MEMORY_USERS, Severity.NOTE, "names no process"),
    ("stalls", replace(HEALTHY, kernel=Kernel(stall_some=0.3, stall_source="/proc/pressure/memory")), FindingCode.MEMORY_STALLS, Severity.WARNING, "avg10=30.00"),
    ("swapped", host(swap_total_bytes=8 * GIB, swap_free_bytes=GIB), FindingCode.SWAP_IN_USE, Severity.WARNING, "SwapFree 1.0 GiB"),
    ("a container's limit", host(cgroup_limit_bytes=8 * GIB, cgroup_used_bytes=GIB), FindingCode.CGROUP_LIMIT, Severity.NOTE, f"limit {8 * GIB}"),
    ("a full group", host(cgroup_limit_bytes=8 * GIB, cgroup_used_bytes=8 * GIB - MIB), FindingCode.CGROUP_FULL, Severity.WARNING, f"limit {8 * GIB}"),
    ("a quota", host(cpu_quota=1.5), FindingCode.CPU_QUOTA, Severity.NOTE, "1.5"),
    ("ulimit -v", replace(HEALTHY, limits=Limits(address_space_bytes=16 * GIB)), FindingCode.ADDRESS_SPACE_LIMIT, Severity.WARNING, str(16 * GIB)),
    ("ulimit -n", replace(HEALTHY, limits=Limits(n_open_files=64)), FindingCode.OPEN_FILES_LIMIT, Severity.WARNING, "64"),
    ("overcommit 2", replace(HEALTHY, kernel=replace(HEALTHY.kernel, overcommit=2)), FindingCode.STRICT_OVERCOMMIT, Severity.WARNING, "CommitLimit 32.0 GiB"),
    ("load", replace(HEALTHY, kernel=replace(HEALTHY.kernel, load_1min=20.0)), FindingCode.BUSY_PROCESSORS, Severity.NOTE, "20.00"),
    ("a full disk", replace(HEALTHY, disks=(disk(free_bytes=1000),)), FindingCode.DISK_FULL, Severity.FAULT, "1000 B free"),
    ("no inodes", replace(HEALTHY, disks=(disk(n_free_files=0),)), FindingCode.DISK_FULL, Severity.FAULT, "inodes"),
    ("a disk nearly full", replace(HEALTHY, disks=(disk(free_bytes=100 * MIB),)), FindingCode.DISK_LOW, Severity.WARNING, "100 MiB"),
    ("weights in memory", replace(HEALTHY, disks=(disk("weights", fs_type="tmpfs"),)), FindingCode.DISK_LOW, Severity.NOTE, "tmpfs"),
    ("read-only", replace(HEALTHY, disks=(disk(is_read_only=True),)), FindingCode.DISK_READ_ONLY, Severity.FAULT, "read-only"),
    ("not writable", replace(HEALTHY, disks=(disk(is_writable=False),)), FindingCode.DISK_READ_ONLY, Severity.FAULT, "me may not write there"),
    ("NFS", replace(HEALTHY, disks=(disk("weights", fs_type="nfs4"),)), FindingCode.DISK_REMOTE, Severity.NOTE, "nfs4"),
    ("a slow disk", model(files=(WeightsFile(path="/w.gguf", size_bytes=40 * GIB, read_bytes=32 * MIB, read_s=1.0),)), FindingCode.DISK_SLOW, Severity.WARNING, f"{32 * MIB} bytes in 1.00 s"),
    ("not in the group", replace(drivers(nodes=(node("/dev/dri/renderD128", is_accessible=False, group="render", vendor="0x1002"),)), builds=(EngineBuild(argv=SERVER.argv, backends=("vulkan",)),)), FindingCode.DEVICE_DENIED, Severity.FAULT, "group render"),
    ("NVIDIA's file is closed", drivers(nodes=(*HEALTHY.drivers.nodes, node("/dev/nvidia1", is_accessible=False))), FindingCode.DEVICE_DENIED, Severity.FAULT, "mode 0660"),
    ("no nvidiactl", drivers(nodes=(node("/dev/nvidia0"),)), FindingCode.DEVICE_MISSING, Severity.FAULT, "/dev/nvidiactl"),
    ("an open state", state(folder=replace(FOLDER, mode=0o755)), FindingCode.STATE_OPEN, Severity.WARNING, "0755"),
    ("an open file of it", state(folder=replace(FOLDER, n_open_files=2, open_file="/s/a")), FindingCode.STATE_OPEN, Severity.NOTE, "/s/a"),
    ("another's state", state(folder=replace(FOLDER, owner_uid=0)), FindingCode.STATE_NOT_OURS, Severity.FAULT, "belongs to user 0"),
    ("another's closed state", state(folder=replace(FOLDER, owner_uid=0, error="permission denied")), FindingCode.STATE_NOT_OURS, Severity.FAULT, "belongs to user 0"),
    ("a file for a state", state(folder=StateFolder(path="/s", error="it is no folder")), FindingCode.STATE_NOT_OURS, Severity.FAULT, "/s: it is no folder"),
    ("a link", state(folder=replace(FOLDER, is_link=True)), FindingCode.STATE_NOT_OURS, Severity.FAULT, "symbolic link"),
    ("an unknown model", replace(HEALTHY, model=Model(name="x", asked="x", told=Told(code="unknown-model", message="no profile is called `x`"))), FindingCode.PROFILE_UNUSABLE, Severity.FAULT, "error[unknown-model]"),
    ("another profile broken", replace(HEALTHY, broken_profiles=(Told(code="bad-profile", message="/p is wrong", details=("a: b",)),)), FindingCode.PROFILE_BROKEN, Severity.WARNING, "a: b"),
    ("refused", model(outcome=Refusal(code=RefusalCode.EXCEEDS_MEMORY, model="gemma2-27b", fact="too large", derivation=("1 + 1",), advice=(Advice(text="smaller", argv=("launch", "serve", "gemma2-9b")),))), FindingCode.PLAN_REFUSED, Severity.FAULT, "error[exceeds-memory]"),
    ("not here", model(is_local=False), FindingCode.WEIGHTS_ABSENT, Severity.FAULT, "no artifact"),
    ("to be downloaded", model(is_local=False, is_obtainable=True), FindingCode.WEIGHTS_ABSENT, Severity.NOTE, "no artifact"),
    ("gone", model(files=(WeightsFile(path="/w.gguf", error="no such file or directory"),)), FindingCode.WEIGHTS_UNREADABLE, Severity.FAULT, "no such file"),
    ("another size", model(files=(WeightsFile(path="/w.gguf", size_bytes=5, published_bytes=6),)), FindingCode.WEIGHTS_DIFFER, Severity.FAULT, "6 bytes"),
    ("changed", model(files=(WeightsFile(path="/w.gguf", size_bytes=5, changed="time of change", is_recorded=True),)), FindingCode.WEIGHTS_DIFFER, Severity.WARNING, "differs: time of change"),
    ("a taken port", replace(HEALTHY, port=Port(host="127.0.0.1", port=8080, error="127.0.0.1:8080 is taken", holder="process 5 (nginx)")), FindingCode.PORT_TAKEN, Severity.WARNING, "5 (nginx)"),
    ("a taken port of a model", replace(model(), port=Port(host="127.0.0.1", port=8080, error="127.0.0.1:8080 is taken", free_port=9)), FindingCode.PORT_TAKEN, Severity.FAULT, "no process that you may look into"),
    ("failed", state(instances=(view(Phase.FAILED),)), FindingCode.INSTANCE_FAILED, Severity.NOTE, "state failed"),
    ("stale", state(instances=(view(Phase.FAILED, recorded=Phase.READY),)), FindingCode.INSTANCE_STALE, Severity.WARNING, "supervisor 77"),
    ("orphans", state(leftovers=(Leftover(instance="x", path="/s/g.json", guard_alive=False, pids=(5, 6)),)), FindingCode.ORPHANS, Severity.FAULT, "/proc/5/environ"),
    ("set aside", state(corrupt=("/s/instances/x/instance.json.corrupt",)), FindingCode.RECORD_CORRUPT, Severity.NOTE, ".corrupt"),
    ("a failed unit", unit(active="failed", sub="failed", result="exit-code", exit_status=3), FindingCode.UNIT_FAILED, Severity.FAULT, "ExecMainStatus=3"),
    ("no linger", unit(lingers=False), FindingCode.UNIT_NO_LINGER, Severity.WARNING, "/var/lib/systemd/linger/me"),
    ("not enabled", unit(enabled="disabled"), FindingCode.UNIT_NOT_ENABLED, Severity.NOTE, "UnitFileState=disabled"),
    ("moved", unit(program="/gone/launch", is_program_there=False), FindingCode.UNIT_PROGRAM_MISSING, Severity.FAULT, "ExecStart=/gone/launch"),
    ("systemd is silent", replace(HEALTHY, systemd=Systemd(notes=("`systemctl show` did not answer within 5 s",))), FindingCode.NOT_ANSWERED, Severity.WARNING, "did not answer"),
    ("a hung driver", replace(HEALTHY, silent=(Silent(what="NVIDIA's driver", timeout_s=10),)), FindingCode.NOT_ANSWERED, Severity.FAULT, "no answer within 10 s"),
    ("1970", replace(HEALTHY, clock=Clock(now=1e6, installed_at=1.9e9)), FindingCode.CLOCK_BEHIND, Severity.WARNING, "1000000"),
    ("nobody keeps time", replace(HEALTHY, clock=Clock(now=2e9, installed_at=1e9, is_synchronised=False)), FindingCode.CLOCK_FREE, Severity.NOTE, "TIME_ERROR"),
    ("a proxy", replace(HEALTHY, network=Network(proxies=(Proxy(variable="http_proxy", value="http://p:3128"),))), FindingCode.PROXY_FOR_LOOPBACK, Severity.WARNING, "http://p:3128"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "code", "severity", "read"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_finding(facts: Facts, code: FindingCode, severity: Severity, read: str) -> None:
    """What is spoilt is found, as grave as it is, with the very value that was read; all else of that machine is not."""
    found = [finding for finding in judge(facts).findings if finding.code is code]
    assert [finding.severity for finding in found] == [severity]
    assert any(read in f"{evidence.source}: {evidence.value}" for evidence in found[0].evidence), found[0].evidence
    for finding in judge(facts).findings:
        check_finding(finding, facts)


def test_every_kind_is_reached() -> None:
    """No kind of finding is there that no facts lead to."""
    assert {case[2] for case in CASES} | {FindingCode.IN_ORDER} == set(FindingCode)


def check_finding(finding: Finding, facts: Facts) -> None:
    """Fail where a finding has no evidence, or a command that cannot be pasted."""
    assert finding.evidence or finding.severity is Severity.OK
    assert (
        finding.text[0] != finding.text[0].upper() or not finding.text[0].isalpha() or finding.text.startswith("NVIDIA")
    )
    assert not finding.text.endswith(".")
    if finding.command:
        check_command(finding.command, facts)


def check_command(command: tuple[str, ...], facts: Facts) -> None:
    """Fail where its program is not there, or where it is ours and does not parse."""
    program = command[0]
    if program == "launch":
        group = typer.main.get_command(app)
        assert isinstance(group, click.Group)
        sub = group.get_command(click.Context(group), command[1])
        assert sub is not None, command
        sub.make_context("launch", list(command[2:]), resilient_parsing=False)
    else:
        assert program in {
            *facts.programs,
            *facts.installer[:1],
            *(install.argv[0] for install in facts.inventory.engines or ()),
        }
        assert program != "sudo" or command[1] in facts.programs


def test_a_healthy_machine() -> None:
    """Nothing is wrong with it, and every area that was read is said to be in order."""
    checkup = judge(HEALTHY)
    assert {finding.severity for finding in checkup.findings} == {Severity.OK}
    assert len({finding.area for finding in checkup.findings}) == len(checkup.findings) >= 12


UNREAD = Facts(
    user=User(uid=1000, name="me"), inventory=Inventory(name="", host=Host(total_bytes=0, available_bytes=0))
)


def test_nothing_is_said_of_what_was_not_read() -> None:
    """Of a machine of which only user, limits and environment are known, nothing else is said: not even that it is well."""
    found = judge(UNREAD).findings
    assert {finding.severity for finding in found} == {Severity.OK}
    assert {finding.area for finding in found} == {"limits", "network"}


@given(st.lists(st.sampled_from(CASES), max_size=4), st.booleans())
def test_findings_stand_together(cases: list[tuple[str, Facts, FindingCode, Severity, str]], is_root: bool) -> None:  # noqa: FBT001 - drawn
    """However faults are combined, findings are sorted worst first, have evidence, and offer what is there."""
    facts = HEALTHY
    for _, spoilt, _, _, _ in cases:
        changed = {
            name: getattr(spoilt, name)
            for name in Facts.__struct_fields__
            if getattr(spoilt, name) != getattr(HEALTHY, name)
        }
        facts = replace(facts, **changed)
    user = User(uid=0, name="root", groups=("root",)) if is_root else facts.user
    facts = replace(facts, user=user, programs=facts.programs - {"sudo"} if len(cases) % 2 else facts.programs)
    findings = judge(facts).findings
    order = [Severity.FAULT, Severity.WARNING, Severity.NOTE, Severity.OK]
    assert [order.index(finding.severity) for finding in findings] == sorted(order.index(f.severity) for f in findings)
    for finding in findings:
        check_finding(finding, facts)


def test_a_gpu_of_a_container_or_another_machine_is_no_fault() -> None:
    """A card that was handed to a virtual machine (vfio-pci) is not ours to use, and brings no finding."""
    facts = replace(drivers(cards=(replace(CARD, driver="vfio-pci"),), nvidia=None, nodes=()), builds=())
    facts = replace(facts, inventory=replace(facts.inventory, devices=(), engines=(CPU_SERVER,)))
    assert [finding for finding in judge(facts).findings if finding.severity is not Severity.OK] == []


def test_a_software_renderer_is_no_gpu() -> None:
    """An engine for the processor is in order on a machine whose only device is lavapipe."""
    lavapipe = replace(GPU, description="llvmpipe (LLVM 15.0.6, 256 bits) [software, no GPU]", uuid=None, bus_id=None)
    facts = replace(drivers(cards=(), nvidia=None, nodes=()), builds=())
    facts = replace(facts, inventory=replace(facts.inventory, devices=(lavapipe,), engines=(CPU_SERVER,)))
    assert FindingCode.ENGINE_WITHOUT_GPU not in {finding.code for finding in judge(facts).findings}


def test_the_engine_of_the_plan_is_named() -> None:
    """Asked about a model, the engine that its plan takes is the one that would be used."""
    facts = replace(
        inventory(engines=(SERVER, CPU_SERVER)), model=replace(MODEL, outcome=replace(plan_for(), install=CPU_SERVER))
    )
    (found,) = [finding for finding in judge(facts).findings if finding.code is FindingCode.SEVERAL_ENGINES]
    assert "llama-server 6000 would be used: the plan for `gemma3-270m` takes it" in found.text
    assert found.evidence[0].source == "/opt/cpu/llama-server"


@pytest.mark.parametrize(("scope", "options"), [("system", ()), ("user", ("--user",))])
def test_a_unit_without_its_program_is_shown_before_it_is_replaced(scope: str, options: tuple[str, ...]) -> None:
    """Its command shows what the unit was made with: an install by its name alone would drop options, paths and keys."""
    facts = unit(scope=scope, program="/gone/launch", is_program_there=False)
    (found,) = [found for found in judge(facts).findings if found.code is FindingCode.UNIT_PROGRAM_MISSING]
    assert found.command == ("systemctl", *options, "--no-pager", "cat", UNIT.name)
    without = replace(facts, programs=frozenset())
    (found,) = [found for found in judge(without).findings if found.code is FindingCode.UNIT_PROGRAM_MISSING]
    assert found.command == ()


@pytest.mark.parametrize(
    ("card", "program"), [(AMD_CARD, "sudo"), (replace(CARD, driver="nouveau"), "sudo"), (CARD, "")]
)
def test_mesa_is_offered_to_cards_that_it_drives(card: DisplayCard, program: str) -> None:
    """NVIDIA's Vulkan driver comes with NVIDIA's own: installing Mesa's would leave the finding as it is."""
    facts = replace(drivers(cards=(card,)), builds=(EngineBuild(argv=SERVER.argv, backends=("vulkan",)),))
    (found,) = [found for found in judge(facts).findings if found.code is FindingCode.VULKAN_NO_DRIVER]
    assert "".join(found.command[:1]) == program


def test_a_container_without_its_gpus_is_told_one_thing() -> None:
    """The host's bus and module are seen in it: neither is at fault, nor are files that it was not given."""
    nvidia = replace(NVIDIA, error_code=12, error="NVML Shared Library Not Found")
    checkup = judge(drivers(nvidia=nvidia, container="/.dockerenv", nodes=()))
    (found,) = [found for found in checkup.findings if found.severity is Severity.FAULT]
    assert "this container was not given it" in found.text
    assert "--gpus all" in (found.help or "")
    assert found.command == ()


def test_a_container_that_was_given_its_gpus_is_well() -> None:
    """With an answering driver, being in one is no fault."""
    checkup = judge(drivers(container="/.dockerenv"))
    assert {finding.severity for finding in checkup.findings} == {Severity.OK}


def test_a_container_is_not_rebooted() -> None:
    """What is of the host is not offered as a command within."""
    nvidia = replace(NVIDIA, library_version="550.90.07")
    for container, command in ((None, ("sudo", "reboot")), ("/.dockerenv", ())):
        (found,) = [
            found
            for found in judge(drivers(nvidia=nvidia, container=container)).findings
            if found.code is FindingCode.NVIDIA_MISMATCH
        ]
        assert found.command == command


RENDER = node("/dev/dri/renderD128", is_accessible=False, group="render", vendor="0x1002")


@pytest.mark.parametrize(
    ("group", "user", "container", "help_", "command"),
    [
        ("render", "me", None, "join the group render", ("sudo", "usermod", "-aG", "render", "me")),
        ("render", "me", "/.dockerenv", "`--group-add render`", ()),
        ("993", "me", "/.dockerenv", "`--group-add 993`", ()),
        ("993", "me", None, "join the group 993", ()),
        ("render", "1000", None, "join the group render", ()),
        ("root", "me", None, "denies it", ()),
    ],
)
def test_the_way_to_a_device_file(
    group: str, user: str, container: str | None, help_: str, command: tuple[str, ...]
) -> None:
    """Only a user who has a name can be made a member of a group that has one, and not from within a container."""
    facts = drivers(nodes=(replace(RENDER, group=group),), container=container)
    builds = (EngineBuild(argv=SERVER.argv, backends=("vulkan",)),)
    facts = replace(facts, user=User(uid=1000, name=user, groups=("me",)), builds=builds)
    (found,) = [found for found in judge(facts).findings if found.code is FindingCode.DEVICE_DENIED]
    assert help_ in (found.help or "")
    assert found.command == command


@pytest.mark.parametrize(
    ("active", "holder", "is_fault"),
    [
        ("active", "process 50 (launch)", False),
        ("active", "process 5 (nginx)", True),
        ("active", "process 150 (nginx)", True),
        ("active", None, False),
        ("failed", None, True),
    ],
)
def test_the_port_of_a_unit_that_runs_is_well(active: str, holder: str | None, is_fault: bool) -> None:  # noqa: FBT001 - a fact
    """Served by a unit of the system, whose state and processes are not ours to look into, a model has its port."""
    port = Port(host="127.0.0.1", port=8080, error="127.0.0.1:8080 is taken", holder=holder, free_port=9)
    facts = replace(unit(scope="system", active=active, main_pid=50), port=port, model=MODEL)
    (found,) = [found for found in judge(facts).findings if found.area == "ports"]
    assert (found.severity is Severity.FAULT, UNIT.name in found.text) == (is_fault, not is_fault)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"active": "failed", "result": "signal", "exit_status": 9}, "has failed: result signal, signal 9"),
        ({"active": "failed", "result": "exit-code", "exit_status": 1}, "has failed: result exit-code, exit status 1"),
        ({"active": "failed", "result": "oom-kill", "exit_status": 9}, "want of memory"),
        ({"active": "inactive", "load": "bad-setting"}, "cannot be started: systemd cannot use its files"),
    ],
)
def test_why_a_unit_failed(fields: dict[str, Any], words: str) -> None:
    """What systemd's figures mean depends on its result; a unit whose files are wrong has not failed yet."""
    (found,) = [found for found in judge(unit(**fields)).findings if found.code is FindingCode.UNIT_FAILED]
    assert words in found.text


@pytest.mark.parametrize(
    ("spared", "n_found"),
    [(None, 1), ("localhost", 1), ("localhost,.corp", 1), ("127.0.0.1", 0), (".corp, 127.0.0.0/8", 0), ("*", 0)],
)
def test_the_name_of_loopback_spares_no_number(spared: str | None, n_found: int) -> None:
    """Clients compare what stands in an address; what is advised keeps what was spared before."""
    network = Network(proxies=(Proxy(variable="http_proxy", value="http://p:3128"),), no_proxy=spared)
    found = [
        found
        for found in judge(replace(HEALTHY, network=network)).findings
        if found.code is FindingCode.PROXY_FOR_LOOPBACK
    ]
    assert len(found) == n_found
    assert all(("$no_proxy," in (each.help or "")) == (spared is not None) for each in found)


def test_processes_of_what_is_served_here_are_ours() -> None:
    """An engine of several processes, which all carry the token of its guard, is not advised to be ended."""
    held = tuple(DeviceProcess(pid=pid, name="VLLM::Worker", used_bytes=10 * GIB) for pid in (8, 9))
    facts = inventory(devices=(replace(GPU, free_bytes=2 * GIB, processes=held),))
    left = Leftover(instance="x", path="/s/g.json", guard_alive=True, pids=(8, 9))
    for lives, severity in ((True, Severity.NOTE), (False, Severity.WARNING)):
        spoilt = replace(facts, state=State(folder=FOLDER, leftovers=(replace(left, guard_alive=lives),)))
        (found,) = [found for found in judge(spoilt).findings if found.code is FindingCode.GPU_MEMORY_USERS]
        assert (found.severity, bool(found.command)) == (severity, not lives)
        (of_host,) = [
            found
            for found in judge(replace(spoilt, holders=held[:1])).findings
            if found.code is FindingCode.MEMORY_USERS
        ]
        assert ["served here" in each.value for each in (of_host.evidence[-1], found.evidence[-1])] == [lives, lives]


def test_what_broke_does_not_hang() -> None:
    """Advice on what hangs would lead astray."""
    for error, has_command in (
        (None, True),
        ("its library did not answer within 10 s", True),
        ("OSError: x", False),
    ):
        facts = replace(HEALTHY, silent=(Silent(what="the clock", timeout_s=10, error=error),))
        (found,) = [found for found in judge(facts).findings if found.code is FindingCode.NOT_ANSWERED]
        assert ("hang" in (found.help or ""), bool(found.command)) == (has_command, has_command)


@pytest.mark.parametrize(("card", "module"), [(CARD, "nvidia"), (AMD_CARD, "amdgpu")], ids=("NVIDIA's", "AMD's"))
def test_a_module_is_loaded_where_it_is_and_where_it_would_help(card: DisplayCard, module: str) -> None:
    """A module that is not installed cannot be loaded, and one whose card another driver has would do nothing."""
    load = ("sudo", "modprobe", module)
    for driver, modules, command in ((None, (module,), load), (None, (), ()), ("nouveau", (module,), ())):
        facts = drivers(cards=(replace(card, driver=driver),), modules=modules, nvidia=None)
        (found,) = [found for found in judge(facts).findings if found.severity is Severity.FAULT]
        assert found.command == command


@pytest.mark.parametrize(("groups", "program"), [(("me",), "sudo"), (("me", "adm"), "journalctl")])
def test_the_journal_of_the_system_is_not_open_to_all(groups: tuple[str, ...], program: str) -> None:
    """Without rights it shows no line of the kernel or of the system's units, and does not fail either."""
    facts = unit(scope="system", active="failed", result="exit-code", exit_status=1)
    facts = replace(
        facts, silent=(Silent(what="NVIDIA's driver", timeout_s=10),), user=replace(facts.user, groups=groups)
    )
    commands = [found.command for found in judge(facts).findings if "journalctl" in found.command]
    assert [command[0] for command in commands] == [program, program]
    own = judge(unit(scope="user", active="failed", result="exit-code", exit_status=1))
    assert [found.command[:2] for found in own.findings if "journalctl" in found.command] == [("journalctl", "--user")]


@pytest.mark.parametrize(("vendor", "driver"), [("0x1a03", "ast"), ("0x102b", "mgag200"), ("0x1234", "bochs-drm")])
def test_a_display_chip_needs_no_vulkan_driver(vendor: str, driver: str) -> None:
    """A server's board has one for its console: nothing has to be installed for it, and nothing could be."""
    chip = replace(CARD, vendor=vendor, driver=driver)
    builds = (EngineBuild(argv=SERVER.argv, backends=("vulkan",)),)
    for cards, n_found in (((chip,), 0), ((chip, AMD_CARD), 1)):
        found = [
            found
            for found in judge(replace(drivers(cards=cards), builds=builds)).findings
            if found.code is FindingCode.VULKAN_NO_DRIVER
        ]
        assert len(found) == n_found
        assert all(vendor not in evidence.value for each in found for evidence in each.evidence)


@pytest.mark.parametrize(("scope", "enables"), [("system", ("sudo", "systemctl")), ("user", ("systemctl", "--user"))])
def test_a_unit_of_the_system_is_enabled_by_root(scope: str, enables: tuple[str, ...]) -> None:
    """One's own needs no more than oneself."""
    (found,) = [
        found
        for found in judge(unit(scope=scope, enabled="disabled")).findings
        if found.code is FindingCode.UNIT_NOT_ENABLED
    ]
    assert found.command == (*enables, "enable", UNIT.name)


@pytest.mark.parametrize("proxies", [(), (Proxy(variable="https_proxy", value="http://p:3128"),)])
def test_nothing_is_said_of_what_others_asked(proxies: tuple[Proxy, ...]) -> None:
    """Asked about a model on a hub, the doctor did ask the network: what is in order is the environment alone."""
    (found,) = [
        found for found in judge(replace(HEALTHY, network=Network(proxies=proxies))).findings if found.area == "network"
    ]
    assert (found.severity, "asked" in found.text) == (Severity.OK, False)
