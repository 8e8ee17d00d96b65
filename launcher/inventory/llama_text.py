"""What native llama.cpp programs print about themselves, as values. Pure.

It must not know how the text was had. The formats are those of ``common/arg.cpp`` (build 11434, and 10434 before it):
options in the first column, separated by commas; devices after a heading.
"""

import re
from typing import Final

from launcher.domain import EngineDevice
from launcher.inventory.text import printable
from launcher.units import MIB

_OPTIONS: Final = re.compile(r"(?:-{1,2}[A-Za-z0-9][\w-]*,?\s*)+")
_LONG_OPTION: Final = re.compile(r"--[a-z0-9][a-z0-9-]*")
_REMOVED: Final = "the argument has been removed"
"""How ``--help`` describes an option that ends the program with an error when given."""

_DEVICE: Final = re.compile(r"\s+([A-Za-z]\w*(?:\[[^\]]*\])?): (.*?)(?: \((\d{1,12}) MiB, (\d{1,12}) MiB free\))?\s*")
_VERSION: Final = re.compile(r"^version: (\S.*?)\s*$", re.MULTILINE)


def parse_version(text: str) -> str | None:
    """Return what ``--version`` says after ``version:``, as ``6123 (abc1234)``."""
    match = _VERSION.search(text)
    return printable(match[1]) if match else None


def parse_flags(text: str) -> frozenset[str]:
    """Return the long options that ``--help`` lists, without those that it says are removed."""
    flags: set[str] = set()
    for line in text.splitlines():
        options = _OPTIONS.match(line)
        if options and _REMOVED not in line:
            flags.update(_LONG_OPTION.findall(options[0]))
    return frozenset(flags)


def parse_devices(text: str) -> tuple[EngineDevice, ...]:
    """Return the devices that ``--list-devices`` lists, in its order; none for ``(none)``.

    A device with a total of 0 MiB is left out: libraries that only speed up the processor (BLAS) are listed so. More
    free than total memory is an engine misreading unified memory (llama.cpp #17536), and becomes unknown.
    """
    _, heading, listed = text.partition("Available devices:\n")
    devices = []
    for line in listed.splitlines() if heading else ():
        match = _DEVICE.fullmatch(line)
        if match is None or match[3] == "0":
            continue
        total_bytes, free_bytes = (None if mib is None else int(mib) * MIB for mib in (match[3], match[4]))
        if total_bytes is not None and free_bytes is not None and free_bytes > total_bytes:
            free_bytes = None
        devices.append(
            EngineDevice(
                name=printable(match[1]),
                description=printable(match[2]),
                total_bytes=total_bytes,
                free_bytes=free_bytes,
            )
        )
    return tuple(devices)
