"""The user unit, under the systemd of a user who lingers."""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.systemd.container import Container, await_
from tests.systemd.service import READY_S, Service

pytestmark = [pytest.mark.systemd, pytest.mark.engine, pytest.mark.heavy, pytest.mark.timeout(600)]

_USER: Final = "alice"
_PORT: Final = 8090


@pytest.fixture
def alice(container: Container) -> Iterator[tuple[str, ...]]:
    """A user whose systemd runs without a session: the words that run a command as she would."""
    container.run("useradd", "--create-home", _USER)
    uid = container.run("id", "-u", _USER).stdout.strip()
    # Newer versions hear only who is in the container's own control groups; commands from outside are not.
    loginctl = ("systemd-run", "--quiet", "--wait", "--pipe", "loginctl")
    container.run(*loginctl, "enable-linger", _USER)
    yield (
        *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups", "env", f"--chdir=/home/{_USER}"),
        *(f"HOME=/home/{_USER}", f"USER={_USER}", f"XDG_RUNTIME_DIR=/run/user/{uid}"),
    )
    container.run(*loginctl, "disable-linger", _USER)
    container.run("systemctl", "stop", f"user@{uid}.service")
    container.run("userdel", "--remove", _USER, check=False)


def test_a_user_serves_without_being_root(container: Container, alice: tuple[str, ...]) -> None:
    """Installed, started, asked, stopped and uninstalled by a user; nothing of it is left."""
    service = Service(container, "gemma3-270m", _PORT)
    systemctl = (*alice, "systemctl", "--user")

    def state() -> dict[str, str]:
        return container.show(service.unit, "ActiveState", "Result", "NRestarts", user=alice)

    await_(lambda: container.run(*systemctl, "is-system-running", check=False).stdout.strip() == "running", "up", 60)
    container.run(*alice, "launch", "systemd", "install", service.name, "--user", "--port", str(_PORT), timeout_s=120)
    container.run(*systemctl, "daemon-reload")
    verified = container.run(*alice, "systemd-analyze", "--user", "--man=no", "verify", service.unit, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    container.run(*systemctl, "start", service.unit, timeout_s=READY_S)
    assert state() == {"ActiveState": "active", "Result": "success", "NRestarts": "0"}
    assert service.ask() == 200
    container.run(*systemctl, "stop", service.unit, timeout_s=120)
    assert state()["ActiveState"] == "inactive"
    assert not [process for process in container.named("/opt/launcher/") if process.username() == _USER]
    container.run(*alice, "launch", "systemd", "uninstall", service.name, "--user")
