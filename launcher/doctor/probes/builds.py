"""What the files of an engine tell of its GPU back ends: which there are, what they lack, which CUDA they are of.

It must not know of drivers, nor start an engine: the loader is asked what it would load (``ldd``), in a bounded process.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from launcher.doctor.facts import EngineBuild
from launcher.doctor.probes.files import listed, text_of
from launcher.domain import Engine, EngineInstall
from launcher.inventory.proc import run_bounded
from launcher.inventory.text import printable

BACKENDS: Final = ("cann", "cuda", "hip", "musa", "opencl", "sycl", "vulkan")
"""Names of ggml's GPU back ends as they stand in library names, ``libggml-cuda.so``."""

_LINKED: Final = {
    "libcuda.so": "cuda", "libcudart.so": "cuda", "libcublas.so": "cuda", "libamdhip64.so": "hip",
    "libhipblas.so": "hip", "libvulkan.so": "vulkan", "libsycl.so": "sycl", "libOpenCL.so": "opencl",
}  # fmt: skip
"""What a program of one file is linked with, by back end."""
_CUDA_LIBRARY: Final = re.compile(r"^\s*(?P<name>lib(?:cudart|cublas)\.so\.(?P<major>\d+))\b", re.MULTILINE)
_MISSING: Final = re.compile(r"^\s*(?P<name>\S+) => not found", re.MULTILINE)
_TORCH_CUDA: Final = re.compile(r"^cuda\b[^=\n]*=\s*'(?P<major>\d+)\.(?P<minor>\d+)'", re.MULTILINE)
_LDD_S: Final = 5.0
_MAX_LIBRARIES: Final = 8


def probe_builds(installs: Iterable[EngineInstall]) -> tuple[EngineBuild, ...]:
    """Return what each engine's files tell, in the order of the engines."""
    return tuple(_vllm(install) if install.engine is Engine.VLLM else _llama_cpp(install) for install in installs)


def _llama_cpp(install: EngineInstall) -> EngineBuild:
    binary, folders = _places(install)
    carried = {
        backend: path
        for backend in BACKENDS
        for folder in folders
        for path in listed(folder, f"libggml-{backend}*.so*")[:1]
    }
    files = [*([binary] if binary is not None else []), *carried.values()][:_MAX_LIBRARIES]
    told = {str(path): _ldd(path, install) for path in files}
    linked = {backend for text in told.values() for library, backend in _LINKED.items() if library in text}
    cuda = next(((name, match) for name, text in told.items() if (match := _CUDA_LIBRARY.search(text))), None)
    missing = dict.fromkeys(
        f"{match['name']} of {name}" for name, text in told.items() for match in _MISSING.finditer(text)
    )
    return EngineBuild(
        argv=install.argv,
        backends=tuple(backend for backend in BACKENDS if backend in carried or backend in linked),
        libraries=tuple(printable(name) for name in told),
        missing=tuple(printable(line) for line in missing),
        cuda=(int(cuda[1]["major"]), None) if cuda else None,
        cuda_source=printable(f"{cuda[0]} is linked with {cuda[1]['name']}") if cuda else "",
    )


def _places(install: EngineInstall) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the program, where it is one of its own, and the folders that its libraries may be in."""
    if install.engine is Engine.LLAMA_CPP_PYTHON:
        from importlib.util import find_spec  # noqa: PLC0415 - not on the path of a command but this one

        spec = find_spec("llama_cpp")
        folders = spec.submodule_search_locations if spec is not None else None
        return None, tuple(Path(folder) / "lib" for folder in folders or ())
    binary = Path(install.argv[0]).resolve()
    return binary, (binary.parent, binary.parent.parent / "lib")


def _ldd(path: Path, install: EngineInstall) -> str:
    """Return the loader's words on what a file needs; empty where there is no ``ldd``, or the file is none for it."""
    program = shutil.which("ldd")
    if program is None:
        return ""
    answer = run_bounded((program, str(path)), timeout_s=_LDD_S, env=install.env)
    return answer.stdout if answer.ok else ""


def _vllm(install: EngineInstall) -> EngineBuild:
    """Tell by the version file of the PyTorch beside it, which is not imported."""
    for path in _torch_versions(Path(install.argv[0])):
        match = _TORCH_CUDA.search(text_of(path) or "")
        if match:
            return EngineBuild(
                argv=install.argv,
                backends=("cuda",),
                libraries=(str(path),),
                cuda=(int(match["major"]), int(match["minor"])),
                cuda_source=f"{path}: cuda = '{match['major']}.{match['minor']}'",
            )
    return EngineBuild(argv=install.argv)


def _torch_versions(python: Path) -> Iterator[Path]:
    yield from listed(python.parent.parent, "lib*/python3*/site-packages/torch/version.py")
