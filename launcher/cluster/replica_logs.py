"""Finds what is new in the logs of an application's replicas.

Ray's dashboard gives the last lines of a file, never "from here on": what is new is told by where the last look's end is found
again. Each answer is bounded, and so is what is kept. It must not know what a line means.
"""

from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import urlencode

from launcher.cluster.serve_details import Replica
from launcher.errors import ClusterError
from launcher.inventory.text import printable, without_styles

N_LINES: Final = 400
"""Of one replica, at one look; what it writes beyond that between two looks is left out, and said to be."""
_N_REPLICAS: Final = 16
"""Whose logs are followed: of many copies the newest tell enough."""
_MAX_LINE: Final = 4000
_N_KNOWN: Final = 3 * 64
_HEADS: Final = (":job_id:", ":actor_name:")
"""What Ray writes at the beginning of a worker's output, for itself."""
_LOST: Final = "[... lines are left out ...]"


class ReplicaLogs:
    """The logs of one application's replicas; ``fetch`` returns the answer to a path of the dashboard."""

    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        """Know nothing yet."""
        self._fetch = fetch
        self._seen: dict[str, list[str]] = {}

    def read(self, replicas: tuple[Replica, ...]) -> Iterator[str]:
        """Yield the lines that are new, each with its replica's name; a log that cannot be had now is skipped."""
        for replica in replicas[-_N_REPLICAS:]:
            for path in log_paths(replica):
                yield from self._read_one(path, printable(replica.replica_id))
        while len(self._seen) > _N_KNOWN:
            self._seen.pop(next(iter(self._seen)))

    def _read_one(self, path: str, name: str) -> Iterator[str]:
        try:
            text = without_styles(self._fetch(path).decode("utf-8", "replace"))
        except ClusterError:
            return
        said = [line for line in text.splitlines() if not line.startswith(_HEADS)]
        lines = [printable(line)[:_MAX_LINE] for line in said]
        seen = self._seen.pop(path, None)
        self._seen[path] = lines  # at the end: those that were not asked for are forgotten first
        yield from (f"[{name}] {line}" for line in find_new(seen, lines))


def log_paths(replica: Replica) -> tuple[str, ...]:
    """Return the paths at which the dashboard gives the last lines of what a replica wrote: Serve's log of it, and its output.

    With a slash before its name Ray 2.60 finds no file, and says so with an empty answer.
    """
    name = (replica.log_file_path or "").lstrip("/")
    files = [{"node_id": replica.node_id, "filename": name}]
    if replica.actor_id is not None:
        files += [{"actor_id": replica.actor_id, "suffix": suffix} for suffix in ("out", "err")]
    return tuple(f"/api/v0/logs/file?{urlencode({**file, 'lines': N_LINES, 'timeout': 5})}" for file in files)


def find_new(before: list[str] | None, now: list[str]) -> list[str]:
    """Return the lines of ``now`` that follow on ``before``, both the last lines of one growing file."""
    if not before:
        return now
    for n_same in range(min(len(before), len(now)), 0, -1):
        if before[-n_same:] == now[:n_same]:
            return now[n_same:]
    return [_LOST, *now] if now else []
