"""A real supervisor with its gateway and stepper over the fake engine: `serve_stepping.py NAME PORT OPTIONS SCENARIO`.

The scenario is JSON: ``free_bytes`` of the machine at each look (the last one stays), ``fits_bytes``: what the fake engine
can have of the host before it runs out of memory, ``serves_bytes``: above them it loads and has none for its first
request, ``arguments``: further ones of the engine, ``ladder``: the
profile's rungs, ``step_up``: whether it goes up by itself, ``stolen``: the number of the start at which another program
has the engine's port, ``weights``: a file that is compared with a digest from the second start on, ``tells``: whether the engine, when it is asked to, tells what it will take before it loads,
``seen_file``: holds the bytes that the sampler sees to be free of the host (else all are).
Prints one JSON line per notice on stdout, and a rendered error on stderr.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path
from unittest import mock

import msgspec
from msgspec.structs import replace

from launcher.cli.service import GatewayFront, check_weights
from launcher.domain import (
    Address,
    ArtifactFile,
    Command,
    Engine,
    EngineInstall,
    Fallback,
    Host,
    Inventory,
    Plan,
    Request,
    Rung,
)
from launcher.errors import LauncherError
from launcher.gateway.gateway import Gateway
from launcher.inventory.host import HostMemory
from launcher.planner.calibration import machine_id
from launcher.planner.fit import decide
from launcher.planner.search import Alternatives
from launcher.profiles import load_profile
from launcher.render.text import render_error
from launcher.store import open_instance, read_calibration
from launcher.supervisor import pressure
from launcher.supervisor.breakdown import Breakdown, read_line
from launcher.supervisor.checks import free_port
from launcher.supervisor.notices import Notice
from launcher.supervisor.options import RunOptions
from launcher.supervisor.runner import serve
from launcher.supervisor.service_manager import take_over
from launcher.supervisor.setback import Service
from launcher.supervisor.stepping import MachineStepper
from launcher.units import GIB

ENGINE = Path(__file__).with_name("fake_engine.py")
OUT_OF_MEMORY = (
    "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size {n_bytes}",
    "alloc_tensor_range: failed to allocate CPU buffer of size {n_bytes}",
)
TOLD = Path(__file__).parents[1] / "transcripts/llama-server/b10434-silent-cpu-fallback.log"
_MACHINE_BYTES = 16 * GIB


def account() -> list[str]:
    """Return the lines of a real engine's account of its memory: some 500 MiB of the host."""
    told, lines = Breakdown(), []
    for line in TOLD.read_text().splitlines():
        before, told = told, read_line(told, line)
        if told is not before:
            lines.append(line)
    return lines


def show_host(seen_file: str | None) -> None:
    """Let the sampler see the host of the scenario, whatever machine this is."""

    def probe_host_memory(root: Path) -> HostMemory:
        del root
        free = _MACHINE_BYTES if seen_file is None else int(Path(seen_file).read_text())
        return HostMemory(_MACHINE_BYTES, free, 0, 0)

    no_group = mock.Mock(return_value=None)
    mock.patch.multiple(pressure, probe_host_memory=probe_host_memory, find_binding=no_group).start()


def report(notice: Notice) -> None:
    """Print a notice for the test to read."""
    sys.stdout.write(msgspec.json.encode(notice).decode() + "\n")
    sys.stdout.flush()


def take_long(plan: Plan, *, held_up: str | None, weights: str | None) -> None:
    """Wait while a file is there, or read one as the plan's weights; a file beside it says that this has begun."""
    if held_up:
        Path(f"{held_up}.asked").touch()
        while Path(held_up).exists():
            time.sleep(0.01)
    if weights:
        Path(f"{weights}.asked").touch()
        files = (ArtifactFile(name="w.gguf", sha256="0" * 64),)
        check_weights(replace(plan, artifact=replace(plan.artifact, files=files, local_path=weights)), None)


def main() -> int:
    """Serve until stopped; return the exit code of a command line."""
    name, port, options, scenario_json = sys.argv[1:]
    scenario = json.loads(scenario_json)
    show_host(scenario.get("seen_file"))
    looks = list(scenario.get("free_bytes", [8 * GIB]))
    n_starts = 0
    held: list[socket.socket] = []

    def probe() -> Inventory:
        free = looks.pop(0) if len(looks) > 1 else looks[0]
        install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=(sys.executable,), build="fake")
        host = Host(total_bytes=16 * GIB, available_bytes=free, n_cpu=2)
        return Inventory(name="fake", host=host, engines=(install,))

    def make_command(plan: Plan, *, tell: bool) -> Command:
        nonlocal n_starts
        n_starts += 1
        address = Address(port=free_port("127.0.0.1"))
        take_long(plan, held_up=scenario.get("held_up"), weights=scenario.get("weights") if n_starts > 1 else None)
        if scenario.get("stolen") == n_starts:
            thief = socket.create_server((address.host, address.port or 0))
            held.append(thief)
        arguments = ["--tag", f"fake-engine-{port}", *scenario.get("arguments", ())]
        n_short = plan.footprint.host.engine_bytes - scenario.get("fits_bytes", 1 << 60)
        if n_short > 0:
            arguments += [word for line in OUT_OF_MEMORY for word in ("--say", line.format(n_bytes=n_short))]
            arguments += ["--exit-after-load", "1"]
        if plan.footprint.host.engine_bytes > scenario.get("serves_bytes", 1 << 60):
            arguments += [
                "--say",
                "E slot iterate: id 0 | task 0 | got exception: std::bad_alloc",
                "--canary-status",
                "500",
            ]
        is_told = tell and scenario.get("tells", False)
        if is_told:
            arguments += [word for line in account() for word in ("--say", line)]
        return Command(
            argv=(sys.executable, "-S", str(ENGINE), "--port", str(address.port), *arguments),
            address=address,
            ready_path="/health",
            canary_path="/v1/chat/completions",
            canary_body="{}",
            tells_memory=is_told,
        )

    profile = load_profile("llama3.1-8b")
    ladder = tuple(Rung(rung) for rung in scenario.get("ladder", list(Rung)))
    request = Request(profile=replace(profile, fallback=Fallback(ladder=ladder)))
    first = probe()
    known, _ = read_calibration(machine_id(first))
    plan = decide(request, first, calibration=known)
    assert isinstance(plan, Plan), plan
    stepper = MachineStepper(request, probe=probe, argv=("serve",), alternatives=Alternatives(), settle_s=0.0)
    service = Service(
        front=GatewayFront(lambda: Gateway(plan.model), Address(port=int(port))),
        stepper=stepper,
        make_command=make_command,
        step_up=scenario.get("step_up", False),
    )
    try:
        with open_instance(name) as instance:
            serve(
                make_command(plan, tell=True),
                instance=instance,
                plan=plan,
                options=msgspec.json.decode(options, type=RunOptions),
                report=report,
                service=service,
                manager=take_over(os.environ),
            )
    except LauncherError as error:
        sys.stderr.write(render_error(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
