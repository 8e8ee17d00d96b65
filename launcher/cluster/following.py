"""Where an application stands, by what Ray Serve tells of it.

Pure. Ray's states, as they were seen with 2.60.0 (``tests/transcripts/ray``): one that cannot be placed stays DEPLOYING for
ever, one whose program fails is DEPLOY_FAILED after three tries;
one that lost its replicas is UNHEALTHY until they are back. What is declared anew is DEPLOYING for a moment, whether or not
anything changed. It must not know how the answer was had, nor how long one waits.
"""

import re
from enum import StrEnum
from typing import Final

from msgspec import Struct

from launcher.cluster.serve_details import Application, Deployment, Replica, ServeDetails
from launcher.inventory.text import printable, without_styles

_MAX_LINES: Final = 12
"""Of Ray's own words: the end of a traceback tells most."""
_MAX_LINE: Final = 400
_UNPLACED: Final = re.compile(
    r"Resources required for each replica: (?P<wanted>.+?), total resources available: (?P<free>.+?)\. Use `ray status`",
    re.DOTALL,
)
"""What it says of a replica without a node: also of one whose process takes long to start (``deployment_state.py``, 2.60.0)."""
_SLOW: Final = re.compile(r"have taken more than (?P<after>\S+) to initialize")


class Stage(StrEnum):
    """How far an application is."""

    GONE = "gone"
    """There is none of that name."""
    DELETING = "deleting"
    FAILED = "failed"
    """Ray has given up; it does nothing more until it is told to."""
    BUILDING = "building"
    """Its program is imported on some node; no replica is wanted yet."""
    WAITING = "waiting"
    """It answers nobody, and some replica has no node."""
    LOADING = "loading"
    """It answers nobody, and every replica has a node."""
    PARTLY = "partly"
    """It answers, but not as Ray has been told: some copies are missing, or others are being put in their place."""
    RUNNING = "running"


class Look(Struct, frozen=True):
    """One look at an application."""

    stage: Stage
    n_running: int = 0
    """Of all its deployments' replicas."""
    n_wanted: int = 0
    reason: str | None = None
    """Ray's own words in one line, where it has any."""
    details: tuple[str, ...] = ()
    """More of them."""
    replicas: tuple[Replica, ...] = ()
    """Those that have a log, the dead ones first."""

    @property
    def answers(self) -> bool:
        """Whether requests to it have somebody to answer them."""
        return self.stage in {Stage.PARTLY, Stage.RUNNING}


def look_at(details: ServeDetails, name: str) -> Look:
    """Return where the application of that name stands."""
    application = details.applications.get(name)
    if application is None:
        return Look(stage=Stage.GONE)
    deployments = list(application.deployments.values())
    living = [replica for each in deployments for replica in each.replicas]
    dead = [replica for each in deployments for replica in each.recent_dead_replicas]
    reason, lines = _words(application, deployments)
    return Look(
        stage=_stage(application, deployments),
        n_running=sum(len(each.running) for each in deployments),
        n_wanted=sum(each.target_num_replicas or 0 for each in deployments),
        reason=reason,
        details=lines,
        replicas=tuple(replica for replica in (*dead, *living) if replica.log_file_path and replica.node_id),
    )


def describe(look: Look) -> str:
    """Return a line of progress."""
    count = f"{look.n_running} of {look.n_wanted} replicas run"
    return _WORDS[look.stage].format(count=count)


def describe_with_reason(look: Look) -> str:
    """Return a line of progress that ends with Ray's own words, where it has any."""
    return describe(look) + (f": {look.reason}" if look.reason else "")


_WORDS: Final = {
    Stage.GONE: "Ray Serve knows nothing of it",
    Stage.DELETING: "it is being removed",
    Stage.FAILED: "Ray has given up",
    Stage.BUILDING: "its program is being built",
    Stage.WAITING: "a replica waits for a node: {count}",
    Stage.LOADING: "loading: {count}",
    Stage.PARTLY: "{count}",
    Stage.RUNNING: "{count}",
}


def _stage(application: Application, deployments: list[Deployment]) -> Stage:
    if application.status in {"DELETING", "DEPLOY_FAILED"}:
        return Stage.DELETING if application.status == "DELETING" else Stage.FAILED
    if not deployments:
        return Stage.BUILDING
    if all(each.running for each in deployments if each.target_num_replicas != 0):
        return Stage.RUNNING if application.status == "RUNNING" else Stage.PARTLY
    placed = all(replica.node_id for each in deployments for replica in each.replicas)
    wanted = all(each.replicas for each in deployments if each.target_num_replicas != 0)
    return Stage.LOADING if placed and wanted else Stage.WAITING


def _words(application: Application, deployments: list[Deployment]) -> tuple[str | None, tuple[str, ...]]:
    """Return what Ray says: of a deployment where that says anything, for the application only says which deployment."""
    for message in (*(each.message for each in deployments), application.message):
        slow = _SLOW.search(message)
        if slow is not None:
            return f"a replica has been loading for more than {slow['after']}", ()
        lines = [printable(line.rstrip())[:_MAX_LINE] for line in without_styles(message).splitlines() if line.strip()]
        if lines:
            unplaced = _UNPLACED.search(message)
            if unplaced is not None:
                wanted, free = printable(unplaced["wanted"]), printable(unplaced["free"])
                rest = "" if free == "{}" else f"; {free} is free in all"  # of a placement group Ray never tells it
                return f"a replica that takes {wanted} has not started{rest}", ()
            return lines[-1], tuple(lines[-_MAX_LINES:-1])
    return None, ()
