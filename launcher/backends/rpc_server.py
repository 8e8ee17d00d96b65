"""The command line of llama.cpp's ``ggml-rpc-server``, the worker of its RPC.

Options are those of builds 10434 and 11434 (``tools/rpc/rpc-server.cpp``), which have none for the memory to give.
"""

from collections.abc import Sequence

from launcher.domain import Address


def build_worker_argv(binary: str, address: Address, *, n_threads: int, devices: Sequence[str] = ()) -> tuple[str, ...]:
    """Return how to start a worker on ``address``; without ``devices`` it gives all GPUs, else the processor."""
    argv = (binary, "--host", address.host, "--port", str(address.port), "--threads", str(n_threads))
    return (*argv, "--device", ",".join(devices)) if devices else argv
