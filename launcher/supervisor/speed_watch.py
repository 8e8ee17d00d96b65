"""Watch how fast an engine on GPUs generates: that it has become several times slower is told, or leads to a smaller plan.

It must not know phases, nor judge a rate (`pace`) or a memory (`strain`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from launcher.domain import Plan
from launcher.supervisor import failures, pace
from launcher.supervisor.account import Account
from launcher.supervisor.failures import Failure
from launcher.supervisor.setback import Front
from launcher.supervisor.vigil import Vigil


def can_spill(plan: Plan) -> bool:
    """Whether a memory of the plan can overflow without an error: a device's; of the host's the kernel tells."""
    return bool(plan.footprint.devices)


async def watch_speed(
    plan: Plan,
    front: Front,
    vigil: Vigil,
    account: Account,
    *,
    step_down: Callable[[Failure], Awaitable[None]],
    policy: pace.PacePolicy,
    pause_s: float,
) -> None:
    """Look at the speed of an engine that has just become ready until it is cancelled.

    ``step_down`` is called, once, where it has spilled: it asks for a smaller plan, and may find none.
    """
    pacing, has_asked = pace.Pacing(since_s=time.monotonic()), False
    while True:
        await asyncio.sleep(pause_s)
        before = pacing
        pacing = pace.follow(before, front.load().paces, plan.speed, policy)
        if pacing.slow != before.slow:
            _tell(pacing.slow, account)
        if pacing.slow is None or has_asked:
            continue
        found = vigil.used_up()
        if found is not None:
            has_asked = True
            memory, lacks_bytes = found
            await step_down(failures.of_spill(pace.spilled(pacing.slow, memory), lacks_bytes, plan))


def _tell(slow: pace.Slow | None, account: Account) -> None:
    if slow is None:
        account.update(slow=None)
        account.notify("engine.recovered", "it generates as fast as expected again")
        return
    words = pace.describe(slow)
    account.update(slow=words)
    account.notify(
        "engine.slow",
        f"{words}; its memory may be paged out, its device throttled or shared",
        tps=round(slow.tps, 2),
        expected_tps=round(slow.expected.generation_tps, 2),
        basis=slow.expected.basis,
    )
