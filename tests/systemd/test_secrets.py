"""What the journal tells, and that a key is nowhere to be read but in its own file."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.systemd.service import Service

pytestmark = [pytest.mark.systemd, pytest.mark.engine, pytest.mark.heavy, pytest.mark.timeout(600)]

_KEY_FILE: Final = "/root/api-keys"


@pytest.fixture
def key(service: Service) -> Iterator[str]:
    """A new API key, which the service wants to see until the test has ended."""
    key = secrets.token_hex(24)
    service.stop()
    service.container.write(_KEY_FILE, f"{key}\n", mode="600")
    service.install("--api-key-file", _KEY_FILE)
    yield key
    service.stop()
    service.install()
    service.container.run("rm", _KEY_FILE)


def test_a_key_by_credential_opens_the_endpoint_and_shows_nowhere(service: Service, key: str) -> None:
    """It is asked for, and is in no property, argument, environment, journal or status of any process in there."""
    service.start()
    assert service.ask() == 401
    assert service.ask("not-" + key) == 401
    assert service.ask(key) == 200
    told = {
        "systemctl show": "\n".join(f"{name}={value}" for name, value in service.show().items()),
        "systemctl cat": service.container.run("systemctl", "cat", service.unit).stdout,
        "the journal": service.container.run("journalctl", "--output=export", "--all", "--no-pager").stdout,
        "launch status": str(service.status()),
        "/health": service.get("/health", key)[1],
        "/metrics": service.get("/metrics", key)[1],
    }
    assert service.unit in told["the journal"]
    for process in service.container.processes():
        for name in ("cmdline", "environ"):
            told[f"{name} of {process.name()} {process.pid}"] = _read(Path(f"/proc/{process.pid}/{name}"))
    assert sum("/opt/launcher/" in text for text in told.values()) >= 2
    assert [where for where, text in told.items() if key in text] == []
    files = service.container.run("grep", "-rlFf", _KEY_FILE, "/etc", "/var", "/run", check=False).stdout.split()
    assert files == [f"/run/credentials/{service.unit}/api-key"]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


def test_the_journal_is_readable(service: Service) -> None:
    """One event a line, each whole and of the launcher: no escape, no carriage return, nothing cut or blank."""
    service.stop()
    cursor = service.container.cursor()
    service.start()
    service.stop()
    entries = [e for e in service.journal(f"--after-cursor={cursor}") if e.get("_TRANSPORT") == "stdout"]
    lines = [entry["MESSAGE"] for entry in entries]
    assert any("answers at http://" in line for line in lines), lines
    assert any(line.startswith("stopping") for line in lines), lines
    assert any(line.startswith("stopped") for line in lines), lines
    for line in lines:
        assert isinstance(line, str), f"not text: {bytes(line)!r}"  # journald tells bytes that are no text as numbers
        assert line.strip(), lines
        assert line.isprintable(), repr(line)
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"launch"}
