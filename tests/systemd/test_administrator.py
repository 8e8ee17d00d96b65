"""What an administrator does beside the ordinary: weights in a closed home, awkward paths, a low port, two models at once."""

import json
import secrets
import shlex
import signal
from collections.abc import Iterator
from typing import Final

import pytest

from tests.systemd.container import await_
from tests.systemd.service import READY_S, Service

pytestmark = [pytest.mark.systemd, pytest.mark.engine, pytest.mark.heavy, pytest.mark.timeout(600)]

_HOME: Final = "/home/ann"
_WEIGHTS: Final = f"{_HOME}/My 100% $models; a\\b:c/w %i.gguf"
_KEYS: Final = "/root/my-keys;100%i"
_PORT: Final = 81
_UNITS: Final = "/etc/systemd/system"


@pytest.fixture
def key(serving: Service) -> Iterator[str]:
    """A key in a file of root's, and weights that others may read in a home that they may not enter."""
    run = serving.container.run
    key = secrets.token_hex(24)
    serving.container.write(_KEYS, f"{key}\n", mode="600")
    folder = shlex.quote(_WEIGHTS.rpartition("/")[0])
    run("sh", "-c", f"mkdir -p {folder} && cp /var/cache/private/launcher/models/*.gguf {shlex.quote(_WEIGHTS)}")
    run("chmod", "644", _WEIGHTS)
    run("chmod", "700", _HOME)
    yield key
    run("rm", "-rf", _HOME, _KEYS)


@pytest.fixture
def second(serving: Service, key: str) -> Iterator[Service]:
    """A second unit, installed for these weights; gone afterwards."""
    assert key
    words = ["launch", "systemd", "render", _WEIGHTS, "--json", "--port", str(_PORT), "--api-key-file", _KEYS]
    unit: str = json.loads(serving.container.run(*words).stdout)["unit"]
    words = [word for word in words if word != "--json"]
    serving.container.run(*words[:2], "install", *words[3:])
    serving.container.run("systemctl", "daemon-reload")
    service = Service(serving.container, unit.removeprefix("launch@").removesuffix(".service"), _PORT)
    yield service
    service.stop()
    serving.container.run("launch", "systemd", "uninstall", service.name)
    serving.container.run("systemctl", "daemon-reload")


def test_weights_in_a_closed_home_are_served_at_a_low_port_beside_another_model(
    serving: Service, second: Service, key: str
) -> None:
    """Every path is read by systemd as it was meant, the service sees that one file of the home, and both share a user."""
    second.start()
    assert second.ask() == 401
    assert second.ask(key) == 200
    assert serving.ask() == 200
    users = {service.main().uids().effective for service in (serving, second)}
    assert len(users) == 1
    assert users != {0}
    look = ["nsenter", "--mount", "--target", second.show("MainPID")["MainPID"], "find", "/home", "-type", "f"]
    assert serving.container.run(*look).stdout == f"{_WEIGHTS}\n"


def test_a_unit_that_runs_or_is_enabled_is_not_taken_away(serving: Service, second: Service) -> None:
    """The command that ends it is said; after it the unit goes, and the other model's stays as it is."""
    run = serving.container.run
    words = ["launch", "systemd", "uninstall", second.name]
    run("systemctl", "enable", second.unit)
    second.start()
    refused = run(*words, check=False)
    assert refused.returncode == 1
    command = f"systemctl disable --now {second.unit}"
    assert command in refused.stderr
    assert second.state() == "active"
    run(*shlex.split(command), timeout_s=120)
    gone = run(*words).stdout
    assert f"removed   {_UNITS}/{second.unit}.d/50-launcher.conf" in gone
    assert f"{_UNITS}/launch@.service" not in gone
    assert serving.ask() == 200
    again = run("launch", "systemd", "install", serving.name).stdout
    assert "written" not in again
    assert "replaced" not in again
    assert f"{serving.unit} runs as it is installed" in again


def test_an_engine_that_hangs_is_replaced_before_the_watchdog_bites(serving: Service) -> None:
    """Stopped by a signal it answers nothing: the launcher's own looks find that first, and for systemd nothing ends."""
    before = serving.show("MainPID", "NRestarts", "WatchdogUSec")
    (engine,) = serving.engines()
    engine.send_signal(signal.SIGSTOP)
    await_(lambda: not engine.is_running(), "the hung engine is killed", READY_S)
    assert serving.ask() == 200
    assert serving.show("MainPID", "NRestarts", "WatchdogUSec") == before
    assert before["WatchdogUSec"] == "1min"
    told = [str(entry["MESSAGE"]) for entry in serving.journal("--since=-5min")]
    assert any("the engine hangs" in text for text in told)
