"""A booted container as tests use it: commands, units, journal, processes and connections inside.

It must not know how the container is made or kept (`image`, `keeper`), nor what the project's units are.
"""

import ctypes
import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import psutil

from tests.systemd.image import ROOT

BOOTED_S: Final = 120.0
GONE_S: Final = 60.0
_CLONE_NEWNET: Final = 0x40000000
_PATH: Final = "/opt/launcher/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def await_(condition: Callable[[], bool], what: str, timeout_s: float) -> float:
    """Wait until it holds; return the seconds that took. The bound is for a machine that does much else."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.05)
    return time.monotonic() - began_s


class Container:
    """One container, kept by a keeper of its own until it is closed."""

    def __init__(self, folder: Path, base: Path, wheels: Path) -> None:
        """Boot ``base`` with a layer of its own in ``folder``, which must be new; it goes with the container."""
        self.folder = folder
        self._leader: psutil.Process | None = None
        self.keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.systemd.keeper", str(folder), str(base), str(wheels)],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the tests; the keeper hears of their end by its stdin
        )
        try:
            self.await_boot()
        except BaseException:
            sys.stderr.write(self.console())
            self.close()
            raise

    def console(self) -> str:
        """Return what came of booting it."""
        with suppress(OSError):
            return (self.folder / "console.log").read_text(errors="replace")
        return "the container has left no console\n"

    def close(self) -> None:
        """End it, and wait until nothing of it is left."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        self.keeper.wait(2 * GONE_S)  # a gigabyte of files is removed

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # --- Its first process ---

    def _find_leader(self) -> psutil.Process | None:
        with suppress(psutil.Error):
            for process in psutil.Process(self.keeper.pid).children(recursive=True):
                if process.name() == "systemd" and (parent := process.parent()) and parent.name() == "systemd-nspawn":
                    return process
        return None

    @property
    def leader(self) -> int:
        """The pid, out here, of the process that is 1 in there."""
        if self._leader is None or not self._leader.is_running() or self._leader.status() == psutil.STATUS_ZOMBIE:
            self._leader = self._find_leader()
        if self._leader is None:
            message = f"the container does not run\n{self.console()}"
            raise RuntimeError(message)
        return self._leader.pid

    def await_boot(self) -> None:
        """Wait until systemd in there has started all that is enabled."""
        await_(self._is_booted, "the container boots", BOOTED_S)

    def _is_booted(self) -> bool:
        assert self.keeper.poll() is None, f"the container ended while it booted\n{self.console()}"
        if self._find_leader() is None:
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded", "starting"} and self._is_idle()

    def _is_idle(self) -> bool:
        return not self.run("systemctl", "list-jobs", "--no-legend", "basic.target", check=False).stdout.strip()

    def reboot(self) -> None:
        """Reboot it as an administrator does, and wait until another systemd runs in there."""
        before = psutil.Process(self.leader)
        self.run("systemctl", "reboot", check=False)
        await_(lambda: not before.is_running(), "the container goes down", GONE_S)
        await_(lambda: self._find_leader() is not None, "the container comes up", BOOTED_S)
        self.await_boot()

    # --- Commands ---

    def _enter(self, *argv: str, timeout_s: float) -> list[str]:
        inside = [
            "env",
            "-i",
            "--chdir=/",
            f"PATH={_PATH}",
            "LANG=C.UTF-8",
            "HOME=/root",
            "TERM=dumb",
            "SYSTEMD_COLORS=0",
        ]
        bound = ["timeout", "--kill-after=5", f"{timeout_s:.0f}"]
        return ["nsenter", "--target", str(self.leader), "--all", "--", *inside, *bound, *argv]

    def run(
        self, *argv: str, check: bool = True, timeout_s: float = 60.0, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root in there, with ``text`` on its stdin; a failure that is checked tells its output."""
        done = subprocess.run(
            self._enter(*argv, timeout_s=timeout_s),
            input=text or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s + 30,
            check=False,
        )
        if check:
            told = f"{shlex.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            assert done.returncode == 0, told
        return done

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Write a file in there, with the folders above it."""
        self.run("install", "-D", "-m", mode, "/dev/stdin", path, text=text)

    # --- Units and their journal ---

    def show(self, unit: str, *properties: str, user: tuple[str, ...] = ()) -> dict[str, str]:
        """Return properties of a unit as systemd tells them; all of them where none is named."""
        words = [f"--property={','.join(properties)}"] if properties else []
        told = self.run(*user, "systemctl", *(["--user"] if user else []), "show", *words, unit).stdout
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def cursor(self) -> str:
        """Return the place in the journal where it ends now."""
        told = self.run("journalctl", "--sync", check=False)
        told = self.run("journalctl", "--lines=1", "--show-cursor", "--quiet", check=False)
        return told.stdout.rpartition("-- cursor: ")[2].strip()

    def journal(self, *words: str) -> list[dict[str, Any]]:
        """Return entries of the journal, the oldest first, as the journal holds them."""
        told = self.run("journalctl", "--output=json", "--all", "--quiet", "--no-pager", *words).stdout
        return [json.loads(line) for line in told.splitlines()]

    def told(self, *words: str) -> str:
        """Return the journal as a person reads it."""
        return self.run("journalctl", "--output=short-precise", "--quiet", "--no-pager", *words, check=False).stdout

    # --- Processes and connections ---

    def processes(self) -> list[psutil.Process]:
        """Return every living process in there, with the pids that they have out here."""
        return list(self._living())

    def _living(self) -> Iterator[psutil.Process]:
        space = Path(f"/proc/{self.leader}/ns/pid").readlink()
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == space and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def named(self, word: str) -> list[psutil.Process]:
        """Return the processes with this word in a name or argument."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if any(word in part for part in (process.name(), *process.cmdline())):
                    found.append(process)
        return found

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Return a connection to a port of the loopback in there."""
        leader = self.leader

        def inside() -> socket.socket:
            libc = ctypes.CDLL(None, use_errno=True)
            space = os.open(f"/proc/{leader}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(space, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(space)
            return socket.create_connection(("127.0.0.1", port), timeout_s)

        with ThreadPoolExecutor(1) as thread:  # a namespace is a thread's own; a socket stays in that it was made in
            return thread.submit(inside).result()

    def http(self, port: int, timeout_s: float = 120.0) -> "Connection":
        """Return an HTTP connection to a port of the loopback in there."""
        return Connection(self, port, timeout_s)


class Connection(http.client.HTTPConnection):
    """An HTTP connection that begins in a container's network namespace."""

    def __init__(self, container: Container, port: int, timeout_s: float) -> None:
        """Connect when first asked."""
        super().__init__("127.0.0.1", port, timeout=timeout_s)
        self._container = container
        self._bound_s = timeout_s

    def connect(self) -> None:
        """Connect in there."""
        self.sock = self._container.connect(self.port, self._bound_s)
