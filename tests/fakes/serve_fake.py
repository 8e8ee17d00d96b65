"""A real supervisor process over the fake engine: `serve_fake.py NAME PORT OPTIONS_JSON COMMAND_JSON -- ENGINE ARGS`.

Prints one JSON line per notice on stdout, and a rendered error on stderr.
"""

import json
import os
import sys
from pathlib import Path

import msgspec

from launcher.domain import Address, Command
from launcher.errors import LauncherError
from launcher.render.text import render_error
from launcher.store import open_instance
from launcher.supervisor.notices import Notice
from launcher.supervisor.options import RunOptions
from launcher.supervisor.runner import serve
from launcher.supervisor.service_manager import take_over

ENGINE = Path(__file__).with_name("fake_engine.py")


def report(notice: Notice) -> None:
    """Print a notice for the test to read."""
    sys.stdout.write(msgspec.json.encode(notice).decode() + "\n")
    sys.stdout.flush()


def main() -> int:
    """Serve until stopped; return the exit code of a command line."""
    name, port, options, extra, _, *arguments = sys.argv[1:]
    fields = {
        "argv": (sys.executable, "-S", str(ENGINE), "--port", port, *arguments),
        "address": {"port": int(port)},
        "ready_path": "/health",
        "canary_path": "/v1/chat/completions",
        "canary_body": "{}",
        **json.loads(extra),
    }
    command = msgspec.convert(fields, Command)
    assert isinstance(command.address, Address)
    try:
        with open_instance(name) as instance:
            serve(
                command,
                instance=instance,
                options=msgspec.json.decode(options, type=RunOptions),
                report=report,
                manager=take_over(os.environ),
            )
    except LauncherError as error:
        sys.stderr.write(render_error(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
