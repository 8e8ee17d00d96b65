"""Which versions NVIDIA's driver has: of its kernel module, of its management library, of the CUDA that it offers.

As a program it asks the library and prints JSON, in a process of its own because a driver may hang or crash. It must not
know what follows from a difference.
"""

import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from launcher.domain import Noun
from launcher.inventory.nvidia_driver import VERSION_FILE
from launcher.inventory.proc import run_bounded
from launcher.inventory.text import printable

_MODULE: Final = re.compile(r"^NVRM version:.*?(?P<version>\d{3,}\.\d+(?:\.\d+)?)", re.MULTILINE)
_LIBRARY: Final = re.compile(r"\S*/libnvidia-ml\.so\S*$", re.MULTILINE)
_IN_NAME: Final = re.compile(r"\.so\.(?P<version>\d{3,}\.\d+(?:\.\d+)?)$")


class NvidiaVersions(Noun, frozen=True):
    """What module and library say of themselves; ``None`` for what neither tells.

    ``module`` is the loaded kernel module's version, ``library`` the file that was loaded, ``library_version`` what it or
    its name says. ``cuda`` is the highest version of CUDA that the driver offers. ``error_code`` is NVML's answer where it
    refused to begin.
    """

    module: str | None = None
    module_text: str = ""
    library: str | None = None
    library_version: str | None = None
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    n_devices: int | None = None
    error_code: int | None = None
    error: str | None = None


def parse_module_version(text: str) -> str | None:
    """Return the version in ``/proc/driver/nvidia/version``, of the open or the closed module."""
    match = _MODULE.search(text)
    return match["version"] if match else None


def parse_cuda_version(number: int) -> tuple[int, int]:
    """Return major and minor of CUDA's number for a version: 12040 is 12.4 (``CUDA_VERSION`` in cuda.h)."""
    return number // 1000, number % 1000 // 10


def probe_versions(root: Path = Path("/"), *, timeout_s: float) -> NvidiaVersions | str:
    """Return the versions, or half a sentence on why the library gave no answer at all."""
    text = _text(root / VERSION_FILE.relative_to("/"))
    answer = run_bounded((sys.executable, "-m", "launcher.inventory.nvidia_versions"), timeout_s=timeout_s)
    if not answer.ok:
        return answer.describe(timeout_s=timeout_s)
    told = msgspec.json.decode(answer.stdout, type=NvidiaVersions)
    return msgspec.structs.replace(
        told, module=parse_module_version(text), module_text=printable(text.partition("\n")[0])
    )


def ask_library() -> NvidiaVersions:
    """Ask the management library of this process."""
    import pynvml  # noqa: PLC0415 - only the process of its own needs it

    from launcher.inventory.nvidia import ask  # noqa: PLC0415 - as above

    failure: pynvml.NVMLError | None = None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        failure = error
    library = _loaded_library()
    named = _IN_NAME.search(library or "")
    cuda: Any = None if failure else ask(pynvml.nvmlSystemGetCudaDriverVersion)
    own = None if failure else ask(pynvml.nvmlSystemGetNVMLVersion)
    return NvidiaVersions(
        library=library,
        # NVML's own version begins with that of CUDA: 12.535.129.03.
        library_version=(own.partition(".")[2] if own else None) or (named["version"] if named else None),
        driver=None if failure else ask(pynvml.nvmlSystemGetDriverVersion),
        cuda=parse_cuda_version(cuda) if cuda else None,
        n_devices=None if failure else ask(pynvml.nvmlDeviceGetCount),
        error_code=failure.value if failure else None,
        error=printable(str(failure).rstrip(".")) if failure else None,
    )


def _loaded_library() -> str | None:
    """Return the file of the management library that this process has loaded."""
    match = _LIBRARY.search(_text(Path("/proc/self/maps")))
    return match[0] if match else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(ask_library()))
