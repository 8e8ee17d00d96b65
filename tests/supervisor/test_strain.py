"""When a memory is about to run out, by samples of it: pure."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import HOST_MEMORY, DeviceProcess
from launcher.supervisor.strain import (
    Floor,
    Gauge,
    Outlook,
    Sample,
    StrainPolicy,
    Watched,
    assess,
    describe,
    taken_bytes,
    takers,
)
from launcher.units import GIB, MIB

POLICY = StrainPolicy()
ENGINE = DeviceProcess(pid=41, name="llama-server", used_bytes=20 * GIB)
OWN = frozenset({41})


def gauge(free_mib: float, *processes: DeviceProcess, name: str = "gpu0", own: int | None = 20 * GIB) -> Gauge:
    """One memory with so much free."""
    return Gauge(name=name, total_bytes=24 * GIB, free_bytes=int(free_mib * MIB), own_bytes=own, processes=processes)


def sample(at_s: float, *gauges: Gauge, stalled: float | None = None) -> Sample:
    """All memories at one moment."""
    return Sample(at_s=at_s, gauges=gauges, stalled=stalled, own_pids=OWN)


def watch(samples: Iterable[Sample], baseline: Sample | None = None) -> list[tuple[float, Outlook]]:
    """Assess one sample after the other; return what changed, and when."""
    watched, changes = Watched(), []
    for item in samples:
        watched, outlook = assess(watched, item, baseline=baseline, policy=POLICY)
        if outlook != Outlook():
            changes.append((item.at_s, outlook))
    return changes


def test_enough_is_calm() -> None:
    """A plan's margin stays free: nothing ever happens."""
    assert watch(sample(float(n), gauge(512)) for n in range(100)) == []


def test_low_twice_is_strained_and_the_bytes_are_named() -> None:
    """One sample may be a moment's; the second in a row asks for what makes it calm again."""
    assert watch([sample(0, gauge(512)), sample(1, gauge(100)), sample(2, gauge(512))]) == []
    ((at_s, outlook),) = watch(sample(float(n), gauge(100)) for n in range(5))
    (strain,) = outlook.strains
    assert (at_s, strain.memory, strain.free_bytes) == (1.0, "gpu0", 100 * MIB)
    assert strain.shortfall_bytes == (320 - 100) * MIB
    assert describe(strain) == "gpu0: 100 MiB of gpu0 is free"


def test_half_of_the_floor_is_strained_at_once() -> None:
    """There may be no second sample."""
    ((at_s, _),) = watch([sample(0, gauge(63))])
    assert at_s == 0


def test_a_memory_that_shrinks_is_strained_before_it_is_low() -> None:
    """At 300 MiB a second, 2 GiB last seven seconds: the time that draining takes."""
    changes = watch(sample(float(n), gauge(6000 - 300 * n)) for n in range(20))
    ((at_s, outlook),) = changes
    assert at_s < 20 - 5  # more than five seconds before it would be used up
    assert "is taken each second" in outlook.strains[0].why
    assert outlook.strains[0].shortfall_bytes == (320 + 10 * 300) * MIB - int((6000 - 300 * at_s) * MIB)


def test_one_step_down_is_no_trend() -> None:
    """A process that takes its share once and stays is no reason while enough is left."""
    assert watch(sample(float(n), gauge(8000 if n < 5 else 3000)) for n in range(30)) == []


def test_what_was_given_back_is_no_trend() -> None:
    """A process that took and took, and was ended: what it held is free again, and nothing is to be done."""
    free_mib = [8000, 6000, 4200, 2300, 8000, 8000, 8000]
    assert watch(sample(float(n), gauge(mib)) for n, mib in enumerate(free_mib[:3] + free_mib[4:])) == []
    assert len(watch(sample(float(n), gauge(mib)) for n, mib in enumerate([*free_mib[:4], 400]))) == 1


def test_what_the_engine_itself_fills_is_no_trend() -> None:
    """Its prompt cache grows as planned, and stops where it was planned to: the floors still hold for it."""
    grown = [gauge(6000 - 300 * n, own=(20 << 30) + 300 * n * MIB) for n in range(21)]
    changes = watch(sample(float(n), item) for n, item in enumerate(grown))
    ((at_s, outlook),) = changes
    assert at_s == 20  # 0 MiB is free: below the floor, whoever took it
    assert "each second" not in outlook.strains[0].why


def test_it_is_calm_again_only_after_a_while() -> None:
    """Between the thresholds nothing changes; above the upper one it takes half a minute."""
    free = [100] * 5 + [200] * 100 + [400] * 20 + [200] + [400] * 40
    changes = watch(sample(float(n), gauge(mib)) for n, mib in enumerate(free))
    assert [(at_s, len(outlook.strains), outlook.relieved) for at_s, outlook in changes] == [
        (1.0, 1, ()),
        (5 + 100 + 20 + 1 + 30, 0, ("gpu0",)),
    ]


def test_waiting_for_memory_strains_the_host_alone() -> None:
    """Where the kernel reclaims without end there may be free pages: what counts is the time lost."""
    both = (gauge(4000), gauge(4000, name=HOST_MEMORY))
    changes = watch(sample(float(n), *both, stalled=0.3) for n in range(4))
    assert [strain.memory for _, outlook in changes for strain in outlook.strains] == [HOST_MEMORY]
    assert changes[0][1].strains[0].why == "all tasks wait for memory 30% of the time"


