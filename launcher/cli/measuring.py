"""What commands that measure engines have in common: one of them at a time, and engines that last as long as a block does.

It must not know what is measured, nor what becomes of it.
"""

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiohttp import ClientSession

    from launcher.domain import Plan
    from launcher.store import Instance
    from launcher.tune.calibrate import OpenEngine

_N_PORTS = 3  # on which a start is tried


def engine_opener(instance: "Instance", start_timeout_s: float = 120.0) -> "OpenEngine":
    """Return what starts a plan's engine, under the instance's lock, for as long as a block lasts.

    A port that was free may be another's before the engine binds it: the start is then tried on other ports.
    """
    from contextlib import AsyncExitStack, asynccontextmanager

    from tenacity import retry, retry_if_exception_type, stop_after_attempt

    from launcher.cli.service import make_command
    from launcher.errors import PortInUseError
    from launcher.supervisor.session import open_engine
    from launcher.supervisor.threads import aside

    @retry(retry=retry_if_exception_type(PortInUseError), stop=stop_after_attempt(_N_PORTS), reraise=True)
    async def start(plan: "Plan", stack: AsyncExitStack) -> "ClientSession":
        command = await aside(make_command, plan, tell=False)  # it may read files for minutes
        engine = open_engine(command, instance=instance, plan=plan, start_timeout_s=start_timeout_s)
        return await stack.enter_async_context(engine)

    @asynccontextmanager
    async def open_plan(plan: "Plan") -> "AsyncIterator[ClientSession]":
        async with AsyncExitStack() as stack:
            yield await start(plan, stack)

    return open_plan


@contextmanager
def measuring() -> "Iterator[Instance]":
    """Take the lock that keeps measurements of this machine from disturbing each other, and say what else disturbs them.

    Raises:
        AlreadyServedError: another one is being made.
    """
    from contextlib import ExitStack

    from launcher.errors import AlreadyServedError
    from launcher.store import list_instances, open_instance

    for view in list_instances():
        if view.supervisor_alive:
            typer.echo(f"warning: `{view.name}` is being served, and takes part of what is measured", err=True)
    with ExitStack() as stack:
        try:
            instance = stack.enter_context(open_instance("calibrate"))
        except AlreadyServedError:
            message = "this machine is being measured already"
            raise AlreadyServedError(
                message, help="wait until the other `launch calibrate` or `launch bench` has ended"
            ) from None
        yield instance
