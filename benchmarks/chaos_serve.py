"""Serve the real model under the chaos profile, and do to the next engine what the driver asks for.

    python -m benchmarks.chaos_serve WORDS      WORDS is JSON, see ``Words``

Planner, supervisor, stepper, gateway and engine are those of `launch serve`. What is added lies before an engine's start
alone: `chaos` leaves an ``Order`` in a file, and the next command is made accordingly. Prints one JSON line per notice
with the time on the system's monotonic clock, and one for every command that is made. It must not know faults.
"""

import json
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from launcher.cli.service import build_service, make_command
from launcher.domain import Address, Command, Engine, Inventory, Noun, Plan, Profile, Refusal, Request, Settings
from launcher.errors import LauncherError
from launcher.gateway.keys import Keys
from launcher.inventory import probe_inventory
from launcher.planner.calibration import machine_id
from launcher.planner.corrections import planned_bytes
from launcher.planner.fit import decide
from launcher.planner.search import Alternatives
from launcher.profiles import load_profile
from launcher.render.text import render_error
from launcher.store import open_instance, read_calibration
from launcher.supervisor.notices import Notice
from launcher.supervisor.options import RunOptions
from launcher.supervisor.restarts import RestartPolicy
from launcher.supervisor.runner import serve
from launcher.supervisor.service_manager import ServiceManager
from launcher.supervisor.sickness import HangPolicy

FIRST_DELAY_S: Final = 0.05
NO_LIMIT: Final = 1_000_000
OPTIONS: Final = RunOptions(
    grace_s=5.0,
    drain_s=5.0,
    health_pause_s=1.0,
    hang=HangPolicy(n_misses=3, idle_s=20.0),
    restarts=RestartPolicy(
        n_deaths=NO_LIMIT, n_start_deaths=NO_LIMIT, first_delay_s=FIRST_DELAY_S, max_delay_s=FIRST_DELAY_S, jitter_s=0.0
    ),
)
"""The chaos profile: the first restart is soon and so is every other, nothing is given up, health is looked at often."""

_N_PARALLEL: Final = {Engine.LLAMA_SERVER: 4, Engine.LLAMA_CPP_PYTHON: 1}
_N_CTX: Final = 16384
_STACK_KIB: Final = 1024
"""Of each thread of the engine: eight MiB apiece would be most of what a limit on address space refuses."""


class Words(Noun, frozen=True):
    """What to serve: under which name, where, which weights by which engine; where orders are left."""

    name: str
    port: int
    weights: str
    engine: Engine
    orders: str


class Order(Noun, frozen=True):
    """What is to be done to the engines that are started from now on.

    ``steal`` lets another socket listen on the next engine's port before it does; ``address_space_bytes`` is the limit
    of every engine until the order is changed.
    """

    steal: bool = False
    address_space_bytes: int | None = None


def chaos_profile(weights: str, engine: Engine) -> Profile:
    """Return the default model's profile with these weights, and a wish that leaves the ladder rungs to take."""
    profile = load_profile("gemma3-270m")
    packaged = next(artifact for artifact in profile.artifacts if artifact.package is not None)
    artifact = replace(packaged, local_path=weights, package=None, files=())
    wishes = replace(profile.wishes, n_ctx_per_request=_N_CTX, n_parallel=_N_PARALLEL[engine])
    return replace(profile, artifacts=(artifact,), wishes=wishes)


def plan_chaos(words: Words) -> tuple[Plan, Request, Inventory]:
    """Return what is served first here, with what was learnt in this state directory, and the request behind it."""
    settings = Settings(engine=words.engine, n_threads=1)  # the clients and the machine need the other core
    profile = replace(chaos_profile(words.weights, words.engine), address=Address(port=words.port))
    request = Request(profile=profile, settings=settings)
    machine = probe_inventory()
    known, _ = read_calibration(machine_id(machine))
    plan = decide(request, machine, calibration=known)
    if isinstance(plan, Refusal):
        raise SystemExit(plan.fact)
    return plan, request, machine


def limited(command: Command, order: Order) -> Command:
    """Return the command under the order's limit of address space; one heap, for each reserves 64 MiB of it."""
    if order.address_space_bytes is None:
        return command
    limits = f"ulimit -s {_STACK_KIB}; ulimit -S -v {order.address_space_bytes // 1024}"
    argv = ("/bin/sh", "-c", f"{limits}; exec {shlex.join(command.argv)}")
    return replace(command, argv=argv, env={**command.env, "MALLOC_ARENA_MAX": "1"})


class Orders:
    """Makes commands as ordered; holds the sockets that stole a port."""

    def __init__(self, path: Path) -> None:
        """Read orders from ``path``."""
        self._path = path
        self._thieves: list[socket.socket] = []

    def make_command(self, plan: Plan, *, tell: bool) -> Command:
        """Return the plan's command, after what was ordered was done to it, and say so."""
        command = make_command(plan, tell=tell)
        order = read_order(self._path)
        for thief in self._thieves:
            thief.close()
        self._thieves.clear()
        if order.steal:
            self._thieves.append(socket.create_server((command.address.host, command.address.port or 0)))
            write_order(self._path, replace(order, steal=False))
        host = plan.footprint.host
        say(
            "chaos.command",
            planned_bytes=planned_bytes(plan, "host"),
            loaded_bytes=host.engine_bytes,
            n_ctx=plan.n_ctx,
            n_parallel=plan.n_parallel,
            n_ubatch=plan.n_ubatch,
            cache_type=plan.cache_type_k.value,
            cache_ram_bytes=plan.cache_ram_bytes,
            is_stolen=order.steal,
            address_space_bytes=order.address_space_bytes,
        )
        return limited(command, order)


def read_order(path: Path) -> Order:
    """Return what is ordered; nothing where no order was left."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Order)
    except OSError:
        return Order()


def write_order(path: Path, order: Order) -> None:
    """Leave an order, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(order))
    new.replace(path)


def say(event: str, text: str = "", **facts: Any) -> None:
    """Print one line for the driver."""
    line = {"event": event, "at_s": time.monotonic(), "text": text, "facts": facts}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def report(notice: Notice) -> None:
    """Print a notice; what is only shown while it lasts is not."""
    if not notice.transient:
        say(notice.event, notice.text, **notice.facts)


def main() -> int:
    """Serve until stopped; return the exit code of a command line."""
    words = msgspec.json.decode(sys.argv[1], type=Words)
    orders = Orders(Path(words.orders))
    plan, request, machine = plan_chaos(words)
    service = build_service(
        plan,
        request,
        machine,
        keys=Keys(),
        argv=("serve", words.name),
        alternatives=Alternatives(),
        manager=ServiceManager(),
    )
    service = replace(service, make_command=orders.make_command)
    try:
        with open_instance(words.name) as instance:
            serve(
                service.make_command(plan, tell=True),
                instance=instance,
                plan=plan,
                options=OPTIONS,
                report=report,
                service=service,
            )
    except LauncherError as error:
        sys.stderr.write(render_error(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
