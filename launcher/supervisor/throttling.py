"""Tell when a device is slowed by something out of the ordinary: heat, or its own hardware.

It must not know how that is measured, nor what is done about it. Pure.

A power cap is no news: most GPUs run into theirs whenever they work hard.
"""

from typing import Final

from launcher.domain import POWER_CAP, DeviceLoad, Noun

_N_SAMPLES: Final = 5
"""In a row, before it is told or is over: clocks are lowered for a moment now and then."""


class Slowed(Noun, frozen=True):
    """What is remembered of one device: for how many samples it has been other than what was told, and whether it was."""

    n_other: int = 0
    is_told: bool = False


def _reasons(load: DeviceLoad) -> tuple[str, ...]:
    """Return why a device is slower than usual; empty where it is not."""
    return tuple(reason for reason in load.throttled if reason != POWER_CAP)


def look(before: Slowed, load: DeviceLoad) -> tuple[Slowed, str | None]:
    """Return what to remember, and the words where a slow-down is to be told now, or its end."""
    why = _reasons(load)
    if bool(why) == before.is_told:
        return Slowed(is_told=before.is_told), None
    n_other = before.n_other + 1
    if n_other < _N_SAMPLES:
        return Slowed(n_other=n_other, is_told=before.is_told), None
    if not why:
        return Slowed(is_told=False), f"{load.name} runs at its usual clocks again"
    return Slowed(is_told=True), f"{load.name} is slowed by {' and '.join(why)}{_figures(load)}: answers take longer"


def _figures(load: DeviceLoad) -> str:
    figures = []
    if load.temperature_c is not None:
        figures.append(f"{load.temperature_c} °C")
    if load.power_w is not None:
        limit = f" of {load.power_limit_w:.0f}" if load.power_limit_w is not None else ""
        figures.append(f"{load.power_w:.0f}{limit} W")
    return f" ({', '.join(figures)})" if figures else ""
