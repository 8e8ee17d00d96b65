"""Write an instance as units of systemd: the shipped template, and drop-ins for what is this machine's.

The rules of quoting are those of systemd.syntax(7), systemd.service(5) and systemd.exec(5), version 252. It must not know
where the files go, nor what is there already. Pure.
"""

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from launcher.domain import HOST_MEMORY, SCHEMA_VERSION, DeviceKind, Noun, Plan
from launcher.errors import UsageError
from launcher.units import MIB, format_bytes, pad

TEMPLATE_NAME: Final = "launch@.service"
_TEMPLATE_PROGRAM: Final = "ExecStart=/usr/bin/launch serve %i"
_INSTANCE_DROP_IN: Final = "50-launcher.conf"
_GPU_DROP_IN: Final = "60-gpu.conf"
_MARK: Final = "# Written by `launch systemd install`; what follows has the sha256 "
_BARE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=@,+-")
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "%": "%%"}
_LAUNCHER_BYTES: Final = 256 * MIB
"""For the launcher itself: see docs/systemd.md for what was measured; the rest is for bodies of requests that wait."""
_LEAST_GAP_BYTES: Final = 256 * MIB
_GAP_SHARE: Final = 16
_FIRST_FREE_PORT: Final = 1024
_DEVICES: Final = {
    DeviceKind.CUDA: ("char-nvidia* rw",),
    DeviceKind.ROCM: ("char-kfd rw", "char-drm rw"),
}
_OWN_MEMORY: Final = frozenset({DeviceKind.CUDA, DeviceKind.ROCM})
"""GPUs that mostly have memory of their own; another may be part of the processor, and what it holds counts as the host's."""
_ANY_GPU: Final = ("char-nvidia* rw", "char-kfd rw", "char-drm rw")


class Scope(StrEnum):
    """Whose service manager runs the unit."""

    SYSTEM = "system"
    USER = "user"


class UnitFile(Noun, frozen=True):
    """One file, by its path below the manager's folder of units."""

    name: str
    text: str


class Units(Noun, frozen=True):
    """All files of one instance's unit, and the unit's name."""

    unit: str
    scope: Scope
    files: tuple[UnitFile, ...]
    schema_version: int = SCHEMA_VERSION


class Surroundings(Noun, frozen=True):
    """What a unit is given of this machine.

    ``groups`` may read the weights, ``gpu_groups`` use the GPUs.
    ``program`` is the launcher with what it needs to be started; ``words`` follow ``serve``. ``environment`` holds no
    secret; ``bound_paths`` are hidden from a system unit unless they are bound.
    """

    program: tuple[str, ...]
    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    key_file: str | None = None
    token_file: str | None = None
    bound_paths: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    gpu_groups: tuple[str, ...] = ()


def unit_name(instance: str) -> str:
    """Return the unit of an instance, whose name has no character that systemd would want escaped."""
    return f"launch@{instance}.service"


def drop_in_folder(instance: str) -> str:
    """Return the folder of an instance's drop-ins."""
    return f"{unit_name(instance)}.d"


def render_units(
    template: str,
    instance: str,
    plans: Sequence[Plan],
    around: Surroundings,
    *,
    scope: Scope,
    kinds: frozenset[DeviceKind],
) -> Units:
    """Return the files of an instance that serves the first of ``plans``, or another at a later start.

    ``kinds`` are of the GPUs that they use.

    Raises:
        UsageError: a word or path cannot be written in a unit.
    """
    start = f"ExecStart={_command((*around.program, 'serve'))} %i"
    files = [UnitFile(name=TEMPLATE_NAME, text=mark(template.replace(_TEMPLATE_PROGRAM, start)))]
    folder = drop_in_folder(instance)
    is_shared = not kinds <= _OWN_MEMORY
    limits = max((memory_limits(plan, is_shared=is_shared) for plan in plans), key=lambda limits: limits[-1])
    text = _instance_drop_in(instance, plans[0], around, limits, scope=scope)
    files.append(UnitFile(name=f"{folder}/{_INSTANCE_DROP_IN}", text=mark(text)))
    if kinds and scope is Scope.SYSTEM:
        files.append(UnitFile(name=f"{folder}/{_GPU_DROP_IN}", text=mark(_gpu_drop_in(kinds, around.gpu_groups))))
    return Units(unit=unit_name(instance), scope=scope, files=tuple(files))


