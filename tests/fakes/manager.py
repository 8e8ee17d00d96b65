"""A service manager's side of ``sd_notify``: a real datagram socket, and all that arrives with who sent it."""

import socket
import struct
import threading
import time
from pathlib import Path
from typing import NamedTuple

_UCRED = struct.Struct("3i")


class Message(NamedTuple):
    """One datagram: when it came, from which process, and its lines."""

    at_s: float
    pid: int
    fields: dict[str, str]


class Manager:
    """Listens until it is closed."""

    def __init__(self, path: Path | str) -> None:
        """Bind; ``@NAME`` is in the abstract namespace."""
        self.address = str(path)
        self.messages: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)
        self._socket.settimeout(0.05)
        self._is_closed = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._is_closed:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(_UCRED.size))
            except TimeoutError:
                continue
            pid = next((_UCRED.unpack(value)[0] for _, kind, value in ancillary if kind == socket.SCM_CREDENTIALS), 0)
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            self.messages.append(Message(time.monotonic(), pid, fields))

    def values(self, name: str) -> list[str]:
        """All values of one name, in the order in which they came."""
        return [message.fields[name] for message in list(self.messages) if name in message.fields]

    def times(self, name: str) -> list[float]:
        """When each came."""
        return [message.at_s for message in list(self.messages) if name in message.fields]

    def close(self) -> None:
        """Stop listening."""
        self._is_closed = True
        self._thread.join()
        self._socket.close()
