"""Find the plan to go on with, once an engine is given up for its memory or for a better plan.

It must not know phases, nor how a stepper finds a plan.
"""

from launcher.domain import Refusal
from launcher.errors import LauncherError
from launcher.supervisor import failures
from launcher.supervisor.failures import Failure
from launcher.supervisor.setback import Step, Stepper
from launcher.supervisor.threads import aside


async def find_step(stepper: Stepper, failure: Failure) -> Step | Failure:
    """Return the step that was found before, or ask for one; a failure where there is none.

    Who had taken the memory may have left while the engine was drained: then the same plan will do after all.
    """
    if failure.step is None:
        return await _ask(stepper, failure)
    now = await _ask(stepper, failure) if failure.setback is not None else None
    return now if isinstance(now, Step) and now.is_retry and not now.after_backoff else failure.step


async def _ask(stepper: Stepper, failure: Failure) -> Step | Failure:
    """Ask in a thread: the machine has to be measured."""
    assert failure.setback is not None  # noqa: S101 - no other failure leads here
    try:
        answer = await aside(stepper.next_plan, failure.setback)
    except LauncherError as error:
        return failures.of_error(error)
    return failures.of_refusal(answer) if isinstance(answer, Refusal) else answer
