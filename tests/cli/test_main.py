"""What any command says that fails for no reason of its own, or is given numbers that are none."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from launcher.cli import app

_REFUSED = """
import sys, threading
from launcher import cli
def start(_):
    raise RuntimeError(sys.argv[1])
threading.Thread.start = start
cli.app = lambda: threading.Thread(target=print).start()
cli.main()
"""


@pytest.mark.parametrize(
    ("why", "begin", "is_told"),
    [("can't start new thread", "error[failed]: the system lets ", True), ("?", "Traceback ", False)],
)
def test_a_limit_of_threads_is_no_fault_of_the_launcher(why: str, begin: str, *, is_told: bool) -> None:
    """Any command may meet it wherever it starts a thread; what else comes so has a traceback."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run([sys.executable, "-c", _REFUSED, why], capture_output=True, text=True, check=False, env=env)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(begin)
    assert ("TasksMax=" in ended.stderr) is is_told
    assert ("please report it" in ended.stderr) is not is_told


def _with_numbers(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command that takes a number of seconds or the like, with that option.

    That of ``--min-tps`` is looked at with the profile's floor: ``test_plan`` has it.
    """
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from _with_numbers(sub, (*path, name))
    for option in command.params:
        if isinstance(option.type, click.types.FloatParamType) and "--min-tps" not in option.opts:
            yield (*path, option.opts[0])


_NUMBERS = sorted(_with_numbers(typer.main.get_command(app)))


@pytest.mark.parametrize("words", _NUMBERS, ids=" ".join)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_number_that_is_none_is_wrong_usage(words: tuple[str, ...], value: float) -> None:
    """NaN is not below any least number, and infinity not either; no clock waits for these, nor for 1e300 seconds."""
    result = CliRunner().invoke(app, [*words, str(value)])
    assert result.exit_code == 2
    assert f"'{words[-1]}': {value} is no" in result.stderr


def test_the_numbers_of_all_commands_are_tried() -> None:
    """Some are known to be there."""
    assert {("serve", "--stall-timeout"), ("top", "--interval"), ("stop", "--timeout")} <= set(_NUMBERS)
