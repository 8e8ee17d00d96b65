"""The named faults: what went wrong as facts, and what to do about it as ``help``.

A fault is an exception that ends the command with exit code 1 (2 for wrong usage). A refusal is not a fault: it is
a value, see ``domain.Refusal``. Messages are lower case without a final stop; only ``help`` proposes.
"""

import re
from typing import ClassVar, Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3


_USERINFO: Final = re.compile(r"(?:(?<=//)|(?<=:/))[^/\s@]+@(?=[\w\[])")


def hide_passwords(text: str) -> str:
    """Return the text with user and password of each address (``https://user:password@host``) replaced by asterisks."""
    return _USERINFO.sub("***@", text) if "@" in text else text


class LauncherError(Exception):
    """Something failed; ``code`` names the kind, the message states the facts, ``help`` says what to do."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str, *, help: str | None = None, details: tuple[str, ...] = ()) -> None:  # noqa: A002
        """Hold the facts: one line of ``message``, further lines of ``details``, and one line of ``help``."""
        self.message = hide_passwords(message)
        super().__init__(self.message)
        self.help = None if help is None else hide_passwords(help)
        self.details = tuple(map(hide_passwords, details))


class UsageError(LauncherError):
    """The command line asks for something that has no meaning."""

    code = "usage"
    exit_code = EXIT_USAGE


class ProfileError(LauncherError):
    """A profile file is wrong; ``details`` holds one line per fault, all faults of the file."""

    code = "bad-profile"


class ProfileNotFoundError(LauncherError):
    """No profile, alias or file answers to the name."""

    code = "unknown-model"
    exit_code = EXIT_USAGE


class InventoryError(LauncherError):
    """An inventory file cannot be read, or no reference machine has that name."""

    code = "bad-inventory"
    exit_code = EXIT_USAGE


class MetadataError(LauncherError):
    """A weights file is truncated, absurd or hostile; names the byte ``offset`` and the ``field`` read there."""

    code = "bad-weights-file"

    def __init__(self, message: str, *, offset: int, field: str, help: str | None = None) -> None:  # noqa: A002
        """Hold where the reader stood: ``offset`` in bytes from the start of the stream, and the ``field``."""
        super().__init__(f"{message} (field {field}, offset {offset})", help=help)
        self.offset = offset
        self.field = field


class WeightsMissingError(LauncherError):
    """The chosen weights are not on this machine."""

    code = "weights-missing"


class ModelStoreError(LauncherError):
    """What another program's store holds cannot be used: broken, unfinished, unreadable, leading outside, or for its own engine."""

    code = "model-store"


class RemoteError(LauncherError):
    """A server on the network cannot be reached, is not to be asked, or answers what cannot be used."""

    code = "remote-failed"

    def __init__(
        self,
        message: str,
        *,
        help: str | None = None,  # noqa: A002
        details: tuple[str, ...] = (),
        reason: str = "",
    ) -> None:
        """Hold the facts, and the ``reason`` as the server's own word for it (``GatedRepo``), where it gave one."""
        super().__init__(message, help=help, details=details)
        self.reason = reason


class RemoteAccessError(RemoteError):
    """A server on the network does not let this user read what was asked for."""

    code = "remote-access"


class RemoteMissingError(RemoteError):
    """A server on the network does not have what was asked for."""

    code = "remote-missing"


class DownloadError(LauncherError):
    """Weights cannot be brought to this machine, or not to where they belong."""

    code = "download-failed"


class DiskFullError(DownloadError):
    """There is no room for what is to be downloaded; what has come is kept."""

    code = "disk-full"


class CorruptDownloadError(DownloadError):
    """What came is not what was promised: it was removed, or set aside."""

    code = "wrong-digest"


class ClusterError(LauncherError):
    """A Ray dashboard cannot be reached, or answers what cannot be used."""

    code = "cluster-failed"


class ClusterAccessError(ClusterError):
    """A Ray dashboard wants a token, or another one."""

    code = "cluster-access"


class ForeignApplicationError(ClusterError):
    """An application on a Ray cluster is somebody else's: it is neither replaced nor removed."""

    code = "not-our-application"


class EngineMissingError(LauncherError):
    """No installed engine can run the plan."""

    code = "engine-missing"


class EngineTooOldError(EngineMissingError):
    """The installed build lacks an option that the plan depends on."""

    code = "engine-too-old"


class EngineFailedError(LauncherError):
    """The engine was started and ended, stalled or answered wrongly; ``details`` holds its telling log lines."""

    code = "engine-failed"


class WorkerError(LauncherError):
    """A worker of llama.cpp's RPC cannot be used: not reached, not answering, or of another build."""

    code = "worker-unusable"


class PlacementError(EngineFailedError):
    """The engine placed the model otherwise than planned: a silent fallback to the CPU, for example."""

    code = "placement-mismatch"


class PortInUseError(LauncherError):
    """Another process listens on the serving address."""

    code = "port-in-use"


class AlreadyServedError(LauncherError):
    """A supervisor of this name is alive, or this machine is being measured."""

    code = "already-served"


class NotServedError(LauncherError):
    """No instance of this name is known."""

    code = "not-served"


class EndpointError(LauncherError):
    """The endpoint of a served instance does not answer, or answers what cannot be used."""

    code = "endpoint-failed"


class EndpointAccessError(EndpointError):
    """The endpoint of a served instance wants an API key, or another one."""

    code = "endpoint-access"


class AnswerIncompleteError(EndpointError):
    """An answer ended before it was whole; what came of it was shown."""

    code = "answer-incomplete"


class ContextExceededError(EndpointError):
    """A conversation, with the question at its end, is longer than the context that is served."""

    code = "context-exceeded"


class ApiKeyError(LauncherError):
    """An API key cannot be used: too short, unreadable, or readable by others."""

    code = "bad-api-key"


class NoHomeError(LauncherError):
    """There is no home folder, in which what is not told to be elsewhere would be looked for or kept."""

    code = "no-home"


class StateError(LauncherError):
    """The state directory cannot be used: no permission, no space, or not ours."""

    code = "state-unusable"


class NewerStateError(StateError):
    """A file of the state directory is of a schema that this version does not know: it is left as it is."""

    code = "state-newer"


class UnitError(LauncherError):
    """A unit of systemd is not written or removed: somebody's own file, a service that runs, or what it could not read."""

    code = "unit-refused"
