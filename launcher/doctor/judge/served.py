"""What is served here or was: the port, the state directory, what was left behind, systemd's units. Pure."""

from collections.abc import Iterator
from typing import Final

from launcher.doctor.commands import as_root, first_there, journal, path_shown
from launcher.doctor.facts import Facts, Port, StateFolder, Systemd, Unit
from launcher.domain import InstanceView, State
from launcher.findings import Area, Evidence, Finding, FindingCode, Severity

_OTHERS: Final = 0o077
_FAILED: Final = "failed"
_RUNNING: Final = frozenset({"active", "activating", "reloading", "deactivating"})
_PROGRAM_MISSING: Final = 203
"""systemd's exit status for a program that could not be executed (``EXIT_EXEC``, systemd.exec(5))."""
_REFUSED: Final = 3
_WRONG_FILES: Final = frozenset({"bad-setting", "error"})
"""Of systemd's states of a unit's files those in which it is not started (again)."""
_BY_SIGNAL: Final = frozenset({"signal", "core-dump", "watchdog"})
"""Results with which systemd's ``ExecMainStatus`` is a signal's number."""


def check_port(facts: Facts) -> Iterator[Finding]:
    """Yield a port that somebody else has."""
    port = facts.port
    if port is None or port.error is None or port.instance is not None or _unit_at(facts, port) is not None:
        return
    name = facts.model.asked if facts.model is not None else None
    free = str(port.free_port) if port.free_port is not None else "0"
    yield Finding(
        code=FindingCode.PORT_TAKEN,
        severity=Severity.FAULT if name is not None else Severity.WARNING,
        area=Area.PORTS,
        text=port.error,
        evidence=(
            Evidence(source=f"binding {port.host}:{port.port}", value=port.error),
            Evidence(
                source="/proc/net/tcp, /proc/PID/fd", value=port.holder or "no process that you may look into has it"
            ),
        ),
        help="serve at another port, or end what has this one"
        if name is not None
        else "profiles that name no port of their own want this one; serve at another with `--port`",
        command=("launch", "serve", name, "--port", free)
        if name is not None
        else first_there(facts, ("ss", "-ltnp", f"sport = :{port.port}"), ("lsof", "-i", f":{port.port}")),
    )


def _unit_at(facts: Facts, port: Port) -> Unit | None:
    """Return the unit that has the port: its state is not ours to read, nor may its process be to look into."""
    running = [unit for unit in (facts.systemd.units if facts.systemd is not None else ()) if unit.active in _RUNNING]
    if port.holder is None:
        return running[0] if len(running) == 1 else None
    holder = port.holder.partition(" (")[0]
    return next((unit for unit in running if holder == f"process {unit.main_pid}"), None)


