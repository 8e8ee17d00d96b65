"""Machines by name or from files, among them the reference machines that ship with the program.

A file has exactly the fields of ``domain.Inventory``, as TOML or as the JSON that ``launch hardware --json`` prints, or those
of ``domain.Cluster``, whose ``nodes`` are such inventories. It must not know of this machine: nothing here imports psutil,
NVML or ``subprocess``.
"""

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeVar, get_args

import msgspec

from launcher.domain import READABLE_VERSIONS, SCHEMA_VERSION, Cluster, Inventory, Machines, Provenance
from launcher.errors import InventoryError
from launcher.inventory.text import printable
from launcher.resources import data_dir, from_home

_MAX_FILE_BYTES: Final = 4 << 20
"""An inventory takes a few KiB; a larger file is something else, given by mistake."""

_MAX_FIGURE: Final = 2**63
"""No machine has so much of anything; what is computed with figures below it stays finite."""

_SUFFIXES: Final = (".toml", ".json")

_MULTIPLE: Final = re.compile(r"(?P<n>[1-9]\d{0,3})x(?P<rest>.+)", re.DOTALL)
MAX_NODES: Final = 64
MAX_GPUS: Final = 16
"""Of one machine that is made of a reference machine with one; assumed: servers have 8, few have 16."""

_Noun = TypeVar("_Noun", Inventory, Cluster)


def list_machines() -> tuple[str, ...]:
    """Return the names of the reference machines in alphabetical order."""
    return tuple(sorted(path.stem for path in _machines_dir().glob("*.toml")))


def load_inventory(name_or_path: str) -> Inventory:
    """Return the one machine of that name or in that file; see ``load_machines``.

    Raises:
        InventoryError: as ``load_machines``, or several machines are meant.
    """
    found = load_machines(name_or_path)
    if isinstance(found, Inventory):
        return found
    message = f"`{name_or_path}` is {len(found.nodes)} machines, and this command is about one"
    raise InventoryError(message, help="`launch plan` plans for several")


def load_machines(name_or_path: str) -> Machines:
    """Return the reference machine of that name, a multiple of one, or what is in that ``.toml`` or ``.json`` file.

    A value with a slash, or with one of the two endings, is a path; anything else is a name. ``NxNAME`` is a multiple: of a
    reference machine with one GPU it is one machine with N of them, as the names ``2xrtx3090`` and ``8xh100`` say; of any
    other, or of a file, N such machines. ``2x8xh100`` is two machines with eight each, ``2x1xrtx4090`` two with one each.

    Raises:
        InventoryError: there is no such machine, the multiple is out of range, or the file cannot be read or is no inventory.
    """
    return _load(name_or_path, n_multiples=2)


def _load(name_or_path: str, n_multiples: int) -> Machines:
    """Find what is meant, with at most so many multiples before it."""
    found = _find(name_or_path)
    if found is not None:
        return found
    if n_multiples and (multiple := _MULTIPLE.fullmatch(name_or_path)) is not None:
        inner = _load(multiple["rest"], n_multiples - 1)
        return _multiply(int(multiple["n"]), inner, multiple["rest"], name_or_path)
    message = f"no reference machine is called `{name_or_path}`"
    names = list_machines()
    raise InventoryError(
        message,
        help=_nearest(name_or_path, names) or "name a file ending in .toml or .json, or one of: " + ", ".join(names),
    )


def _find(name_or_path: str) -> Machines | None:
    """Return what a name or path means as it stands; ``None`` where it may be a multiple."""
    if name_or_path in list_machines():
        return _read(_machines_dir() / f"{name_or_path}.toml")
    path = Path(name_or_path)
    is_path = path.suffix.lower() in _SUFFIXES or "/" in name_or_path
    if not is_path or (_MULTIPLE.fullmatch(name_or_path) is not None and not path.exists()):
        return None
    return _read(from_home(str(path)))


def _multiply(n: int, inner: Machines, rest: str, whole: str) -> Machines:
    """Return ``n`` times what ``rest`` means, which is ``inner``: GPUs of one machine, or machines."""
    if isinstance(inner, Cluster):
        message = f"`{whole}`: `{rest}` is several machines already"
        raise InventoryError(message, help="a multiple is of one machine: 2x8xh100 is two machines of eight H100")
    if rest in list_machines() and len(inner.devices) == 1:
        return _with_gpus(inner, n, whole)
    if n > MAX_NODES:
        message = f"`{whole}`: at most {MAX_NODES} machines are planned for, not {n}"
        raise InventoryError(message)
    nodes = tuple(msgspec.structs.replace(inner, name=f"node{idx}") for idx in range(n))
    return Cluster(name=whole, nodes=nodes, provenance=inner.provenance, notes=(f"{n} machines like `{inner.name}`",))