def test_a_memory_that_was_not_measured_is_not_judged() -> None:
    """Its state is kept until it is: a listing that is asked for once a minute leaves no gap."""
    low, other = gauge(100), gauge(4000, name="gpu1")
    changes = watch([sample(0, low), sample(60, other), sample(120, low)])
    assert [(at_s, outlook.strains[0].memory) for at_s, outlook in changes] == [(120, "gpu0")]


def test_who_took_it_is_named() -> None:
    """The process that grew most since the engine was ready, never the engine itself."""
    browser = DeviceProcess(pid=7, name="firefox", used_bytes=300 * MIB)
    baseline = sample(0, gauge(3000, ENGINE, browser))
    hog = DeviceProcess(pid=99, name="blender", used_bytes=2500 * MIB)
    grown = DeviceProcess(pid=7, name="firefox", used_bytes=400 * MIB)
    ((_, outlook),) = watch([sample(1, gauge(50, ENGINE, grown, hog))], baseline)
    (strain,) = outlook.strains
    assert [(taker.name, taker.n_bytes) for taker in strain.takers] == [
        ("blender", 2500 * MIB),
        ("firefox", 100 * MIB),
    ]
    assert strain.taken_bytes == 2950 * MIB
    assert describe(strain) == (
        "gpu0: 50.0 MiB of gpu0 is free; taken by blender (process 99, 2.4 GiB), firefox (process 7, 100 MiB)"
    )


def test_nobody_outside_of_a_group_takes_of_it() -> None:
    """However much a process of somebody else grows meanwhile; where the group's own cannot be read, nobody is named."""
    outside = DeviceProcess(pid=99, name="blender", used_bytes=2500 * MIB)
    inside = DeviceProcess(pid=7, name="worker", used_bytes=400 * MIB)
    baseline, limit = gauge(3000, ENGINE), "the control group's memory"

    def words(*sharers: int) -> str:
        now = replace(gauge(50, ENGINE, outside, inside), limit=limit, sharers=frozenset(sharers))
        ((_, outlook),) = watch([sample(1, now)], sample(0, baseline))
        return describe(outlook.strains[0])

    free = f"gpu0: 50.0 MiB of {limit} is free"
    assert words(7, 41) == f"{free}; taken by worker (process 7, 400 MiB)"
    assert words() == f"{free}; others took 2.9 GiB"


def test_a_driver_that_does_not_tell_bytes_or_names() -> None:
    """A new process is named by its number; what is gone is known in sum."""
    baseline = gauge(3000, DeviceProcess(pid=41), own=None)
    now = gauge(50, DeviceProcess(pid=41), DeviceProcess(pid=99), own=None)
    assert [taker.pid for taker in takers(baseline, now, frozenset())] == [99]
    assert taken_bytes(baseline, now) == 2950 * MIB
    ((_, outlook),) = watch([sample(1, gauge(50, own=None))], sample(0, gauge(3000, own=None)))
    assert describe(outlook.strains[0]).endswith("; others took 2.9 GiB")


def test_the_engines_own_growth_is_nobody_elses() -> None:
    """Its pools grew by all that is gone: nothing was taken, so the same plan is not to be tried again."""
    assert taken_bytes(gauge(3000), gauge(50, own=20 * GIB + 2950 * MIB)) == 0
    assert taken_bytes(gauge(3000), gauge(50, own=20 * GIB + 2000 * MIB)) == 950 * MIB


def test_a_forced_plan_has_floors_of_its_own() -> None:
    """Who asked for less than the margin does not want to be told at once."""
    policy = StrainPolicy(floors={"gpu0": Floor(act_bytes=16 * MIB, calm_bytes=32 * MIB)})
    watched = Watched()
    for n in range(5):
        watched, outlook = assess(watched, sample(float(n), gauge(40)), baseline=None, policy=policy)
        assert outlook == Outlook()
    assert watched.strained == ()


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=80))
def test_strained_and_relieved_alternate(free_mib: list[int]) -> None:
    """Each strain is announced once, and relief only after a strain and a time above the upper threshold."""
    changes = watch(sample(float(n), gauge(mib)) for n, mib in enumerate(free_mib))
    kinds = ["relieved" if outlook.relieved else "strained" for _, outlook in changes]
    assert kinds == [("strained", "relieved")[n % 2] for n in range(len(kinds))]
    for at_s, outlook in changes:
        recent = free_mib[max(0, int(at_s - POLICY.calm_s)) : int(at_s) + 1]
        if outlook.relieved:
            assert min(recent) >= 320


@given(st.lists(st.integers(0, 127), min_size=2, max_size=10))
def test_what_stays_low_never_goes_unseen(free_mib: list[int]) -> None:
    """Restated: two samples below the floor, whatever they are, are a strain."""
    assert len(watch(sample(float(n), gauge(mib)) for n, mib in enumerate(free_mib))) == 1


@pytest.mark.parametrize(("name", "act_mib"), [("gpu0", 128), ("gpu7", 128), (HOST_MEMORY, 256)])
def test_each_kind_of_memory_has_its_floor(name: str, act_mib: int) -> None:
    """Devices alike, the host by itself."""
    assert POLICY.floor(name).act_bytes == act_mib * MIB
    assert POLICY.floor(name).calm_bytes > POLICY.floor(name).act_bytes
