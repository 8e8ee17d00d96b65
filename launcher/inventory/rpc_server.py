"""Where the worker program of llama.cpp's RPC is on this machine.

It must not start it, nor know what it is used for.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from launcher.inventory.engines import find_native

_NAMES: Final = ("ggml-rpc-server", "rpc-server")
"""As it is called now, and was called before llama.cpp build 9000 or so."""


class RpcServer(NamedTuple):
    """The program, and the environment that it needs."""

    binary: Path
    env: dict[str, str]


def find_rpc_server() -> RpcServer | None:
    """Return the worker program beside the llama-server to prefer, else one on ``PATH``: of the same build, if it can be."""
    return next(_found(), None)


def _found() -> Iterator[RpcServer]:
    candidates, _ = find_native()
    for candidate in candidates:
        folders = (candidate.binary.parent, candidate.binary.resolve().parent)
        for path in (folder / name for folder in folders for name in _NAMES):
            if shutil.which(path):
                yield RpcServer(path, candidate.env)
    for name in _NAMES:
        if (found := shutil.which(name)) is not None:
            yield RpcServer(Path(found).absolute(), {})
