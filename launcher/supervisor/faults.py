"""Tell from an engine's last lines and its exit what went wrong, and whether the same start would end alike.

It must not know phases or restarts, nor read anything itself. The signs are data; llama.cpp's texts as of builds 10434
and 11434, each with a recorded transcript or its place in the engine's source. Pure.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from launcher.domain import Noun

_N_TELLING: Final = 8
_SIGILL: Final = 4
_SIGKILL: Final = 9
_SIGNALS: Final = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


class Cause(StrEnum):
    """What a sign means."""

    MEMORY = "memory"
    WEIGHTS = "weights"
    ARGUMENT = "argument"
    PORT = "port"
    CPU = "cpu"
    INSTALL = "install"
    UNKNOWN = "unknown"


class Sign(Noun, frozen=True):
    """A text that engines print, what it means, and the help that follows from it."""

    pattern: str
    cause: Cause
    meaning: str


_HELP: Final = {
    Cause.MEMORY: "plan with less: a smaller `--ctx-size`, fewer `--n-gpu-layers`, or a smaller `--quant`",
    Cause.WEIGHTS: "look at the file with `launch inspect FILE`, and fetch it again if it is damaged",
    Cause.ARGUMENT: "this build of the engine does not know the option: update it, or choose another with `--engine`",
    Cause.PORT: "choose another with `--port`",
    Cause.CPU: "this build needs instructions that this CPU lacks: install another build, or choose `--engine`",
    Cause.INSTALL: "install what the line names, or another build of the engine",
    Cause.UNKNOWN: None,
}

SIGNS: Final = (
    # Specific before general: the first match in the log's order of signs decides.
    Sign(
        pattern=r"couldn't bind HTTP server socket|address already in use",
        cause=Cause.PORT,
        meaning="the port is in use",
    ),
    Sign(pattern=r"cudaMalloc failed: out of memory", cause=Cause.MEMORY, meaning="the GPU's memory does not suffice"),
    Sign(pattern=r"ErrorOutOfDeviceMemory", cause=Cause.MEMORY, meaning="the GPU's memory does not suffice"),
    Sign(pattern=r"CUDA error: out of memory", cause=Cause.MEMORY, meaning="the GPU's memory ran out"),
    Sign(pattern=r"CUBLAS_STATUS_ALLOC_FAILED", cause=Cause.MEMORY, meaning="the GPU's memory ran out"),
    Sign(
        pattern=r"failed to allocate CPU buffer of size|ggml_aligned_malloc: insufficient memory",
        cause=Cause.MEMORY,
        meaning="the host's memory does not suffice",
    ),
    Sign(pattern=r"failed to allocate buffer for kv cache", cause=Cause.MEMORY, meaning="the KV cache does not fit"),
    Sign(pattern=r"unable to allocate \S+ buffer", cause=Cause.MEMORY, meaning="the weights do not fit"),
    Sign(pattern=r"failed to allocate compute", cause=Cause.MEMORY, meaning="the compute buffers do not fit"),
    Sign(pattern=r"std::bad_alloc|MemoryError", cause=Cause.MEMORY, meaning="the host's memory does not suffice"),
    Sign(
        pattern=r"unknown model architecture", cause=Cause.WEIGHTS, meaning="the engine does not know the architecture"
    ),
    Sign(pattern=r"invalid magic", cause=Cause.WEIGHTS, meaning="the weights file is not a GGUF"),
    Sign(pattern=r"corrupted or incomplete", cause=Cause.WEIGHTS, meaning="the weights file is damaged"),
    Sign(pattern=r"gguf_init_from_\w+: failed to read", cause=Cause.WEIGHTS, meaning="the weights file is damaged"),
    Sign(pattern=r"missing tensor", cause=Cause.WEIGHTS, meaning="the weights file lacks a tensor"),
    Sign(
        pattern=r"failed to open GGUF file|Model path does not exist",
        cause=Cause.WEIGHTS,
        meaning="the weights file cannot be opened",
    ),
    Sign(
        pattern=r"error while loading shared libraries|ModuleNotFoundError|ImportError:",
        cause=Cause.INSTALL,
        meaning="the engine's installation is incomplete",
    ),
    Sign(
        pattern=r"error: invalid argument|unrecognized arguments|error: unknown argument",
        cause=Cause.ARGUMENT,
        meaning="the engine refused its arguments",
    ),
)
BENIGN: Final = re.compile(
    r"retrying without pipeline parallelism|failed to find free space in the KV cache, retrying|pinned memory|"
    r"failed to allocate .* pinned"
)
"""Lines that look like a sign and are none."""
_WRAPPER: Final = re.compile(
    r"failed to load model|exiting due to|failed to create.context|error while trying to fit|cleaning up before exit"
)
"""Lines that repeat that something failed, without saying what."""
_SUSPICIOUS: Final = re.compile(
    r"\berror\b|\bfailed\b|\bfatal\b|exception|traceback|abort|terminate called|\bE \S|cannot |can't |unable to",
    re.IGNORECASE,
)


class Diagnosis(Noun, frozen=True):
    """What ended an engine. ``permanent``: the same command on the same machine would end the same way."""

    cause: Cause
    meaning: str
    permanent: bool
    lines: tuple[str, ...]
    help: str | None


def describe_exit(code: int | None, signal_number: int | None) -> str:
    """Return an exit in words: ``exit code 1``, ``SIGKILL``."""
    if signal_number is not None:
        return _SIGNALS.get(signal_number, f"signal {signal_number}")
    return "no exit code" if code is None else f"exit code {code}"


def diagnose(lines: Sequence[str], *, signal_number: int | None = None) -> Diagnosis:
    """Judge an engine's end by the lines it printed since it was started, oldest first."""
    for sign in SIGNS:
        pattern = re.compile(sign.pattern, re.IGNORECASE)
        if any(pattern.search(line) and not BENIGN.search(line) for line in lines):
            return Diagnosis(
                cause=sign.cause,
                meaning=sign.meaning,
                permanent=True,
                lines=telling_lines(lines),
                help=_HELP[sign.cause],
            )
    if signal_number == _SIGILL:
        return Diagnosis(
            cause=Cause.CPU,
            meaning="it executed an instruction that this CPU lacks",
            permanent=True,
            lines=telling_lines(lines),
            help=_HELP[Cause.CPU],
        )
    killed = signal_number == _SIGKILL
    meaning = "it was killed, by somebody or by the kernel for want of memory" if killed else "it gave no known reason"
    return Diagnosis(cause=Cause.UNKNOWN, meaning=meaning, permanent=False, lines=telling_lines(lines), help=None)


def telling_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the few lines that tell most: those with a sign, else with a word of failure, else the last ones."""
    signs = re.compile("|".join(sign.pattern for sign in SIGNS), re.IGNORECASE)
    present = [line for line in lines if line.strip() and not BENIGN.search(line)]
    with_sign = [line for line in present if signs.search(line)]
    suspicious = [line for line in present if _SUSPICIOUS.search(line) and not _WRAPPER.search(line)]
    wrappers = [line for line in present if _WRAPPER.search(line)]
    chosen = with_sign or suspicious or wrappers or present
    return tuple(chosen[-_N_TELLING:])
