"""Find, before anything is started, what would make a start fail: the program, the weights, the port, the disk.

It must not start or change anything.
"""

import errno
import shutil
import socket
from pathlib import Path
from typing import Final

from launcher.domain import Address, Command, Plan
from launcher.errors import EngineMissingError, PortInUseError, StateError, WeightsMissingError
from launcher.store import free_bytes
from launcher.supervisor.processes import who_listens
from launcher.units import format_bytes

_MIN_FREE_BYTES: Final = 1 << 20  # the record, the guard's record and the first lines of the log


def check_start(command: Command, plan: Plan | None, folder: Path) -> None:
    """Raise what stands in the way of the command: each fault names the fact and the way out.

    Raises:
        EngineMissingError: the program is not there or not executable.
        WeightsMissingError: the plan's weights are not there.
        StateError: the disk of the state directory is full.
    """
    if shutil.which(command.argv[0]) is None:
        message = f"the engine {command.argv[0]} is not there or cannot be executed"
        raise EngineMissingError(message, help="see the engines that are found here with `launch hardware`")
    if plan is not None and plan.artifact.local_path is not None and not Path(plan.artifact.local_path).exists():
        message = f"the weights of `{plan.model}` are not at {plan.artifact.local_path}"
        raise WeightsMissingError(
            message, help="correct the profile's `local_path`, or give the path of the file itself"
        )
    n_free = free_bytes(folder)
    if n_free < _MIN_FREE_BYTES:
        message = f"the disk of {folder} is full: {format_bytes(n_free)} free"
        raise StateError(message, help="free some disk space, or set LAUNCHER_STATE_DIR to a folder on another disk")


def check_port(address: Address) -> None:
    """Raise where the address cannot be listened on at this moment.

    Raises:
        PortInUseError: somebody listens there, or the address is not this machine's.
    """
    port = address.port or 0
    try:
        family, *_, where = socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: a port whose last connections still linger in TIME_WAIT is free, one that is listened on not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name that could be asked for
        holder = who_listens(port) if getattr(error, "errno", None) == errno.EADDRINUSE else None
        why = (getattr(error, "strerror", None) or str(error)).lower()
        said = f"is taken by {holder}" if holder else f"cannot be listened on: {why}"
        message = f"{address.host}:{port} {said}"
        raise PortInUseError(message, help="choose another with `--port`, or end what listens there") from error


def free_port(host: str) -> int:
    """Return a port of ``host`` that nobody listens on now; the engine's own bind decides."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
