"""Keep on disk what engines told of their memory, so that a command has to be asked once on a machine.

It must not judge what it keeps. An account that cannot be read, is damaged or was written by another version counts as
absent, and one that cannot be written is not kept: the engine then tells again.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from launcher.domain import SCHEMA_VERSION, Command, EngineInstall, Noun
from launcher.errors import StateError
from launcher.planner.calibration import build_of
from launcher.private import read_own
from launcher.store import own_state_folder, replace_file, state_root
from launcher.supervisor.breakdown import Breakdown

_FOLDER: Final = "accounts"
_MAX_KEPT: Final = 256
"""Accounts on one machine, of a few hundred bytes each; the oldest go."""
_MAX_BYTES: Final = 1 << 20
_INDIFFERENT: Final = frozenset(
    {
        "--host",
        "--port",
        "--alias",
        "--model",
        "--fit",
        "--cache-ram",
        "--ctx-checkpoints",
        "--threads",
        "--threads-batch",
    }
)
"""Options with a value that changes nothing of what is told. The caches' sizes follow what is free at the moment of a
plan, and the engine counts neither; weights are recognised by more than their path."""

_HEEDED: Final = ("LLAMA_ARG_", "GGML_", "CUDA_", "HIP_", "ROCR_", "VK_")
"""Beginnings of environment variables by which engines and drivers are set, beside their command line."""


class _Kept(Noun, frozen=True):
    told: Breakdown
    schema_version: int = SCHEMA_VERSION


class Recall:
    """What engines told on one machine; of several that share a state directory each has its own."""

    def __init__(self, machine: str) -> None:
        """Hold what identifies the machine."""
        self._machine = machine

    def find(self, command: Command, install: EngineInstall | None) -> Breakdown | None:
        """Return what this build told of the same command and weights."""
        key = key_of(command, install)
        if key is None:
            return None
        try:
            kept = msgspec.json.decode(read_own(_folder(self._machine) / f"{key}.json", _MAX_BYTES), type=_Kept)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return kept.told if kept.told.complete and kept.schema_version == SCHEMA_VERSION else None

    def keep(self, command: Command, install: EngineInstall | None, told: Breakdown) -> None:
        """Keep what it told, without what was free at that moment."""
        key = key_of(command, install)
        if key is None:
            return
        with contextlib.suppress(OSError, StateError):
            directory = own_state_folder(_FOLDER, self._machine)
            try:
                replace_file(directory, f"{key}.json", msgspec.json.encode(_Kept(told=told)))
            finally:
                os.close(directory)
            _drop_oldest(_folder(self._machine))


def forget(machine: str) -> bool:
    """Remove all that was told on a machine; return whether there was anything."""
    folder = _folder(machine)
    there = folder.is_dir()
    shutil.rmtree(folder, ignore_errors=True)
    return there


def key_of(command: Command, install: EngineInstall | None) -> str | None:
    """Return what names a command for one build and one file of weights; ``None`` where something of it is unknown."""
    words = dict(zip(command.argv, command.argv[1:], strict=False))
    if install is None or install.build is None or "--model" not in words:
        return None
    try:
        weights = Path(words["--model"]).resolve(strict=True)
        stat = weights.stat()
    except OSError:
        return None
    told_by = [
        word
        for before, word in zip(("", *command.argv), command.argv, strict=False)
        if word not in _INDIFFERENT and before not in _INDIFFERENT
    ]
    env = {name: word for name, word in os.environ.items() if name.startswith(_HEEDED)} | dict(install.env)
    parts = [build_of(install), sorted(env.items()), told_by, str(weights), stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def _folder(machine: str) -> Path:
    return state_root() / _FOLDER / machine


def _drop_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in files[:-_MAX_KEPT]:
        path.unlink(missing_ok=True)
