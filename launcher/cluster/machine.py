"""What follows for an instance from a look at its application.

Pure. An instance is *deploying* until its application has proved itself, *ready*, or *returning*: it was ready, and Ray is
bringing back what was lost. Ray restarts replicas by itself, so nothing is done about a loss but to let no request through
until somebody answers again. It must not know time, nor how anything is carried out.
"""

from enum import StrEnum

from launcher.cluster.following import Look, Stage


class Phase(StrEnum):
    """The life of an instance whose engine runs on a cluster."""

    DEPLOYING = "deploying"
    READY = "ready"
    RETURNING = "returning"


class Move(StrEnum):
    """What is to be done after a look."""

    WAIT = "wait"
    """Nothing, but there is an end to patience while deploying."""
    PROVE = "prove"
    """It should answer: ask it, and let requests through if it does."""
    KEEP = "keep"
    """It answers: see whether the proxy that is used still does."""
    LOSE = "lose"
    """Nobody answers any more: hold requests."""
    SUBMIT = "submit"
    """The cluster was started anew and knows nothing of us."""
    GIVE_UP = "give-up"
    """Ray does nothing more for it, or somebody took it off."""


def decide(phase: Phase, look: Look, *, is_anew: bool, is_replaced: bool) -> Move:
    """Return what follows.

    ``is_anew`` tells that the cluster was started again, and so knows of nobody; ``is_replaced`` that another version of the application ran before, whose
    replicas may be the ones that answer until Ray is content.
    """
    match look.stage:
        case Stage.FAILED:
            return Move.GIVE_UP
        case Stage.GONE | Stage.DELETING:
            return Move.SUBMIT if is_anew else Move.GIVE_UP
        case Stage.PARTLY if is_replaced and phase is Phase.DEPLOYING:
            return Move.WAIT
        case Stage.PARTLY | Stage.RUNNING:
            return Move.KEEP if phase is Phase.READY else Move.PROVE
        case Stage.BUILDING | Stage.WAITING | Stage.LOADING:
            return Move.LOSE if phase is Phase.READY else Move.WAIT
