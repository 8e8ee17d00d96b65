"""Read llama-server's own account of the memory it needs, line by line, while it has not loaded anything yet.

It must not know plans, what is free elsewhere, or what follows from the figures. Pure.

Started with ``--fit on`` at log level 4, builds 10434 and 11434 build model and context once without allocating them
and print what these would take (``common_memory_breakdown_print``, llama.cpp ``common/fit.cpp``, build 11434)::

    |   - Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)) |  2048 = 2048 + (  55 =    32 +       4 +      17) +         -55 |
    |   - Host                                       |                  210 =   202 +       4 +       3                |
    |   - AMX                                        |                  190 =   190 +       0 +       0                |

that is total = free + (self = weights + context + compute) + unaccounted, in MiB rounded down. Under ``--log-jsonl`` the
same comes as one object of type ``fit_memory_breakdown`` too. Rows below ``Host`` are buffer types that only the
processor uses (repacked weights): host memory as well. Mapped weights count as host memory, as in our own footprints.
"""

import re
from functools import reduce
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec.structs import replace

from launcher.domain import HOST_MEMORY, MemoryUse, Noun
from launcher.units import MIB

_ROW: Final = re.compile(
    r"memory_breakdown_print: \|   - (?P<name>\S+)(?: \(.*\))?\s*\|"
    r"(?:\s*\d+ =\s*(?P<free>\d{1,12}) \+ \()?"
    r"\s*\d+ =\s*(?P<model>\d{1,12}) \+\s*(?P<context>\d{1,12}) \+\s*(?P<compute>\d{1,12})\b"
)
"""Twelve digits are an exbibyte; what is longer is no figure, and Python refuses to read thousands of them."""
_MARK: Final = "memory_breakdown"
_OBJECT: Final = '"fit_memory_breakdown"'
_END: Final = re.compile(r"params_fit(?:_impl)?: projected|common_fit_params: |llama_model_loader: ")
"""What follows the table; other lines may fall between its rows, for libraries write to the same stream themselves."""


class DeviceRow(Noun, frozen=True):
    """What a device holds, by the engine's name of it, and the free memory that the engine saw there at that moment."""

    use: MemoryUse
    free_bytes: int | None = None


class Breakdown(Noun, frozen=True):
    """What the engine has told so far; more rows may follow until it is ``complete``. Whole MiB, rounded down."""

    devices: tuple[DeviceRow, ...] = ()
    hosts: tuple[MemoryUse, ...] = ()
    complete: bool = False

    @property
    def host(self) -> MemoryUse:
        """The sum of all host memory, repacked weights included."""
        return MemoryUse(
            name=HOST_MEMORY,
            weights_bytes=sum(use.weights_bytes for use in self.hosts),
            kv_cache_bytes=sum(use.kv_cache_bytes for use in self.hosts),
            compute_bytes=sum(use.compute_bytes for use in self.hosts),
        )


def remembered(told: Breakdown) -> Breakdown:
    """Return the breakdown as it holds for the next start of the same command: without what was free at this one."""
    return replace(told, devices=tuple(replace(row, free_bytes=None) for row in told.devices))


def read_line(told: Breakdown, line: str) -> Breakdown:
    """Return the breakdown with what one more line of the log adds, in text or as JSON; a complete one stays as it is."""
    if told.complete:
        return told
    if _MARK in line:
        if _OBJECT in line:
            return _read_object(line) or told
        if match := _ROW.search(line):
            return _with_row(told, _read_row(match))
    elif told.hosts and _END.search(line):
        return replace(told, complete=True)
    return told


_Mib: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=10**12)]


class _Row(msgspec.Struct):
    """A row as the engine writes it, in MiB; ``free`` is a device's alone."""

    name: str
    model: _Mib
    context: _Mib
    compute: _Mib
    free: _Mib | None = None


def _read_row(match: re.Match[str]) -> _Row:
    model, context, compute = (int(match[part]) for part in ("model", "context", "compute"))
    free = None if match["free"] is None else int(match["free"])
    return _Row(name=match["name"], model=model, context=context, compute=compute, free=free)


def _with_row(told: Breakdown, row: _Row) -> Breakdown:
    use = MemoryUse(
        name=row.name,
        weights_bytes=row.model * MIB,
        kv_cache_bytes=row.context * MIB,
        compute_bytes=row.compute * MIB,
    )
    if row.free is None:
        return replace(told, hosts=(*told.hosts, use))
    return replace(told, devices=(*told.devices, DeviceRow(use=use, free_bytes=row.free * MIB)))


# --- The JSON object --------------------------------------------------------------------------------------------


class _Data(msgspec.Struct):
    unit: str
    rows: list[_Row]


class _Object(msgspec.Struct):
    data: _Data


def _read_object(line: str) -> Breakdown | None:
    """Return the whole breakdown; ``None`` for an object of another shape, whose text rows then have to do."""
    try:
        data = msgspec.json.decode(line, type=_Object).data
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    if data.unit != "MiB":
        return None
    return replace(reduce(_with_row, data.rows, Breakdown()), complete=True)