def _with_gpus(machine: Inventory, n: int, name: str) -> Inventory:
    """Return the machine with ``n`` of its GPU; all else of it is taken over, and said to be."""
    if n > MAX_GPUS:
        message = f"`{name}`: at most {MAX_GPUS} GPUs of one machine are planned for, not {n}"
        raise InventoryError(message, help=f"several machines are written {n}x1x{machine.name}")
    devices = tuple(msgspec.structs.replace(machine.devices[0], name=f"gpu{idx}") for idx in range(n))
    note = f"{n} GPUs in the host of `{machine.name}`: assumed"
    return msgspec.structs.replace(
        machine, name=name, devices=devices, provenance=Provenance.ASSUMED, notes=(*machine.notes, note)
    )


def _machines_dir() -> Path:
    return data_dir("profiles") / "machines"


def _read(path: Path) -> Machines:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"cannot read the inventory `{path}`: {(error.strerror or str(error)).lower()}"
        raise InventoryError(
            message, help="`launch hardware --json > FILE.json` writes an inventory of this machine"
        ) from error
    if len(content) > _MAX_FILE_BYTES:
        message = f"`{path}` is larger than the {_MAX_FILE_BYTES >> 20} MiB that an inventory may take"
        raise InventoryError(message)
    # No TOML starts with a brace: so JSON is known in a pipe too, `--inventory <(ssh HOST launch hardware --json)`.
    is_json = path.suffix.lower() == ".json" or content.lstrip().startswith(b"{")
    return parse_machines(content, source=str(path), is_json=is_json)


def parse_machines(content: bytes, *, source: str, is_json: bool) -> Machines:
    """Return the inventory or, where there are ``nodes``, the cluster that a file's bytes hold.

    ``source`` names the file in errors.

    Raises:
        InventoryError: the syntax is wrong, or a key is unknown, missing, of another type or out of range. Its
            message names the file and the key path, its ``help`` what is allowed.
    """
    raw = _decode(content, source=source, is_json=is_json)
    if isinstance(raw, dict) and "nodes" in raw:
        cluster = _convert(raw, Cluster, source)
        _check(_cluster_faults(cluster), source)
        return cluster
    inventory = _convert(raw, Inventory, source)
    _check(_faults(inventory), source)
    return inventory


def _convert(raw: Any, noun: type[_Noun], source: str) -> _Noun:
    try:
        return msgspec.convert(raw, noun)
    except msgspec.ValidationError as error:
        raise _explained(printable(str(error)), source, noun) from error


def _check(faults: Iterator[tuple[str, str]], source: str) -> None:
    for key_path, fact in faults:
        message = f"`{source}` is no valid inventory: {key_path}: {fact}"
        raise InventoryError(message)


def _decode(content: bytes, *, source: str, is_json: bool) -> Any:
    try:
        text = content.decode()
        if is_json:
            return msgspec.json.decode(text)
        import tomllib  # noqa: PLC0415 - its regular expressions cost 10 ms to compile; JSON does not need them

        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, DecodeError, UnicodeDecodeError are ValueErrors
        message = f"`{source}` is not {'JSON' if is_json else 'TOML'}: {printable(str(error)) or 'nested too deeply'}"
        raise InventoryError(message) from error


def _unreadable(version: int) -> Iterator[tuple[str, str]]:
    if version not in READABLE_VERSIONS:
        yield "schema_version", f"this program reads versions up to {SCHEMA_VERSION}, the file has {version}"


