"""Compares files with their digests before a step to them, off the event loop.

It must not know how steps are found.
"""

from collections.abc import Mapping
from contextlib import suppress

from launcher.domain import Plan, Refusal
from launcher.errors import LauncherError
from launcher.fetch import require_weights
from launcher.supervisor.setback import Setback, Step
from launcher.supervisor.stepping import MachineStepper
from launcher.supervisor.threads import check_wanted


class CheckingStepper(MachineStepper):
    """A stepper whose plans' files have been read once; it is asked in a thread.

    Read here, where the last engine may still serve, they need not be read where the command is made, with no engine at
    all. What is wrong with a file is told there.
    """

    def next_plan(self, setback: Setback) -> Step | Refusal:
        """Return the plan to go on with, its files checked, or why there is none."""
        answer = super().next_plan(setback)
        if isinstance(answer, Step):
            _check(answer.plan)
        return answer

    def better_plan(self, plan: Plan, own_bytes: Mapping[str, int]) -> Plan | None:
        """Return a plan that gives more, its files checked, or none."""
        better = super().better_plan(plan, own_bytes)
        if better is not None:
            _check(better)
        return better


def _check(plan: Plan) -> None:
    with suppress(LauncherError):
        require_weights(plan.artifact, on_read=lambda *_: check_wanted())