def sum_up_port(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say that the port is free, or ours."""
    port = facts.port
    if port is None:
        return None
    if port.instance is not None:
        value = f"`{port.instance}` serves there"
        return f"{port.host}:{port.port} is ours: {value}", (Evidence(source="the state directory", value=value),)
    if port.error is not None and (unit := _unit_at(facts, port)) is not None:
        holder = port.holder or "no process that you may look into has it"
        return f"{port.host}:{port.port} is taken while {unit.name} runs", (
            Evidence(source="/proc/net/tcp, /proc/PID/fd", value=holder),
            Evidence(source=_shown(unit), value=f"ActiveState={unit.active} MainPID={unit.main_pid}"),
        )
    return f"{port.host}:{port.port} is free", (Evidence(source=f"binding {port.host}:{port.port}", value="succeeds"),)


# --- State ------------------------------------------------------------------------------------------------------


def check_state(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the state directory, and what was left in it."""
    state = facts.state
    if state is None:
        return
    yield from _folder(facts, state.folder)
    for left in state.leftovers:
        if left.pids and not left.guard_alive:
            yield Finding(
                code=FindingCode.ORPHANS,
                severity=Severity.FAULT,
                area=Area.STATE,
                text=f"processes of an engine of `{left.instance}` live on without their guard: {', '.join(map(str, left.pids))}",
                evidence=(
                    Evidence(source=left.path, value="the guard that it names does not run"),
                    *(Evidence(source=f"/proc/{pid}/environ", value="carries the guard's token") for pid in left.pids),
                ),
                help="the next `launch serve` of that name ends them, as does this",
                command=("launch", "stop", left.instance),
            )
    for view in state.instances:
        yield from _instance(facts, view)
    if state.corrupt:
        yield Finding(
            code=FindingCode.RECORD_CORRUPT,
            severity=Severity.NOTE,
            area=Area.STATE,
            text="files of the state could not be understood once, and were set aside",
            evidence=tuple(Evidence(source=path, value="set aside") for path in state.corrupt),
            help="what they held was begun anew; they may be removed",
            command=first_there(facts, ("ls", "-l", state.corrupt[0])),
        )


def _folder(facts: Facts, folder: StateFolder) -> Iterator[Finding]:
    if folder.error is not None or folder.is_link or (folder.owner_uid not in {None, facts.user.uid}):
        if folder.is_link:
            why = "it is a symbolic link"
        elif folder.owner_uid in {None, facts.user.uid}:
            why = folder.error or ""
        else:  # which is why it cannot be read, if it cannot
            why = f"it belongs to user {folder.owner_uid}, not to {facts.user.uid}"
        yield Finding(
            code=FindingCode.STATE_NOT_OURS,
            severity=Severity.FAULT,
            area=Area.STATE,
            text=f"the state directory {folder.path} cannot be used: {why}",
            evidence=(Evidence(source=folder.path, value=why),),
            help="set LAUNCHER_STATE_DIR to a folder of your own",
            command=path_shown(facts, folder.path),
        )
        return
    if folder.mode is not None and folder.mode & _OTHERS:
        yield Finding(
            code=FindingCode.STATE_OPEN,
            severity=Severity.WARNING,
            area=Area.STATE,
            text=f"others may look into the state directory {folder.path}",
            evidence=(Evidence(source=f"lstat({folder.path})", value=f"mode {folder.mode:04o}"),),
            help="the next `launch serve` closes it, as does this",
            command=first_there(facts, ("chmod", "700", folder.path)),
        )
    elif folder.open_file is not None:
        yield Finding(
            code=FindingCode.STATE_OPEN,
            severity=Severity.NOTE,
            area=Area.STATE,
            text=f"{folder.n_open_files} files of the state are open to others, though their folder is not",
            evidence=(Evidence(source=f"lstat({folder.open_file})", value="readable or writable by others"),),
            help="they are reached by nobody as long as the folder stays closed",
            command=first_there(facts, ("chmod", "-R", "go-rwx", folder.path)),
        )


def _instance(facts: Facts, view: InstanceView) -> Iterator[Finding]:
    asked = facts.model is not None and facts.model.name == view.name
    record = view.record
    if view.supervisor_alive or view.state is not State.FAILED:
        return
    stale = record is not None and record.state is not State.FAILED
    yield Finding(
        code=FindingCode.INSTANCE_STALE if stale else FindingCode.INSTANCE_FAILED,
        severity=Severity.WARNING if stale or asked else Severity.NOTE,
        area=Area.STATE,
        text=f"`{view.name}` was {record.state if record is not None else 'served'} when its supervisor was killed"
        if stale
        else f"`{view.name}` failed when it was last served: {view.reason or 'no reason is recorded'}",
        evidence=(
            Evidence(
                source=f"{view.path}/instance.json",
                value=f"state {record.state}, supervisor {record.supervisor.pid}"
                if record is not None
                else "unreadable",
            ),
            *((Evidence(source="its supervisor", value="does not run"),) if stale else ()),
            *(Evidence(source="its last words", value=line) for line in (record.details if record is not None else ())),
        ),
        help="serving it again begins anew; its log tells more",
        command=("launch", "status", view.name),
    )


def sum_up_state(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say that the state is as it should be."""
    if facts.state is None:
        return None
    folder = facts.state.folder
    if folder.mode is None:
        return "nothing was served here yet", (Evidence(source=folder.path, value="not there"),)
    alive = [view.name for view in facts.state.instances if view.supervisor_alive]
    serving = f"serving {', '.join(alive)}" if alive else "nothing is being served"
    return f"the state directory is private; {serving}", (
        Evidence(source=folder.path, value=f"mode {folder.mode:04o}, owner {folder.owner_uid}"),
    )


# --- systemd ----------------------------------------------------------------------------------------------------


def check_systemd(facts: Facts) -> Iterator[Finding]:
    """Yield units that failed, or that will not be there when they are wanted."""
    if facts.systemd is None:
        return
    for note in facts.systemd.notes:
        yield Finding(
            code=FindingCode.NOT_ANSWERED,
            severity=Severity.WARNING,
            area=Area.SYSTEMD,
            text=f"systemd could not be asked: {note}",
            evidence=(Evidence(source="systemctl", value=note),),
            command=first_there(facts, ("systemctl", "--no-pager", "is-system-running")),
        )
    for unit in facts.systemd.units:
        yield from _unit(facts, facts.systemd, unit)


def _options(unit: Unit) -> tuple[str, ...]:
    return ("--user",) if unit.scope == "user" else ()


def _shown(unit: Unit) -> str:
    return f"systemctl {' '.join((*_options(unit), 'show', unit.name))}"


def _unit(facts: Facts, found: Systemd, unit: Unit) -> Iterator[Finding]:
    told = Evidence(
        source=_shown(unit),
        value=f"LoadState={unit.load} ActiveState={unit.active} SubState={unit.sub} Result={unit.result} "
        f"UnitFileState={unit.enabled} ExecMainStatus={unit.exit_status} NRestarts={unit.n_restarts}",
    )
    if not unit.is_program_there and unit.program is not None:
        yield Finding(
            code=FindingCode.UNIT_PROGRAM_MISSING,
            severity=Severity.FAULT,
            area=Area.SYSTEMD,
            text=f"{unit.name} starts {unit.program}, which is not there",
            evidence=(told, Evidence(source=unit.path, value=f"ExecStart={unit.program}")),
            # No `launch systemd install` here: the model may be a path, and options and key files would be left out.
            help="install it anew by the launcher that is here, `launch systemd install`, with the words after `serve` "
            "and the files of keys that its last drop-in names",
            command=first_there(facts, ("systemctl", *_options(unit), "--no-pager", "cat", unit.name)),
        )
    elif unit.active == _FAILED or unit.load in _WRONG_FILES:
        yield Finding(
            code=FindingCode.UNIT_FAILED,
            severity=Severity.FAULT,
            area=Area.SYSTEMD,
            text=f"{unit.name} {'has failed' if unit.active == _FAILED else 'cannot be started'}: {_why(unit)}",
            evidence=(told,),
            help="its journal tells more; `launch explain -` reads it from a pipe",
            command=first_there(facts, ("journalctl", "--user", "-u", unit.name, "-n", "50"))
            if unit.scope == "user"
            else journal(facts, "-u", unit.name, "-n", "50"),
        )
    if unit.scope == "user" and unit.enabled == "enabled" and found.lingers is False:
        yield Finding(
            code=FindingCode.UNIT_NO_LINGER,
            severity=Severity.WARNING,
            area=Area.SYSTEMD,
            text=f"{unit.name} ends when {facts.user.name} logs out, and does not start with the machine",
            evidence=(told, Evidence(source=f"/var/lib/systemd/linger/{facts.user.name}", value="not there")),
            help="let your services run without a session",
            command=first_there(facts, ("loginctl", "enable-linger", facts.user.name)),
        )
    if unit.active == "active" and unit.enabled == "disabled":
        yield Finding(
            code=FindingCode.UNIT_NOT_ENABLED,
            severity=Severity.NOTE,
            area=Area.SYSTEMD,
            text=f"{unit.name} runs, and does not start by itself next time",
            evidence=(told,),
            command=first_there(facts, ("systemctl", *_options(unit), "enable", unit.name))
            if unit.scope == "user"
            else as_root(facts, "systemctl", "enable", unit.name),
        )


def _why(unit: Unit) -> str:
    if unit.load in _WRONG_FILES:
        return f"systemd cannot use its files (LoadState={unit.load})"
    if unit.result == "start-limit-hit":
        return "it ended too often in too short a time"
    if unit.exit_status == _PROGRAM_MISSING:
        return "its program could not be executed (status 203)"
    if unit.exit_status == _REFUSED and unit.result == "exit-code":
        return "the plan was refused (exit code 3), which no restart mends"
    if unit.result == "oom-kill":
        return "the kernel killed one of its processes for want of memory"
    told = "signal" if unit.result in _BY_SIGNAL else "exit status"
    return f"result {unit.result or 'unknown'}" + (f", {told} {unit.exit_status}" if unit.exit_status else "")


def sum_up_systemd(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say which units there are; nothing where systemd does not run."""
    if facts.systemd is None or facts.systemd.notes:
        return None
    version = Evidence(source="systemctl --version", value=f"systemd {facts.systemd.version or 'of unknown version'}")
    if not facts.systemd.units:
        return "no unit of the launcher is loaded", (
            version,
            Evidence(source="systemctl show 'launch@*.service'", value="none, of the system or of the user"),
        )
    return "the launcher's units are well", (
        version,
        *(
            Evidence(source=unit.name, value=f"{unit.scope}, {unit.active}, {unit.enabled}")
            for unit in facts.systemd.units
        ),
    )
