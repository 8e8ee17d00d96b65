"""A machine with NVIDIA GPUs that a stand-in for the driver's library makes up, changing while it is watched."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

STUB_SOURCE = Path(__file__).parents[1] / "inventory" / "nvml_stub.c"


def compile_stub(folder: Path, *macros: str) -> Path:
    """Compile the stand-in into a folder as ``libnvidia-ml.so.1``; skips where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in NVML: apt-get install gcc libc6-dev")
    options = ["-shared", "-fPIC", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", *(f"-D{macro}" for macro in macros)]
    subprocess.run([compiler, *options, "-o", folder / "libnvidia-ml.so.1", STUB_SOURCE], check=True, timeout=60)
    return folder


class StandIn:
    """The stand-in's library in one folder, and the file of its answers, which it reads at each call."""

    def __init__(self, library: Path, answers: Path) -> None:
        """Hold both."""
        self._library = library
        self._answers = answers

    def answer(self, answers: Mapping[str, object]) -> None:
        """Replace the machine."""
        text = "".join(f"{key}={value}\n" for key, value in answers.items())
        new = self._answers.with_suffix(".new")
        new.write_text(text)
        new.replace(self._answers)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a program that shall find the stand-in: the loader reads it when the program starts."""
        return {**os.environ, "NVML_STUB": str(self._answers), "LD_LIBRARY_PATH": str(self._library)}
