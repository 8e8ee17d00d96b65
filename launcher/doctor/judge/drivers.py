"""GPUs, their drivers, and whether this user may use them. Pure."""

from collections.abc import Iterator
from typing import Final

from launcher.doctor.commands import as_root, first_as_root, kernel_messages
from launcher.doctor.facts import DisplayCard, EngineBuild, Facts
from launcher.findings import Area, Evidence, Finding, FindingCode, Severity
from launcher.inventory.devices import is_software
from launcher.inventory.nvidia_versions import NvidiaVersions

NVIDIA: Final = "0x10de"
AMD: Final = "0x1002"
_VENDORS: Final = {NVIDIA: "NVIDIA", AMD: "AMD", "0x8086": "Intel"}
_NVML_MISMATCH: Final = 18
_NVML_NOT_LOADED: Final = 9
_NVML_NO_LIBRARY: Final = 12
_NVML_NO_PERMISSION: Final = 4
_ABSENT: Final = frozenset({_NVML_NOT_LOADED, _NVML_NO_LIBRARY})
_GROUP_USES: Final = 0o060
_PASSED_THROUGH: Final = "vfio-pci"
_RADEON: Final = "radeon"
"""The kernel's driver for AMD's cards before those that amdgpu drives, which are on servers' boards, too."""


