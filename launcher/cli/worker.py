"""``launch worker``: give this machine's memory to a ``launch serve`` elsewhere; experimental."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launcher.supervisor.notices import Notice

_WARNING = (
    "warning: the protocol has no authentication and no encryption: whoever reaches {host}:{port} can read what passes and"
    " take over the worker's process; let only machines that you trust reach it (SECURITY.md)\n"
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(worker)


def worker(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on: loopback, or one of a private network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 50052,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="Devices to give, as the engine names them, with commas; else all GPUs or the CPU."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=512, help="Threads, where the CPU is given.")
    ] = None,
) -> None:
    """Experimental: run a llama.cpp RPC worker until Ctrl-C; `launch serve NAME --rpc HOST:PORT` uses its memory."""
    from launcher.backends.rpc_server import build_worker_argv
    from launcher.domain import Address
    from launcher.errors import EngineMissingError, UsageError
    from launcher.inventory import probe_inventory
    from launcher.inventory.rpc_server import find_rpc_server
    from launcher.inventory.workers import private_address
    from launcher.store import open_instance
    from launcher.supervisor.worker import serve_worker

    devices = [name.strip() for name in device.split(",")] if device is not None else []
    if not all(devices):
        msg = f"--device names an empty device: `{device}`"
        raise UsageError(msg, help="leave it out to give all GPUs, or name them with commas: --device CUDA0,CUDA1")
    address = Address(host=private_address(host, "--host"), port=port)
    program = find_rpc_server()
    if program is None:
        msg = "no ggml-rpc-server was found beside a llama-server or on PATH"
        raise EngineMissingError(msg, help="install a build of llama.cpp with RPC; README.md says how to get one")
    n_threads = threads or probe_inventory(with_engines=False).host.n_cpu
    with open_instance(f"worker-{port}") as instance:
        sys.stderr.write(_WARNING.format(host=address.host, port=port))
        serve_worker(
            build_worker_argv(str(program.binary), address, n_threads=n_threads, devices=devices),
            program.env,
            address=address,
            instance=instance,
            report=_report,
        )


def _report(notice: "Notice") -> None:
    """Write a line per act; the one that a script waits for goes to stdout."""
    if notice.event != "engine.ready":
        sys.stderr.write(f"{notice.text}\n")
        sys.stderr.flush()
        return
    at = f"{notice.facts['host']}:{notice.facts['port']}"
    sys.stdout.write(f"{notice.text}\n  launch serve NAME --rpc {at}\n")
    sys.stdout.flush()
