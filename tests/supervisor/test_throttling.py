"""When a slowed device is told: pure."""

from collections.abc import Iterable

from launcher.domain import POWER_CAP, DeviceLoad
from launcher.supervisor.throttling import Slowed, look


def load(*throttled: str) -> DeviceLoad:
    """A warm GPU."""
    return DeviceLoad(
        name="gpu0",
        total_bytes=1,
        free_bytes=0,
        throttled=throttled,
        temperature_c=91,
        power_w=180.4,
        power_limit_w=450.0,
    )


def watch(loads: Iterable[DeviceLoad]) -> list[str]:
    """Look at one after the other; return what is told."""
    state, told = Slowed(), []
    for each in loads:
        state, words = look(state, each)
        if words is not None:
            told.append(words)
    return told


def test_heat_is_told_once_and_so_is_its_end() -> None:
    """With its figures; what lasts is not repeated."""
    told = watch([load("heat", POWER_CAP)] * 60 + [load(POWER_CAP)] * 60)
    assert told == [
        "gpu0 is slowed by heat (91 °C, 180 of 450 W): answers take longer",
        "gpu0 runs at its usual clocks again",
    ]


def test_a_moment_is_no_news() -> None:
    """Neither a short slow-down is told, nor a short pause of one."""
    assert watch(([load("heat")] * 4 + [load()]) * 5) == []
    assert len(watch([load("heat")] * 5 + ([load()] * 4 + [load("heat")]) * 5)) == 1


def test_a_power_cap_is_no_news() -> None:
    """It is how a GPU that works hard runs."""
    assert watch([load(POWER_CAP)] * 60) == []
