"""The life of the system unit: from its start to READY through what kills it to its stop."""

import json
import re
import signal
import time
from typing import Final

import pytest

from tests.systemd.client import SlowReader, asking
from tests.systemd.container import GONE_S, await_
from tests.systemd.service import READY_S, Service

pytestmark = [pytest.mark.systemd, pytest.mark.engine, pytest.mark.heavy, pytest.mark.timeout(600)]

_SHORT: Final = ("WatchdogSec=20", "RestartSec=1")
"""The unit's own minute and ten seconds would be waited for."""


def test_it_is_active_only_once_the_canary_was_answered(service: Service) -> None:
    """Activating, with a status that tells of the start; active after the engine is ready, and answering at that moment."""
    service.stop()
    service.container.run("systemctl", "start", "--no-block", service.unit)
    seen: list[dict[str, str]] = []

    def is_active() -> bool:
        seen.append(service.show("ActiveState", "StatusText", "Result"))
        assert seen[-1]["ActiveState"] in {"activating", "active"}, seen[-1]
        return seen[-1]["ActiveState"] == "active"

    await_(is_active, "it is active", READY_S)
    assert service.is_ready()
    assert service.ask() == 200
    told = {look["StatusText"] for look in seen if look["ActiveState"] == "activating"}
    assert any(text.startswith("starting") for text in told), told
    await_(lambda: service.show("StatusText")["StatusText"].startswith("ready"), "the status says ready", GONE_S)
    active = service.show("ActiveEnterTimestampMonotonic", "Type", "NRestarts")
    active_at = int(active["ActiveEnterTimestampMonotonic"]) / 1e6 + time.time() - time.monotonic()
    assert active["Type"] == "notify"
    assert active["NRestarts"] == "0"
    assert service.status()["record"]["ready_at"] <= active_at


def test_the_installed_unit_verifies_in_silence(serving: Service) -> None:
    """`systemd-analyze verify` prints nothing: of unknown keys and bad values it tells in words alone.

    Whether the manual pages that it names are there is not asked: the small system in there has none.
    """
    told = serving.container.run("systemd-analyze", "--man=no", "verify", serving.unit, check=False)
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


def test_the_installed_unit_exposes_little(serving: Service) -> None:
    """`systemd-analyze security` gives the running unit at most 2.5 of 10."""
    told = serving.container.run("systemd-analyze", "security", "--no-pager", serving.unit, check=False).stdout
    level = re.search(r"Overall exposure level for .*: ([0-9.]+) ", told)
    assert level is not None, told
    assert float(level[1]) <= 2.5, told


def test_a_killed_engine_costs_nobody_an_answer(serving: Service) -> None:
    """Requests are held until the next engine answers them; for systemd nothing has happened."""
    before = serving.show("MainPID", "ActiveEnterTimestampMonotonic", "NRestarts")
    with asking(serving) as clients:
        (engine,) = serving.engines()
        engine.kill()
        await_(lambda: not engine.is_running(), "the engine ends", GONE_S)
        assert serving.ask() == 200
        assert serving.state() == "active"
    assert not clients.faults
    assert set(clients.statuses) == {200}
    assert serving.show("MainPID", "ActiveEnterTimestampMonotonic", "NRestarts") == before
    (again,) = serving.engines()
    assert again != engine


def test_a_killed_launcher_is_started_again_and_leaves_no_engine(service: Service) -> None:
    """It is started once more; the engine of before is gone, and there is one again."""
    service.drop_in(*_SHORT)
    service.start()
    main, engines = service.main(), service.engines()
    main.kill()
    service.await_restart(main)
    assert service.show("NRestarts")["NRestarts"] == "1"
    assert not [engine for engine in engines if engine.is_running()]
    assert len(service.engines()) == 1
    assert service.ask() == 200


def test_a_launcher_that_hangs_is_killed_by_the_watchdog_and_started_again(service: Service) -> None:
    """Stopped by a signal it feeds no watchdog; systemd kills all of it and starts it anew."""
    service.drop_in(*_SHORT)
    service.start()
    main, engines = service.main(), service.engines()
    main.send_signal(signal.SIGSTOP)
    service.await_restart(main)
    assert service.show("NRestarts")["NRestarts"] == "1"
    assert any("Watchdog timeout" in str(entry["MESSAGE"]) for entry in service.journal())
    assert not [engine for engine in engines if engine.is_running()]
    assert len(service.engines()) == 1
    assert service.ask() == 200


def test_an_idle_service_is_let_live_by_its_watchdog(service: Service) -> None:
    """Over more than two of the watchdog's times nothing happens to it, though nobody asks."""
    service.drop_in("WatchdogSec=8")
    service.start()
    before = service.show("MainPID", "NRestarts")
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        assert service.show("MainPID", "NRestarts") == before
        time.sleep(1)
    assert service.state() == "active"


def test_a_stop_lets_a_slow_client_have_its_end(serving: Service) -> None:
    """The stream ends with [DONE] or an error event; the unit is inactive in its time, and nothing of it is left."""
    client = SlowReader(serving, 1500)
    (bound,) = serving.show("TimeoutStopUSec").values()
    began_s = time.monotonic()
    serving.stop()
    took_s = time.monotonic() - began_s
    events = [line[6:] for line in client.read_rest().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]" or "error" in json.loads(events[-1]), events[-1]
    assert took_s < _seconds(bound)
    ended = serving.show("ActiveState", "Result", "NRestarts")
    assert (ended["ActiveState"], ended["Result"]) == ("inactive", "success")
    assert not serving.left()


def _seconds(span: str) -> float:
    """Return the seconds of a time as systemd writes it: ``1min 30s``."""
    units = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
    total = 0.0
    for part in span.split():
        number = part.rstrip("abcdefghijklmnopqrstuvwxyz")
        total += float(number) * units[part.removeprefix(number)]
    return total


@pytest.mark.parametrize(("name", "code"), [("llama3.1-405b", 3), ("no-such-profile", 2)])
def test_a_refusal_is_no_crash(installed: Service, name: str, code: int) -> None:
    """A plan that does not fit and a name that nobody knows end with their exit code, once."""
    refused = Service(installed.container, name)
    refused.container.run("systemctl", "reset-failed", refused.unit, check=False)
    started = refused.container.run("systemctl", "start", refused.unit, check=False, timeout_s=120)
    assert started.returncode == 1, started.stderr
    ended = refused.show("ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts")
    assert ended == {
        "ActiveState": "failed",
        "SubState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": str(code),
        "NRestarts": "0",
    }
    told = [str(entry["MESSAGE"]) for entry in refused.journal()]
    assert any(line.startswith("error") for line in told), told
    assert any(line.startswith("help:") for line in told), told


def test_enabled_it_comes_back_with_the_machine(serving: Service) -> None:
    """After a reboot nobody starts it; it is active, serves another engine, and answers."""
    container = serving.container
    container.run("systemctl", "enable", serving.unit)
    try:
        container.reboot()
        await_(lambda: serving.state() == "active", "it is active after the reboot", READY_S)
        assert serving.show("NRestarts")["NRestarts"] == "0"
        assert serving.ask() == 200
    finally:
        container.run("systemctl", "disable", serving.unit)
