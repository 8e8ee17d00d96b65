"""What a command that fails for no reason of its own says."""

import os
import subprocess
import sys

import pytest

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
