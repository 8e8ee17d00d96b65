"""How an instance is supervised: times, bounds, policies.

It must not know what any of them is for beyond its own words.
"""

from launcher.domain import Noun
from launcher.supervisor.pace import PacePolicy
from launcher.supervisor.restarts import RestartPolicy
from launcher.supervisor.sickness import DoubtPolicy, HangPolicy
from launcher.supervisor.strain import StrainPolicy
from launcher.units import MIB


class RunOptions(Noun, frozen=True):
    """How an instance is supervised. ``stall_timeout_s`` is of silence, not of loading: progress pushes it back."""

    stall_timeout_s: float = 120.0
    grace_s: float = 10.0
    """Between SIGTERM and SIGKILL to the engine's tree."""
    orphan_grace_s: float = 1.0
    """The same, where the supervisor itself is gone."""
    guard_patience_s: float = 15.0
    """Beyond the grace, until a guard that does not report the end is itself killed, and its work done for it."""
    drain_s: float = 30.0
    """For requests to come to their end before a step that can wait."""
    stop_drain_s: float = 5.0
    """The same, before the end."""
    health_pause_s: float = 5.0
    """Between two looks at a ready engine, and for it to answer one."""
    hang: HangPolicy = HangPolicy()
    doubt: DoubtPolicy = DoubtPolicy()
    pace: PacePolicy = PacePolicy()
    strain: StrainPolicy = StrainPolicy()
    review_s: float = 60.0
    """Between two looks at whether there is room for more, and at what was learnt of the engine's use."""
    log_bytes: int = 8 * MIB
    events_bytes: int = MIB
    restarts: RestartPolicy = RestartPolicy()
    handle_signals: bool = True
    adopt_orphans: bool = True
    """Become a subreaper, to reach all that a killed guard leaves; wrong in a process that starts others meanwhile."""