def _cluster_faults(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield key path and fact of what no cluster can have, then of each of its machines."""
    yield from _unreadable(cluster.schema_version)
    if not 0 < len(cluster.nodes) <= MAX_NODES:
        yield "nodes", f"must be 1 to {MAX_NODES} machines, not {len(cluster.nodes)}"
    if cluster.network.bandwidth_bytes_per_s == 0:
        yield "network.bandwidth_bytes_per_s", "must be above 0"
    yield from _out_of_range(cluster.network, "network")
    for key_path in _unprintable({"name": cluster.name, "notes": cluster.notes}, ""):
        yield key_path, "holds characters that cannot be shown"
    names: set[str] = set()
    for i, node in enumerate(cluster.nodes):
        if node.name in names:
            yield f"nodes[{i}].name", f"`{node.name}` names two machines"
        names.add(node.name)
        for key_path, fact in _faults(node):
            yield f"nodes[{i}].{key_path}", fact


def _faults(inventory: Inventory) -> Iterator[tuple[str, str]]:
    """Yield key path and fact of each figure that no machine can have."""
    yield from _unreadable(inventory.schema_version)
    yield from _out_of_range(inventory.host, "host")
    host = inventory.host
    if host.total_bytes == 0:
        yield "host.total_bytes", "must be above 0"
    if host.available_bytes > host.total_bytes:
        yield "host.available_bytes", f"{host.available_bytes} is more than total_bytes, {host.total_bytes}"
    if host.n_cpu < 1:
        yield "host.n_cpu", "must be at least 1"
    shown = {"name": inventory.name, "host": host, "devices": inventory.devices, "notes": inventory.notes}
    for key_path in _unprintable(msgspec.to_builtins(shown), ""):
        yield key_path, "holds characters that cannot be shown"
    yield from _out_of_range(inventory.engines, "engines")
    names: set[str] = set()
    for i, device in enumerate(inventory.devices):
        yield from _out_of_range(device, f"devices[{i}]")
        if device.total_bytes == 0:
            yield f"devices[{i}].total_bytes", "must be above 0"
        if (device.free_bytes or 0) > device.total_bytes:
            yield f"devices[{i}].free_bytes", f"{device.free_bytes} is more than total_bytes, {device.total_bytes}"
        if device.name in names:
            yield f"devices[{i}].name", f"`{device.name}` names two devices"
        names.add(device.name)


def _unprintable(node: Any, key_path: str) -> Iterator[str]:
    """Yield the key paths of texts that a terminal could obey."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _unprintable(value, f"{key_path}.{key}".lstrip("."))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _unprintable(value, f"{key_path}[{i}]")
    elif isinstance(node, str) and not node.isprintable():
        yield key_path


def _out_of_range(node: Any, key_path: str) -> Iterator[tuple[str, str]]:
    """Yield the key paths of figures that nothing can have: negative or absurd ones, and what is no number."""
    if isinstance(node, msgspec.Struct):
        for field in node.__struct_fields__:
            yield from _out_of_range(getattr(node, field), f"{key_path}.{field}")
    elif isinstance(node, tuple):
        for i, value in enumerate(node):
            yield from _out_of_range(value, f"{key_path}[{i}]")
    elif isinstance(node, int | float):
        least = 1 if key_path.endswith("_per_s") else 0  # a memory that gives nothing is none: it would be divided by
        if not least <= node < _MAX_FIGURE:
            yield key_path, f"{str(node)[:40]} is out of range"


def _explained(fault: str, source: str, noun: type[msgspec.Struct]) -> InventoryError:
    """Turn msgspec's sentence, ``FAULT - at `$.a[0].b```, into file, key path and what is allowed there."""
    what, _, where = fault.partition(" - at `$")
    key_path = where.rstrip("`").lstrip(".")
    place = f" {key_path}:" if key_path else ""
    message = f"`{source}` is no valid inventory:{place} {what[:1].lower()}{what[1:]}"
    allowed = _allowed(key_path, noun)
    wrong = re.search(r"(?:unknown field|enum value) [`'](.*)[`']", what)
    suggestion = _nearest(wrong[1], allowed) if wrong else None
    return InventoryError(message, help=suggestion or (f"allowed: {', '.join(allowed)}" if allowed else None))


def _allowed(key_path: str, noun: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the keys of the table, or the values of the enumeration, at a key path such as ``devices[0].kind``."""
    node: Any = noun
    for step in re.findall(r"\[|[^.\[\]]+(?!\])", key_path):
        node = next(iter(get_args(node)), None) if step == "[" else _field_types(node).get(step)
        if NoneType in get_args(node):
            node = next(member for member in get_args(node) if member is not NoneType)
    if isinstance(node, type) and issubclass(node, Enum):
        return tuple(str(member.value) for member in node)
    return tuple(_field_types(node))


def _field_types(node: Any) -> dict[str, Any]:
    if not (isinstance(node, type) and issubclass(node, msgspec.Struct)):
        return {}
    return {field.encode_name: field.type for field in msgspec.structs.fields(node)}


def _nearest(wrong: str, names: tuple[str, ...]) -> str | None:
    from difflib import get_close_matches  # noqa: PLC0415 - only an error needs it

    close = get_close_matches(wrong, names, n=1)
    return f"did you mean `{close[0]}`?" if close else None
