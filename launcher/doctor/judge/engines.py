"""Which engines there are, which of them reach a GPU, and which one would be used. Pure.

A GPU that no engine reaches is the first thing that goes wrong: everything works, ten times slower than it should.
"""

from collections.abc import Iterator
from typing import Final

from launcher.doctor.commands import pip_install
from launcher.doctor.facts import EngineBuild, Facts
from launcher.doctor.judge.drivers import AMD, NVIDIA
from launcher.domain import DeviceKind, Engine, EngineInstall, Plan
from launcher.findings import Area, Evidence, Finding, FindingCode, Severity
from launcher.inventory.devices import is_software

_HUNG: Final = "did not answer within"
_INSTALL: Final = (
    "install a build of llama-server with CUDA, ROCm or Vulkan and put it on PATH, or name it in $LAUNCHER_LLAMA_SERVER"
)


def check_engines(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the engines found, or with there being none."""
    installs = facts.inventory.engines
    if installs is None:
        return  # nobody could ask
    for note in facts.engine_notes:
        yield _of_note(facts, note)
    if not installs:
        yield _none_found(facts)
        return
    unloaded = [(install, build) for install, build in _pairs(facts) if _is_unloaded(facts, install, build)]
    is_reached = any(reaches_gpu(install) for install in installs)
    for install, build in unloaded:
        yield _backend_not_loaded(install, build, is_reached=is_reached)
    without = _without_gpu(facts, installs)
    if without is not None:
        yield without
    if len(installs) > 1:
        yield _several(facts, installs)


def sum_up_engines(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say which engine there is."""
    installs = facts.inventory.engines
    if not installs:
        return None
    return f"{describe(installs[0])} is found", tuple(_evidence(install) for install in installs)


def describe(install: EngineInstall) -> str:
    """Return an engine's name and version."""
    return f"{install.engine} {install.version}" if install.version else str(install.engine)


def reaches_gpu(install: EngineInstall) -> bool | None:
    """Tell whether an engine reaches a GPU of this machine; ``None`` for vLLM built for GPUs, which is not asked."""
    if install.engine is Engine.VLLM:
        return False if install.version is not None and install.version.endswith("+cpu") else None
    return any(
        not is_software(device.description) and not device.name.startswith(DeviceKind.RPC.upper())
        for device in install.devices
    )


def _pairs(facts: Facts) -> list[tuple[EngineInstall, EngineBuild]]:
    builds = {build.argv: build for build in facts.builds}
    return [
        (install, builds[install.argv]) for install in facts.inventory.engines or () if install.argv in builds
    ]  # fmt: skip


def _evidence(install: EngineInstall) -> Evidence:
    listed = ", ".join(f"{device.name} {device.description}" for device in install.devices)
    if install.engine is Engine.VLLM:
        listed = "built for CPUs" if reaches_gpu(install) is False else "not asked: importing it takes ten seconds"
    return Evidence(source=" ".join(install.argv), value=f"{describe(install)}; devices: {listed or 'none'}")


def _of_note(facts: Facts, note: str) -> Finding:
    hung = _HUNG in note
    return Finding(
        code=FindingCode.ENGINE_UNUSABLE,
        severity=Severity.FAULT if hung else Severity.WARNING,
        area=Area.ENGINES,
        text=note,
        evidence=(Evidence(source="asking the engine", value=note),),
        help="an engine that does not say what it is mostly waits for a GPU's driver that hangs"
        if hung
        else "install another build, or correct what the note names",
        command=() if hung else pip_install(facts),
    )


def _none_found(facts: Facts) -> Finding:
    return Finding(
        code=FindingCode.NO_ENGINE_FOUND,
        severity=Severity.FAULT,
        area=Area.ENGINES,
        text="no engine is found: nothing can be served",
        evidence=(Evidence(source="$LAUNCHER_LLAMA_SERVER, $LAUNCHER_VLLM, PATH, this Python", value="no engine"),),
        help="install one; the README says which there are",
        command=pip_install(facts),
    )


def _is_unloaded(facts: Facts, install: EngineInstall, build: EngineBuild) -> bool:
    """Tell whether an engine carries a back end that it did not load for a GPU that is there."""
    return bool(build.backends and _gpus(facts)) and reaches_gpu(install) is False


def _backend_not_loaded(install: EngineInstall, build: EngineBuild, *, is_reached: bool) -> Finding:
    """Say it; where another engine reaches the GPU, that one is used, and this is worth a note."""
    lacks = bool(build.missing)
    return Finding(
        code=FindingCode.BACKEND_NOT_LOADED,
        severity=Severity.NOTE if is_reached else Severity.FAULT,
        area=Area.ENGINES,
        text=f"{describe(install)} is built with {', '.join(build.backends)} and lists no GPU"
        + (": libraries that it needs are missing" if lacks else ""),
        evidence=(
            _evidence(install),
            *(Evidence(source="ldd", value=f"not found: {name}") for name in build.missing),
            *(Evidence(source=name, value="is there") for name in build.libraries),
        ),
        help="install the libraries that are not found (CUDA's runtime of the same major version, for example)"
        if lacks
        else "its driver gives it no device: see the findings on drivers and permissions",
        command=(install.argv[0], "--list-devices") if install.engine is Engine.LLAMA_SERVER else (),
    )


def _gpus(facts: Facts) -> list[Evidence]:
    """Return what shows that there is a GPU worth reaching: one that a driver tells, or a card on the bus that has one."""
    found = [
        Evidence(source=f"{device.name}, by its driver", value=device.description)
        for device in facts.inventory.devices
        if not is_software(device.description) and (device.uuid is not None or device.bus_id is not None)
    ]
    if found:
        return found
    return [
        Evidence(
            source=f"/sys/bus/pci/devices/{card.bus_id}", value=f"{card.vendor}:{card.device}, driver {card.driver}"
        )
        for card in facts.drivers.cards
        if (card.vendor, card.driver) in {(NVIDIA, "nvidia"), (AMD, "amdgpu")}
    ]


def _without_gpu(facts: Facts, installs: tuple[EngineInstall, ...]) -> Finding | None:
    gpus = _gpus(facts)
    if not gpus or any(reaches_gpu(install) is not False for install in installs):
        return None
    names = ", ".join(describe(install) for install in installs)
    return Finding(
        code=FindingCode.ENGINE_WITHOUT_GPU,
        severity=Severity.FAULT,
        area=Area.ENGINES,
        text=f"there is a GPU, and no engine reaches it ({names}): everything would run on the processor",
        evidence=(*gpus, *(_evidence(install) for install in installs)),
        help=_INSTALL,
        command=() if any("vulkan" in build.backends for build in facts.builds) else pip_install(facts),
    )


def _several(facts: Facts, installs: tuple[EngineInstall, ...]) -> Finding:
    """Say which of several engines is taken, and by which rule; of a model that was asked about, by its very plan."""
    outcome = None if facts.model is None else facts.model.outcome
    if isinstance(outcome, Plan) and outcome.install is not None:
        chosen, why = outcome.install, f"the plan for `{outcome.model}` takes it"
    else:
        with_gpu = [install for install in installs if reaches_gpu(install)]
        chosen = (with_gpu or list(installs))[0]
        why = "the first found that reaches a GPU" if with_gpu else "the first found; none is known to reach a GPU"
    rest = [install for install in installs if install.argv != chosen.argv]
    cpu_only = [describe(install) for install in rest if reaches_gpu(install) is False and reaches_gpu(chosen)]
    also = f"; {', '.join(cpu_only)} would not reach the GPU" if cpu_only else ""
    return Finding(
        code=FindingCode.SEVERAL_ENGINES,
        severity=Severity.NOTE,
        area=Area.ENGINES,
        text=f"{len(installs)} engines are found; {describe(chosen)} would be used: {why}{also}",
        evidence=tuple(_evidence(install) for install in (chosen, *rest)),
        help="choose another with `--engine`, or name a llama-server in $LAUNCHER_LLAMA_SERVER; "
        "`launch calibrate` measures which is fastest",
        command=("launch", "calibrate"),
    )
