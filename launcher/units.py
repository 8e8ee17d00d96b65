"""Bytes, rates and their written forms.

Every size in the program is an ``int`` of bytes; MiB and GiB exist only where text is read or written, and
this module is where they are. It imports nothing of the package, and decides nothing.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

_STEPS: Final = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def pad(n: int, multiple: int) -> int:
    """Round ``n`` up to the next multiple of ``multiple`` (ggml's ``GGML_PAD``)."""
    return -(-n // multiple) * multiple


def ceil_div(n: int, divisor: int) -> int:
    """Divide two whole numbers, rounding up."""
    return -(-n // divisor)


def format_bytes(n_bytes: int) -> str:
    """Write a size in the largest binary unit that keeps it at 1 or more: ``13.4 GiB``, ``253 MiB``, ``12 B``."""
    sign = "-" if n_bytes < 0 else ""
    size = abs(n_bytes)
    for step, unit in _STEPS:
        if size >= step:
            value = size / step
            return f"{sign}{value:.0f} {unit}" if value >= 100 else f"{sign}{value:.1f} {unit}"  # noqa: PLR2004
    return f"{sign}{size} B"


def format_gib(n_bytes: int) -> str:
    """Write a size as a bare number of GiB with one decimal, for tables whose heading names the unit."""
    return f"{n_bytes / GIB:.1f}"


def format_rate(n_bytes_per_s: float) -> str:
    """Write a memory or link bandwidth in the decimal GB/s that vendors publish: ``1008 GB/s``."""
    return f"{n_bytes_per_s / 1e9:.0f} GB/s"
