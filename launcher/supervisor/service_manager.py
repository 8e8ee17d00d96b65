"""Send systemd the messages of its ``sd_notify`` protocol.

Our own forty lines rather than a dependency: the protocol is one datagram of ``NAME=VALUE`` lines, stable by promise
(sd_notify(3)), while the bindings at hand need libsystemd or are kept by nobody. It must not know phases, engines, or what
is worth a message.
"""

import os
import socket
import threading
from collections.abc import Mapping, MutableMapping
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE: Final = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE: Final = "WATCHDOG_PID"
_MICROSECONDS: Final = 1_000_000
_MAX_TEXT: Final = 400  # characters of a value: a status is one line of `systemctl status`


class ServiceManager:
    """Where messages go; without an address they go nowhere.

    A message that cannot be taken now (the manager's queue is full) is kept, and goes with the next one: a later value
    replaces an earlier one of the same name. A sign of life is of its moment, and is not kept.
    """

    def __init__(self, address: str | None = None, *, watchdog_s: float | None = None) -> None:
        """Hold where the manager listens: a path, or ``@NAME`` in the abstract namespace."""
        self._socket: socket.socket | None = None
        self._address = address
        self._pending: dict[str, str] = {}
        self._lock = threading.Lock()  # files are read in a thread, which tells how far it is
        self._has_been_ready = False
        self.watchdog_s = watchdog_s
        """Within so many seconds it wants to hear ``WATCHDOG=1``; ``None`` where it does not ask for it."""

    @property
    def is_listening(self) -> bool:
        """Whether anybody is told."""
        return self._address is not None

    def tell(self, message: Mapping[str, str] | None = None) -> None:
        """Send a message, together with what could not be sent before; never waits, never fails."""
        if self._address is None:
            return
        with self._lock:
            self._has_been_ready |= "READY" in (message or {})
            self._pending |= {name: _one_line(value) for name, value in (message or {}).items()}
            if not self._pending:
                return
            data = "".join(f"{name}={value}\n" for name, value in self._pending.items())
            target = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
            try:
                self._open().sendto(data.encode("utf-8", "replace"), target)
            except OSError:  # a manager that restarts has no socket for a moment
                self._pending.pop("WATCHDOG", None)
                return
            self._pending.clear()

    def tell_progress(self, text: str, *, next_within_s: float = 60.0) -> None:
        """Tell what a start is at before there is an engine, a download say, and that it goes on; from any thread.

        The manager waits so long for the next such message, or for READY, at least. After that only the watchdog would be
        put off, which is not for this to say.
        """
        more = {} if self._has_been_ready else {"EXTEND_TIMEOUT_USEC": microseconds(next_within_s)}
        self.tell({"STATUS": f"starting: {text}", **more})

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        return self._socket

    def close(self) -> None:
        """Close the socket; a later message opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def microseconds(seconds: float) -> str:
    """Return a time as the protocol writes it."""
    return str(round(seconds * _MICROSECONDS))


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:_MAX_TEXT]


def take_over(environ: MutableMapping[str, str]) -> ServiceManager:
    """Return the manager that started this process, and take its address out of the environment.

    What this process starts could speak in its name otherwise. A watchdog that is meant for another process is none.
    """
    address = environ.pop(SOCKET_VARIABLE, "")
    period = environ.pop(WATCHDOG_VARIABLE, "")
    pid = environ.pop(WATCHDOG_PID_VARIABLE, "")
    if not address.startswith(("/", "@")) or len(address) == 1:
        return ServiceManager()  # none, or a kind of socket that only another machine listens on
    is_ours = pid in {"", str(os.getpid())}
    watchdog_s = int(period) / _MICROSECONDS if is_ours and period.isdecimal() and int(period) > 0 else None
    return ServiceManager(address, watchdog_s=watchdog_s)