def _instance_drop_in(
    instance: str, plan: Plan, around: Surroundings, limits: tuple[int, int, int], *, scope: Scope
) -> str:
    need_bytes, high_bytes, max_bytes = limits
    port = plan.address.port
    lines = ["[Service]"]
    # What is bound was found for this program: the template's may be another's, which a later installation left there.
    if around.words != (instance,) or around.bound_paths:
        lines += ["ExecStart=", f"ExecStart={_command((*around.program, 'serve', *around.words))}"]
    lines += [f"Environment={_quote(f'{name}={value}')}" for name, value in around.environment]
    lines += [
        f"# At most {format_bytes(need_bytes)} of host memory are planned. The rest is what stays free, and the launcher's.",
        f"MemoryHigh={high_bytes // MIB}M",
        f"MemoryMax={max_bytes // MIB}M",
    ]
    if scope is Scope.SYSTEM:
        if around.key_file is not None:
            lines.append(f"LoadCredential=api-key:{_raw(around.key_file)}")
        if around.token_file is not None:
            lines.append(f"LoadCredential=hub-token:{_raw(around.token_file)}")
        lines += [f"SupplementaryGroups={' '.join(around.groups)}"] if around.groups else []
        lines += [f"BindReadOnlyPaths={_quote_plainly(path)}" for path in around.bound_paths]
        if port is not None and port < _FIRST_FREE_PORT:
            lines += ["CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    return "\n".join(lines) + "\n"


def _gpu_drop_in(kinds: frozenset[DeviceKind], groups: Sequence[str]) -> str:
    allowed = dict.fromkeys(device for kind in sorted(kinds) for device in _DEVICES.get(kind, _ANY_GPU))
    lines = [
        "# The plan uses a GPU: its devices, and no others, are opened to the service. Without this file it has none.",
        *(("[Unit]", "After=nvidia-persistenced.service") if DeviceKind.CUDA in kinds else ()),
        "[Service]",
        "PrivateDevices=no",
        "DevicePolicy=closed",
        *(f"DeviceAllow={device}" for device in allowed),
        *([f"SupplementaryGroups={' '.join(groups)}"] if groups else []),
    ]
    return "\n".join(lines) + "\n"


def memory_limits(plan: Plan, *, is_shared: bool = False) -> tuple[int, int, int]:
    """Return in bytes what a plan takes of host memory, and from that ``MemoryHigh=`` and ``MemoryMax=``.

    ``is_shared``: what its devices hold may be host memory, too.

    A launcher that plans under the lower of them finds what the plan was made with: its use, residual and margin, and
    what the launcher itself has by then. Page cache counts too, but the kernel gives it back first.
    """
    budget = next(budget for budget in plan.budgets if budget.name == HOST_MEMORY)
    on_devices_bytes = sum(use.total_bytes for use in plan.footprint.devices)
    need_bytes = plan.footprint.host.total_bytes + (on_devices_bytes if is_shared else 0)
    high_bytes = need_bytes + budget.residual_bytes + budget.margin_bytes + _LAUNCHER_BYTES
    gap_bytes = max(_LEAST_GAP_BYTES, high_bytes // _GAP_SHARE)
    return need_bytes, pad(high_bytes, MIB), pad(high_bytes + gap_bytes, MIB)


# --- Words -------------------------------------------------------------------------------------------------------------


def _command(words: Sequence[str]) -> str:
    """Return a command line; a colon before it switches off variables, so that a dollar sign is one."""
    quoted = " ".join(_quote(word) for word in words)
    return f":{quoted}" if any("$" in word for word in words) else quoted


def _quote(word: str) -> str:
    """Return a word as systemd reads it back, its specifiers of no effect."""
    _check(word)
    if word and _BARE.issuperset(word):
        return word
    return '"' + "".join(_escaped(char) for char in word) + '"'


def _escaped(char: str) -> str:
    return _ESCAPES.get(char) or (f"\\x{ord(char):02x}" if ord(char) < ord(" ") or ord(char) == 127 else char)  # noqa: PLR2004 - DEL


def _raw(path: str) -> str:
    """Return a path for a setting that takes the rest of its line: no quotes, but specifiers.

    A space in it is read by systemd 252, but not by 255 and newer, which hand it on to their executor unquoted (seen with 257:
    "Failed to deserialize").
    """
    _check_printable(path)
    if " " in path or path.endswith("\\"):
        msg = f"systemd cannot read this path in a unit: {path!a}"
        raise UsageError(msg, help="rename the file, or make a symbolic link to it")
    return path.replace("%", "%%")


def _quote_plainly(path: str) -> str:
    """Return a path for a setting in which colons divide source and target: in quotes they do not, nor are escapes read.

    Quotes in it are read by systemd 252, and lost by 255 and newer on the way to their executor (seen with 257).
    """
    _check_printable(path)
    if '"' in path or "'" in path:
        msg = f"systemd cannot read this path in a unit: {path!a}"
        raise UsageError(msg, help="rename the file, or make a symbolic link to it")
    escaped = path.replace("\\", "\\\\").replace("%", "%%")
    return path if _BARE.issuperset(path) and ":" not in path else f'"{escaped}"'


def _check_printable(path: str) -> None:
    _check(path)
    if any(ord(char) < ord(" ") for char in path):
        msg = f"systemd cannot read this path in a unit: {path!a}"
        raise UsageError(msg, help="rename the file, or make a symbolic link to it")


_LAST: Final = frozenset({"fffe", "ffff"})
"""Of each plane of Unicode."""


def _check(word: str) -> None:
    """Refuse what is no UTF-8, and what Unicode keeps for no character: for that systemd ignores the whole line."""
    if any(
        "\ud800" <= char <= "\udfff" or "\ufdd0" <= char <= "\ufdef" or f"{ord(char):04x}"[-4:] in _LAST
        for char in word
    ):
        msg = f"a unit is UTF-8, and this is not: {word!a}"
        raise UsageError(msg, help="rename the file, or make a symbolic link to it")


# --- Whose file it is ----------------------------------------------------------------------------------------------------


def mark(text: str) -> str:
    """Return a file's text under a line by which it is known again as written here, and unchanged."""
    return f"{_MARK}{_digest(text)}\n{text}"


def is_unchanged(text: str) -> bool:
    """Whether a file's text is as it was written here; a person's own, or one that a person changed, is not."""
    first, _, rest = text.partition("\n")
    return first == f"{_MARK}{_digest(rest)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


# --- For people ------------------------------------------------------------------------------------------------------------


def render_text(units: Units, folder: str) -> str:
    """Return all files below one another, each under its path."""
    return "\n".join(f"# {folder}/{file.name}\n{file.text}" for file in units.files)


def render_json(units: Units, folder: str, root: str = "/") -> str:
    """Return ``{"schema_version", "unit", "scope", "folder", "files": [{"name", "text"}], "next": [...]}``."""
    value = {**msgspec.to_builtins(units), "folder": folder, "next": next_commands(units, root)}
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def next_commands(units: Units, root: str = "/") -> tuple[str, ...]:
    """Return what an administrator types after the files are in place; below another ``root`` nothing runs."""
    if root != "/":
        return (f"systemctl{' --global' if units.scope is Scope.USER else ''} --root={root} enable {units.unit}",)
    user = " --user" if units.scope is Scope.USER else ""
    commands = (f"systemctl{user} daemon-reload", f"systemctl{user} enable --now {units.unit}")
    return (*commands, *(("loginctl enable-linger",) if user else ()))