def check_drivers(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with drivers: versions that do not go together, modules that are not loaded, missing parts."""
    yield from _nvidia(facts)
    yield from _amd(facts)
    yield from _cuda(facts)
    yield from _vulkan(facts)
    for note in facts.device_notes:
        yield _note(FindingCode.SOFTWARE_RENDERER, note, "the devices that engines list")


def sum_up_drivers(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say which drivers were found in order."""
    found = facts.drivers.nvidia
    evidence = [_card_evidence(card) for card in facts.drivers.cards]
    if found is not None and found.error_code is None and found.driver is not None:
        cuda = f", CUDA up to {found.cuda[0]}.{found.cuda[1]}" if found.cuda else ""
        evidence.append(Evidence(source="NVML", value=f"driver {found.driver}, library {found.library_version}{cuda}"))
    if facts.drivers.rocm is not None:
        evidence.append(Evidence(source="/opt/rocm/.info/version", value=facts.drivers.rocm))
    devices = [device for device in facts.inventory.devices if not is_software(device.description)]
    evidence += [Evidence(source="devices", value=f"{device.name} {device.description}") for device in devices]
    if not facts.drivers.is_read:
        return None
    if not facts.drivers.cards and not devices:
        return "no GPU was found: everything runs on the processor", (
            Evidence(source="/sys/bus/pci/devices", value="no display controller"),
        )
    return "drivers of the GPUs answer" if devices else "no GPU with a driver that engines use was found", tuple(
        evidence
    )


def _note(code: FindingCode, text: str, source: str) -> Finding:
    return Finding(
        code=code,
        severity=Severity.NOTE,
        area=Area.DRIVERS,
        text=text,
        evidence=(Evidence(source=source, value=text),),
    )


def _card_evidence(card: DisplayCard) -> Evidence:
    vendor = _VENDORS.get(card.vendor, card.vendor)
    return Evidence(
        source=f"/sys/bus/pci/devices/{card.bus_id}",
        value=f"{vendor} {card.vendor}:{card.device}, kernel driver {card.driver or 'none'}",
    )


def _cards_of(facts: Facts, vendor: str) -> list[DisplayCard]:
    return [card for card in facts.drivers.cards if card.vendor == vendor and card.driver != _PASSED_THROUGH]


# --- NVIDIA -----------------------------------------------------------------------------------------------------


def _nvidia(facts: Facts) -> Iterator[Finding]:
    found = facts.drivers.nvidia
    cards = _cards_of(facts, NVIDIA)
    if _is_withheld(facts):
        if cards or (found is not None and found.module is not None):
            yield _withheld(facts, cards, found)
        return
    if found is None or (found.module is None and found.error_code in _ABSENT):
        if any(card.driver != "nvidia" for card in cards):
            yield _nvidia_not_loaded(facts, cards, found)
        return
    mismatch = found.error_code == _NVML_MISMATCH or (
        found.module is not None and found.library_version is not None and found.module != found.library_version
    )
    if mismatch:
        yield _mismatch(facts, found)
    elif found.error_code is not None:
        yield _unusable(facts, found)
    yield from _nvidia_notes(facts)


def _nvidia_notes(facts: Facts) -> Iterator[Finding]:
    """Yield what the driver says of single GPUs."""
    for note in facts.nvidia_notes:
        if "out of use" in note:
            yield Finding(
                code=FindingCode.GPU_OUT_OF_USE,
                severity=Severity.FAULT,
                area=Area.DRIVERS,
                text=note,
                evidence=(Evidence(source="NVML", value=note),),
                help="a GPU that fell off the bus comes back with a reboot, or needs its power and seat checked",
                command=kernel_messages(facts, "NVRM"),
            )
        elif "does not tell its memory" in note:
            yield _note(FindingCode.GPU_MEMORY_UNTOLD, note, "NVML")
        elif "PCI Express" in note:
            yield _note(FindingCode.GPU_LINK, note, "NVML")


def _module_evidence(found: NvidiaVersions | None) -> Evidence:
    text = found.module_text if found is not None and found.module_text else "not there: the module is not loaded"
    return Evidence(source="/proc/driver/nvidia/version", value=text)


def _is_withheld(facts: Facts) -> bool:
    """Tell whether this is a container that was started without NVIDIA's GPUs: the host's bus and modules are seen there, too."""
    found = facts.drivers.nvidia
    is_silent = found is None or found.error_code in _ABSENT
    is_given = any(node.path.startswith("/dev/nvidia") for node in facts.drivers.nodes)
    return facts.drivers.container is not None and is_silent and not is_given


def _withheld(facts: Facts, cards: list[DisplayCard], found: NvidiaVersions | None) -> Finding:
    return Finding(
        code=FindingCode.NVIDIA_NOT_LOADED,
        severity=Severity.FAULT,
        area=Area.DRIVERS,
        text="an NVIDIA GPU is there, and this container was not given it: no engine can use it",
        evidence=(
            *(_card_evidence(card) for card in cards),
            *_nvml_evidence(found),
            Evidence(source=facts.drivers.container or "", value="there: this is a container"),
            Evidence(source="/dev/nvidia0", value="not there"),
        ),
        help="start the container with its GPUs: `--gpus all` of Docker, `--device nvidia.com/gpu=all` of Podman",
    )


def _nvidia_not_loaded(facts: Facts, cards: list[DisplayCard], found: NvidiaVersions | None) -> Finding:
    return Finding(
        code=FindingCode.NVIDIA_NOT_LOADED,
        severity=Severity.FAULT,
        area=Area.DRIVERS,
        text="an NVIDIA GPU is there, and its driver is not loaded: no engine can use it",
        evidence=(
            *(_card_evidence(card) for card in cards),
            *_nvml_evidence(found),
            _module_evidence(found),
        ),
        help="install NVIDIA's driver from your distribution, and reboot; a driver named nouveau gives engines nothing",
        command=_modprobe(facts, "nvidia", cards),
    )


def _modprobe(facts: Facts, module: str, cards: list[DisplayCard]) -> tuple[str, ...]:
    """Return what loads a module, where it is installed and no other driver has the cards: nothing else would come of it."""
    is_free = any(card.driver is None for card in cards)
    return as_root(facts, "modprobe", module) if is_free and module in facts.drivers.modules else ()


def _nvml_evidence(found: NvidiaVersions | None) -> tuple[Evidence, ...]:
    if found is None or found.error is None:
        return ()
    return (Evidence(source="NVML", value=f"{found.error} (code {found.error_code})"),)


def _mismatch(facts: Facts, found: NvidiaVersions) -> Finding:
    evidence = [_module_evidence(found)]
    if found.library is not None:
        version = found.library_version or "unknown version"
        evidence.append(Evidence(source=found.library, value=version))
    evidence += _nvml_evidence(found)
    differ = f": {found.library_version} and {found.module}" if found.module and found.library_version else ""
    return Finding(
        code=FindingCode.NVIDIA_MISMATCH,
        severity=Severity.FAULT,
        area=Area.DRIVERS,
        text=f"NVIDIA's library and its kernel module are of different versions{differ}, as after an update",
        evidence=tuple(evidence),
        help="reboot, so that the module of the new version is loaded"
        if facts.drivers.container is None
        else "start the container anew, which gives it the host's library; the host itself may need a reboot",
        command=as_root(facts, "reboot") if facts.drivers.container is None else (),
    )


def _unusable(facts: Facts, found: NvidiaVersions) -> Finding:
    lacks_library = found.error_code == _NVML_NO_LIBRARY
    if lacks_library:
        help_ = f"install the libraries of NVIDIA's driver, of the module's very version ({found.module})"
        if facts.drivers.container is not None:
            help_ = "start the container with NVIDIA_DRIVER_CAPABILITIES=all: the host's libraries come with that"
    elif found.error_code == _NVML_NO_PERMISSION:
        help_ = "the device files may not be open to you, see below"
    else:
        help_ = "the kernel's messages tell why"
    return Finding(
        code=FindingCode.NVIDIA_UNUSABLE,
        severity=Severity.FAULT,
        area=Area.DRIVERS,
        text="NVIDIA's driver is loaded and its library is not there: no engine can use the GPU"
        if lacks_library
        else "NVIDIA's driver is loaded and refuses to answer",
        evidence=(_module_evidence(found), *_nvml_evidence(found)),
        help=help_,
        command=() if lacks_library else kernel_messages(facts, "NVRM"),
    )


# --- CUDA -------------------------------------------------------------------------------------------------------


def _cuda(facts: Facts) -> Iterator[Finding]:
    offered = None if facts.drivers.nvidia is None else facts.drivers.nvidia.cuda
    if offered is None:
        return
    for build in facts.builds:
        if build.cuda is not None:
            yield from _cuda_of(build, build.cuda, offered)


def _cuda_of(build: EngineBuild, needed: tuple[int, int | None], offered: tuple[int, int]) -> Iterator[Finding]:
    """Weigh what an engine was built with against what the driver offers.

    Within one major version any driver of it runs any build of it (NVIDIA's "minor version compatibility"), but for
    code that the driver has to compile; across majors none does.
    """
    major, minor = needed
    if major < offered[0] or (major == offered[0] and (minor is None or minor <= offered[1])):
        return
    too_old = major > offered[0]
    wanted = f"{major}" if minor is None else f"{major}.{minor}"
    name = " ".join(build.argv)
    yield Finding(
        code=FindingCode.CUDA_TOO_OLD if too_old else FindingCode.CUDA_OLDER,
        severity=Severity.FAULT if too_old else Severity.NOTE,
        area=Area.DRIVERS,
        text=f"`{name}` is built for CUDA {wanted}, the driver offers {offered[0]}.{offered[1]}",
        evidence=(
            Evidence(source=build.cuda_source, value=wanted),
            Evidence(source="NVML, nvmlSystemGetCudaDriverVersion", value=f"{offered[0]}.{offered[1]}"),
        ),
        help="update NVIDIA's driver, or install a build of the engine for an older CUDA"
        if too_old
        else "within one major version it works but for code that the driver has to compile",
    )


# --- AMD, Vulkan ------------------------------------------------------------------------------------------------


def _amd(facts: Facts) -> Iterator[Finding]:
    cards = _cards_of(facts, AMD)
    lacking = [card for card in cards if card.driver != "amdgpu"]
    old = [card for card in lacking if card.driver == _RADEON]
    if lacking:
        yield Finding(
            code=FindingCode.AMD_NOT_LOADED,
            severity=Severity.NOTE if old == lacking else Severity.FAULT,
            area=Area.DRIVERS,
            text="an AMD GPU is there, and the kernel's amdgpu driver does not have it: no engine can use it",
            evidence=tuple(_card_evidence(card) for card in lacking),
            help=_amd_help(facts, is_old=old == lacking),
            command=_modprobe(facts, "amdgpu", lacking),
        )
    needs_kfd = [build for build in facts.builds if "hip" in build.backends]
    has_kfd = any(node.path == "/dev/kfd" for node in facts.drivers.nodes)
    if cards and not lacking and needs_kfd and not has_kfd:
        yield Finding(
            code=FindingCode.KFD_MISSING,
            severity=Severity.FAULT,
            area=Area.DRIVERS,
            text="/dev/kfd is not there: an engine built for ROCm cannot reach the AMD GPU",
            evidence=(
                *(_card_evidence(card) for card in cards),
                *(Evidence(source=" ".join(build.argv), value="built with hip") for build in needs_kfd),
            ),
            help="in a container hand over /dev/kfd and /dev/dri; else the kernel has no ROCm support for this card",
            command=kernel_messages(facts, "kfd"),
        )


def _amd_help(facts: Facts, *, is_old: bool) -> str:
    if is_old:
        return "a card that the kernel's driver radeon has is too old for amdgpu, and so for engines"
    if facts.drivers.container is not None:
        return "let the host load the driver"
    if "amdgpu" in facts.drivers.modules:
        return "load the driver"
    return "this kernel has no amdgpu: it comes with the kernel's full package, or one of extra modules"


def _vulkan(facts: Facts) -> Iterator[Finding]:
    users = [build for build in facts.builds if "vulkan" in build.backends]
    if not users:
        return
    broken = [driver for driver in facts.drivers.vulkan if not driver.is_there]
    if broken:
        yield Finding(
            code=FindingCode.VULKAN_BROKEN_DRIVER,
            severity=Severity.WARNING,
            area=Area.DRIVERS,
            text="a Vulkan driver is registered whose library cannot be loaded",
            evidence=tuple(
                Evidence(source=driver.manifest, value=f"library_path {driver.library or 'unreadable'}")
                for driver in broken
            ),
            help="reinstall the package that has the library, or remove the manifest",
        )
    # A server's board has a display chip of its own, which no Vulkan driver is for.
    cards = [card for vendor in _VENDORS for card in _cards_of(facts, vendor) if card.driver is not None]
    if cards and not facts.drivers.vulkan:
        yield Finding(
            code=FindingCode.VULKAN_NO_DRIVER,
            severity=Severity.WARNING,
            area=Area.DRIVERS,
            text="an engine is built for Vulkan, and no Vulkan driver is registered for the GPU",
            evidence=(
                *(_card_evidence(card) for card in cards),
                *(Evidence(source=" ".join(build.argv), value="built with vulkan") for build in users),
                Evidence(source="vulkan/icd.d in /usr/share, /etc and XDG's folders", value="no manifest"),
            ),
            help="install the GPU's Vulkan driver: Mesa's for AMD and Intel, NVIDIA's own comes with its driver"
            + ("; a container is given it by NVIDIA_DRIVER_CAPABILITIES=all" if facts.drivers.container else ""),
            # Mesa's has none for a card that NVIDIA's own module holds.
            command=first_as_root(
                facts, ("apt-get", "install", "mesa-vulkan-drivers"), ("dnf", "install", "mesa-vulkan-drivers")
            )
            if any(card.driver != "nvidia" for card in cards)
            else (),
        )


# --- Permissions ------------------------------------------------------------------------------------------------


def check_permissions(facts: Facts) -> Iterator[Finding]:
    """Yield device files that this user may not use, or that are not there though the driver is loaded."""
    denied = [
        node for node in facts.drivers.nodes if not node.is_accessible and _matters(facts, node.path, node.vendor)
    ]
    for group in dict.fromkeys(node.group for node in denied):
        nodes = [node for node in denied if node.group == group]
        can_join = any(node.mode & _GROUP_USES == _GROUP_USES for node in nodes) and group != "root"
        help_, command = _way_in(facts, group if can_join and group not in facts.user.groups else None)
        yield Finding(
            code=FindingCode.DEVICE_DENIED,
            severity=Severity.FAULT,
            area=Area.PERMISSIONS,
            text=f"the user {facts.user.name} may not use {', '.join(node.path for node in nodes)}",
            evidence=(
                *(
                    Evidence(source=node.path, value=f"mode {node.mode:04o}, owner {node.owner}, group {node.group}")
                    for node in nodes
                ),
                Evidence(source="groups of the user", value=", ".join(facts.user.groups)),
            ),
            help=help_,
            command=command,
        )
    yield from _missing_nodes(facts)


def _way_in(facts: Facts, group: str | None) -> tuple[str, tuple[str, ...]]:
    """Return help and command for who would have to be in a group; ``None`` for no group that would do."""
    if group is None:
        return "the file's mode, or what confines this process, denies it", ()
    if facts.drivers.container is not None:
        return f"start the container with `--group-add {group}`", ()
    # A number stands for a name that nobody has given it.
    is_known = not group.isdigit() and facts.user.name != str(facts.user.uid)
    command = as_root(facts, "usermod", "-aG", group, facts.user.name) if is_known else ()
    return f"join the group {group}, then log in anew", command


def _matters(facts: Facts, path: str, vendor: str | None) -> bool:
    """Tell whether an engine would reach a GPU by this file: NVIDIA's are not reached by render nodes."""
    if path == "/dev/kfd":
        return any("hip" in build.backends for build in facts.builds)
    if path.startswith("/dev/dri/"):
        return vendor != NVIDIA and any({"vulkan", "hip", "sycl"} & {*build.backends} for build in facts.builds)
    return True


def _missing_nodes(facts: Facts) -> Iterator[Finding]:
    found = facts.drivers.nvidia
    if found is None or found.module is None or _is_withheld(facts):
        return
    there = {node.path for node in facts.drivers.nodes}
    lacking = [path for path in ("/dev/nvidiactl", "/dev/nvidia-uvm") if path not in there]
    # CUDA makes the second by itself, at its first use, where this program is there to do it.
    makes_uvm = "nvidia-modprobe" in facts.programs and facts.drivers.container is None
    if not lacking or (makes_uvm and lacking == ["/dev/nvidia-uvm"]):
        return
    yield Finding(
        code=FindingCode.DEVICE_MISSING,
        severity=Severity.FAULT,
        area=Area.PERMISSIONS,
        text=f"NVIDIA's module is loaded, and {', '.join(lacking)} is not there: CUDA cannot begin",
        evidence=(
            _module_evidence(found),
            *(Evidence(source=path, value="no such file") for path in lacking),
        ),
        help="hand the GPU over to the container"
        if facts.drivers.container
        else "create the device files, by nvidia-modprobe, which may be a package of its own",
        command=() if facts.drivers.container else as_root(facts, "nvidia-modprobe", "-u", "-c=0"),
    )


def sum_up_permissions(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say which device files are open to this user; nothing where there are none."""
    if not facts.drivers.nodes:
        return None
    return f"the GPUs' device files are open to {facts.user.name}", tuple(
        Evidence(source=node.path, value=f"mode {node.mode:04o}, owner {node.owner}, group {node.group}")
        for node in facts.drivers.nodes
        if node.is_accessible
    )
