"""A supervisor that is told to end before its first engine is started."""

import asyncio
import signal
import sys
from pathlib import Path
from unittest import mock

from launcher.domain import Address, Command, State
from launcher.store import find_instance, open_instance
from launcher.supervisor.checks import free_port
from launcher.supervisor.options import RunOptions
from launcher.supervisor.runner import serve
from launcher.supervisor.setback import Service


def test_a_stop_before_the_first_start_is_put_down(state_dir: Path) -> None:
    """It comes while the endpoint is opened: nothing is started, and the record says that it is stopped."""
    del state_dir
    address = Address(port=free_port("127.0.0.1"))
    command = Command(argv=(sys.executable,), address=address, ready_path="/", canary_path="/", canary_body="{}")

    async def listen() -> Address:
        signal.raise_signal(signal.SIGTERM)
        for _ in range(10):  # a loop hears of a signal by a pipe, one or two rounds later
            await asyncio.sleep(0)
        return address

    front = mock.Mock(start=listen, stop=mock.AsyncMock())
    service = Service(front=front, stepper=mock.Mock(), make_command=mock.Mock())
    said: list[str] = []
    options = RunOptions(adopt_orphans=False)  # the test's process has children of its own
    with open_instance("m") as instance:
        result = serve(
            command,
            instance=instance,
            options=options,
            service=service,
            report=lambda notice: said.append(notice.event),
        )
    view = find_instance("m")
    assert (view.state, view.reason, result.was_ready) == (State.STOPPED, None, False)
    assert said == ["instance.stopped"]
