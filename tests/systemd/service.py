"""One unit of the project in a container: its life as an administrator steers it, its state, its endpoint.

It must not know what a test expects.
"""

import http.client
import json
from contextlib import suppress
from typing import Any, Final

import psutil

from tests.systemd.container import GONE_S, Container, await_

READY_S: Final = 150.0
"""A start takes some seconds on an idle 2-core machine; many times that beside other programs."""
_CHAT: Final[dict[str, Any]] = {"prompt": "Three colours: red,", "max_tokens": 8, "temperature": 0}


class Service:
    """A unit ``launch@NAME.service``, and the port that it answers at."""

    def __init__(self, container: Container, name: str, port: int = 8080) -> None:
        """Name it; nothing is done yet."""
        self.container = container
        self.name = name
        self.port = port
        self.unit = f"launch@{name}.service"
        self._drop_in = f"/etc/systemd/system/{self.unit}.d/90-test.conf"
        self._is_changed = False

    # --- What an administrator does ---

    def install(self, *options: str) -> None:
        """Install the unit anew with the project's own command."""
        self.container.run("launch", "systemd", "install", self.name, "--overwrite", *options, timeout_s=120)
        self.container.run("systemctl", "daemon-reload")

    def drop_in(self, *lines: str) -> None:
        """Change settings of the stopped service, until `restore`."""
        self.stop()
        self._is_changed = True
        self.container.write(self._drop_in, "\n".join(["[Service]", *lines, ""]))
        self.container.run("systemctl", "daemon-reload")

    def restore(self) -> None:
        """Take such settings away."""
        if self._is_changed:
            self.stop()
            self.container.run("rm", "-f", self._drop_in)
            self.container.run("systemctl", "daemon-reload")
            self._is_changed = False

    def start(self) -> None:
        """Start it, and wait until systemd has it active."""
        self.container.run("systemctl", "reset-failed", self.unit, check=False)  # the count of starts, too
        self.container.run("systemctl", "start", self.unit, timeout_s=READY_S)

    def ensure_active(self) -> None:
        """Start it where it is not active."""
        if self.state() != "active":
            self.start()

    def stop(self) -> None:
        """Stop it, and wait until it is gone."""
        self.container.run("systemctl", "stop", self.unit, timeout_s=120)

    # --- What is told of it ---

    def show(self, *properties: str) -> dict[str, str]:
        """Return properties of the unit."""
        return self.container.show(self.unit, *properties)

    def state(self) -> str:
        """Return systemd's word for its state."""
        return self.show("ActiveState")["ActiveState"]

    def main(self) -> psutil.Process:
        """Return the launcher's process."""
        inside = int(self.show("MainPID")["MainPID"])
        (found,) = [process for process in self.container.processes() if pid_inside(process) == inside]
        return found

    def engines(self) -> list[psutil.Process]:
        """Return the serving engines that live; one that is asked for its version serves nothing."""
        found = []
        for process in self.container.processes():
            with suppress(psutil.Error):
                if process.name().startswith("llama-server") and "--port" in process.cmdline():
                    found.append(process)
        return found

    def left(self) -> list[str]:
        """Return the command lines of all that lives of the launcher and its engines."""
        return [" ".join(process.cmdline()) for process in self.container.named("/opt/launcher/")]

    def status(self) -> dict[str, Any]:
        """Return what `launch status` tells of it, to root."""
        words = ["env", "LAUNCHER_STATE_DIR=/var/lib/launcher", "launch", "status", self.name, "--json"]
        told: dict[str, Any] = json.loads(self.container.run(*words).stdout)
        return told

    def journal(self, *words: str) -> list[dict[str, Any]]:
        """Return the journal's entries of the unit's processes and of what systemd says of it."""
        return self.container.journal(f"--unit={self.unit}", *words)

    # --- Its endpoint ---

    def get(self, path: str, key: str | None = None) -> tuple[int, str]:
        """Return status and body of what is told at a path."""
        connection = self.container.http(self.port)
        try:
            connection.request("GET", path, headers=_with_key(key))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether its endpoint says so."""
        with suppress(OSError, http.client.HTTPException):
            return self.get("/health")[0] == 200
        return False

    def ask(self, key: str | None = None) -> int:
        """Ask for a completion; return the status, having read the whole answer."""
        connection = self.container.http(self.port)
        try:
            headers = {"Content-Type": "application/json", **_with_key(key)}
            connection.request("POST", "/v1/completions", json.dumps(_CHAT), headers)
            response = connection.getresponse()
            body = json.loads(response.read())
            assert response.status != 200 or body["choices"][0]["text"], body
            return response.status
        finally:
            connection.close()

    def await_restart(self, before: psutil.Process) -> None:
        """Wait until systemd has it active with another main process than this one."""
        await_(lambda: not before.is_running(), "the launcher's process ends", 2 * GONE_S)
        await_(lambda: self.state() == "active", "systemd starts it again", READY_S)


def pid_inside(process: psutil.Process) -> int:
    """Return the number that a process of a container has in there."""
    with open(f"/proc/{process.pid}/status") as stream:  # noqa: PTH123 - no path of a file
        for line in stream:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    message = f"process {process.pid} has no namespace"
    raise RuntimeError(message)


def _with_key(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}
