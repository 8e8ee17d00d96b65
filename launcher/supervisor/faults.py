"""Tell from an engine's end, its last lines and the kernel's counters what went wrong, and what that calls for.

It must not know phases or restarts, nor read anything itself. What texts mean is in `signs`. Pure.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from launcher.domain import HOST_MEMORY, Noun, Plan
from launcher.supervisor.signs import BENIGN, QUOTE_BEGIN, QUOTE_END, QUOTED, RETRY, SIGNS, Cause, Part, Sign
from launcher.units import GIB, MIB, format_bytes

_N_TELLING: Final = 8
_SIGILL: Final = 4
_SIGKILL: Final = 9
_SIGNALS: Final = {
    1: "SIGHUP", 2: "SIGINT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV",
    15: "SIGTERM",
}  # fmt: skip
_SENT_BY_SOMEBODY: Final = frozenset({1, 2, _SIGKILL, 15})
"""Signals that no engine ends itself by: whatever it printed before is not why it ended."""
_HOST_BUFFER: Final = re.compile(r"CPU(?:_.*)?|AMX|.*_Host|BLAS")
_WORKER_BUFFER: Final = re.compile(r"RPC(?P<idx>\d*)\[(?P<address>[^\]]+)\]")
# Case counts: a pattern that begins with plain letters is then found without looking at every place of a long log.
_SIGN_PATTERNS: Final = tuple((sign, re.compile(sign.pattern)) for sign in SIGNS)
_WRAPPER: Final = re.compile(
    r"failed to load model|exiting due to|failed to create.context|error while trying to fit|cleaning up before exit|"
    r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed|Executor failed"
)
"""Lines that repeat that something failed, without saying what."""
_SUSPICIOUS: Final = re.compile(
    r"\berror\b|\bfailed\b|\bfatal\b|exception|traceback|abort|terminate called|\bE \S|cannot |can't |unable to",
    re.IGNORECASE,
)

_RAISED: Final = re.compile(r"(?<![\w'\"])(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): |^\s*Value error, ")
"""An exception of Python with its words. The first one of a log is the cause: what follows was raised on its account, in other
processes too, and vLLM's last is nearly always that its core failed."""
_FRAME: Final = re.compile(r"(?:^|\] )(?: {2}|Traceback \(most recent|The above exception was|During handling of)")
"""A line of a traceback, also behind the prefix that vLLM gives each."""
_WARNED: Final = re.compile(r"\bWARNING\b|\bUserWarning\b")
"""Of a line whose exception was caught: each start of vLLM tells one of its limit of open files."""

# What a refused allocation was, by the lines around it. Sizes: bytes, or MiB which some lines call MB.
_REFUSED_BUFFER: Final = re.compile(r"failed to allocate (?P<memory>\S+) buffer of size (?P<bytes>\d{1,19})(?![\d.])")
_UNABLE_BUFFER: Final = re.compile(r"unable to allocate (?P<memory>\S+) buffer")
_WRONG_BUFFER: Final = re.compile(r"in a buffer \((?P<memory>\S+)\) that cannot run")
_REFUSED_MALLOC: Final = re.compile(r"attempted to allocate +(?P<mib>\d{1,12}(?:\.\d{1,6})?) MB")
_REFUSED_OUTPUT: Final = re.compile(r"failed to allocate output buffer of size (?P<mib>\d{1,12}(?:\.\d{1,6})?) MiB")
_REFUSED_CUDA: Final = re.compile(
    r"allocating (?P<mib>\d{1,12}(?:\.\d{1,6})?) MiB on device (?P<idx>\d{1,6}): cudaMalloc failed"
)
_REFUSED_VULKAN: Final = re.compile(r"Device memory allocation of size (?P<bytes>\d{1,19}) failed")
_REFUSED_TORCH: Final = re.compile(r"you tried to allocate (?P<bytes>\d{1,19}) bytes")
_REFUSED_TORCH_GPU: Final = re.compile(
    r"Tried to allocate (?P<n>\d{1,9}(?:\.\d{1,6})?) (?P<unit>[MG])iB\. GPU (?P<idx>\d{1,6}) has"
)
_TOO_LITTLE: Final = re.compile(
    r"on (?P<where>node|device \w+:)\s?(?P<idx>\d{1,6}) \((?P<free>\d{1,9}(?:\.\d{1,6})?)/[\d.]+ GiB\) on .*? less than "
    r"(?:desired \w+ memory utilization \([\d.]+, |requested memory for kv \()(?P<wanted>\d{1,9}(?:\.\d{1,6})?) GiB"
)
"""vLLM's own words for what it wants of a memory and what is free there."""
_LONGEST: Final = re.compile(r"the estimated maximum model length is (\d{1,12})")
_CURRENT_DEVICE: Final = re.compile(r"current device: (?P<idx>\d{1,6}), in function")
_ON_HOST: Final = re.compile(
    r"attempted to allocate|failed to allocate output buffer|std::bad_alloc|MemoryError\b|mmap failed|DefaultCPUAllocator"
)
_VENDOR: Final = re.compile(r"(?P<vendor>CUDA|ROCm|MUSA) error: ")


class Answer(StrEnum):
    """What a fault calls for."""

    STEP_DOWN = "step-down"
    """The same plan would end the same way: the next one down the ladder."""
    RESTART = "restart"
    """It may not happen again: the restart policy decides."""
    GIVE_UP = "give-up"
    """No plan for this model on this machine would end otherwise."""


_ANSWERS: Final = {
    Cause.MEMORY: Answer.STEP_DOWN,
    Cause.KILLED_FOR_MEMORY: Answer.STEP_DOWN,
    Cause.SPILLED: Answer.STEP_DOWN,
    Cause.DEVICE_LOST: Answer.RESTART,
    Cause.HUNG: Answer.RESTART,
    Cause.SICK: Answer.RESTART,
    Cause.UNKNOWN: Answer.RESTART,
}
"""Of every cause that is not here: give up."""

_SMALLER: Final = "plan with less: a smaller `--ctx-size`, fewer `--n-gpu-layers`, or a smaller `--quant`"
_HELP: Final = {
    Cause.MEMORY: _SMALLER,
    Cause.KILLED_FOR_MEMORY: f"{_SMALLER}; or raise the memory limit of its control group",
    Cause.SPILLED: _SMALLER,
    Cause.WEIGHTS: "look at the file with `launch inspect FILE`, and fetch it again if it is damaged",
    Cause.UNSUPPORTED: "update the engine, or choose another with `--engine`",
    Cause.ARGUMENT: "this build of the engine does not know the option: update it, or choose another with `--engine`",
    Cause.PORT: "choose another with `--port`",
    Cause.CPU: "this build needs instructions that this CPU lacks: install another build, or choose `--engine`",
    Cause.INSTALL: "install what the line names, or another build of the engine",
    Cause.DRIVER: "update the GPU's driver, or install a build of the engine that fits it",
}


class End(Noun, frozen=True):
    """How an engine ended, and what is known besides.

    ``lines`` are those printed since its start, oldest first; for an engine that was ready, since it was. By
    ``n_oom_kills`` the kernel's count of its control group rose meanwhile; ``None`` where there is no such count.
    """

    lines: tuple[str, ...] = ()
    code: int | None = None
    signal_number: int | None = None
    was_ready: bool = False
    n_oom_kills: int | None = None


class Fault(Noun, frozen=True):
    """What is wrong with an engine.

    ``sign`` is the code of the text that showed it. ``memory`` is the one that did not suffice, by the engine's name
    (``CUDA0``) or ``host``; ``n_bytes`` what it asked for in vain, and ``part`` for what. All are ``None`` where nobody said.
    """

    cause: Cause
    meaning: str
    sign: str | None = None
    lines: tuple[str, ...] = ()
    was_ready: bool = False
    memory: str | None = None
    n_bytes: int | None = None
    part: Part | None = None
    n_ctx: int | None = None
    """The longest request that the engine said it could hold instead."""

    @property
    def answer(self) -> Answer:
        """What it calls for."""
        return _ANSWERS.get(self.cause, Answer.GIVE_UP)

    @property
    def code(self) -> str:
        """What `launch explain` has a page for: the sign's code, or the cause where no text showed it."""
        return self.sign or self.cause

    @property
    def help(self) -> str | None:
        """What a person can do about it."""
        return _HELP.get(self.cause)


def describe_exit(code: int | None, signal_number: int | None) -> str:
    """Return an exit in words: ``exit code 1``, ``SIGKILL``."""
    if signal_number is not None:
        return _SIGNALS.get(signal_number, f"signal {signal_number}")
    return "no exit code" if code is None else f"exit code {code}"


def describe(fault: Fault) -> str:
    """Return the fault in words: ``the KV cache does not fit (2.9 GiB of host)``."""
    of = " of ".join(filter(None, (format_bytes(fault.n_bytes) if fault.n_bytes else "", fault.memory)))
    return f"{fault.meaning} ({of})" if of else fault.meaning


def classify(end: End) -> Fault:
    """Say why an engine ended that nobody asked to.

    The kernel's count goes before any text, for its kill leaves none; a signal that somebody sent is not explained by
    what was printed before it; else the most specific sign decides. What shows none of these is unknown.
    """
    if end.n_oom_kills and end.signal_number == _SIGKILL:
        return _killed_for_memory(end, "the kernel killed it for want of memory")
    sent = end.signal_number in _SENT_BY_SOMEBODY
    fault = None if sent else find_sign(end.lines, was_ready=end.was_ready)
    if end.n_oom_kills and (fault is None or fault.cause is Cause.DEVICE_LOST):
        return _killed_for_memory(end, "the kernel killed one of its processes for want of memory")
    if fault is not None:
        return fault
    cause = Cause.CPU if end.signal_number == _SIGILL else Cause.UNKNOWN
    return Fault(cause=cause, meaning=_untold(end), lines=telling_lines(end.lines), was_ready=end.was_ready)


def _killed_for_memory(end: End, meaning: str) -> Fault:
    lines = telling_lines(end.lines)
    return Fault(
        cause=Cause.KILLED_FOR_MEMORY, meaning=meaning, lines=lines, was_ready=end.was_ready, memory=HOST_MEMORY
    )  # fmt: skip


def _untold(end: End) -> str:
    """Return what the end alone says, where no line does."""
    match end.signal_number:
        case 4:  # SIGILL
            return "it executed an instruction that this CPU lacks"
        case 7:  # SIGBUS
            return "a file that it had mapped was cut short, or its memory failed"
        case 9 if end.n_oom_kills is None:  # SIGKILL
            return "it was killed, by somebody or by the kernel for want of memory"
        case number if number in _SENT_BY_SOMEBODY:
            return "somebody ended it"
        case _:
            return "it gave no known reason"


def find_sign(lines: Sequence[str], *, was_ready: bool, is_private: bool = False) -> Fault | None:
    """Return the fault that the lines show, if any: also of an engine that lives, and refuses every request.

    ``is_private``: no client was let in yet, so that what repeats a request repeats our own.
    """
    told = list(lines) if is_private else without_quotes(lines)
    since_retry = told[max((idx for idx, line in enumerate(told) if RETRY.search(line)), default=-1) + 1 :]
    text, text_since_retry = "\n".join(told), "\n".join(since_retry)
    for sign, pattern in _SIGN_PATTERNS:
        of_memory = sign.cause is Cause.MEMORY
        if _lines_with(pattern, text_since_retry if of_memory else text):
            return _signed(sign, since_retry, lines, was_ready=was_ready)
    return None


def _lines_with(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return the lines of a text that show a pattern and are not benign: one search of all is quicker than one of each."""
    found = []
    for match in pattern.finditer(text):
        end = text.find("\n", match.end())
        line = text[text.rfind("\n", 0, match.start()) + 1 : end if end >= 0 else len(text)]
        if not BENIGN.search(line):
            found.append(line)
    return found


def without_quotes(lines: Sequence[str]) -> list[str]:
    """Return the lines that are the engine's own words.

    A quoted grammar may itself hold what ends a quotation: the last end counts, and one that has none goes to the end
    of the log. Real signs between two of them are then lost, and what follows is a restart instead of a step down.
    """
    kept: list[str] = []
    start = 0
    for begin in (idx for idx, line in enumerate(lines) if QUOTE_BEGIN.search(line)):
        if begin >= start:
            kept += lines[start:begin]
            ends = [idx for idx in range(begin, len(lines)) if QUOTE_END.search(lines[idx])]
            start = ends[-1] + 1 if ends else len(lines)
    return [line for line in (*kept, *lines[start:]) if not QUOTED.search(line)]


def _signed(sign: Sign, told: Sequence[str], lines: Sequence[str], *, was_ready: bool) -> Fault:
    memory, n_bytes = _refused(told) if sign.cause is Cause.MEMORY else (None, None)
    return Fault(
        cause=sign.cause,
        meaning=sign.meaning,
        sign=sign.code,
        lines=telling_lines(lines),
        was_ready=was_ready,
        memory=memory,
        n_bytes=n_bytes,
        part=sign.part,
        n_ctx=next((int(match[1]) for line in told if (match := _LONGEST.search(line))), None),
    )


def _refused(lines: Sequence[str]) -> tuple[str | None, int | None]:
    """Return which memory refused how many bytes, by the last line that says so; what a named buffer says goes first."""
    memory: str | None = None
    n_bytes: int | None = None
    guess: str | None = None
    vendor = "CUDA"
    for line in lines:
        if BENIGN.search(line):
            continue
        if match := _REFUSED_BUFFER.search(line) or _UNABLE_BUFFER.search(line) or _WRONG_BUFFER.search(line):
            memory = _memory_of(match["memory"])
        elif match := _VENDOR.search(line):
            vendor = match["vendor"]
        elif match := _TOO_LITTLE.search(line):
            guess = HOST_MEMORY if match["where"] == "node" else f"cuda:{match['idx']}"
        elif match := _REFUSED_TORCH_GPU.search(line):
            guess = f"cuda:{match['idx']}"
        elif match := _REFUSED_CUDA.search(line) or _CURRENT_DEVICE.search(line):
            guess = f"{vendor}{match['idx']}"
        elif _ON_HOST.search(line):
            guess = HOST_MEMORY
        n_bytes = _size_in(line) or n_bytes
    return memory or guess, n_bytes


def _size_in(line: str) -> int | None:
    for pattern in (_REFUSED_BUFFER, _REFUSED_VULKAN, _REFUSED_TORCH):
        if match := pattern.search(line):
            return int(match["bytes"])
    if match := _TOO_LITTLE.search(line):
        return int((float(match["wanted"]) - float(match["free"])) * GIB)
    if match := _REFUSED_TORCH_GPU.search(line):
        return int(float(match["n"]) * (GIB if match["unit"] == "G" else MIB))
    for pattern in (_REFUSED_MALLOC, _REFUSED_OUTPUT, _REFUSED_CUDA):
        if match := pattern.search(line):
            return int(float(match["mib"]) * MIB)
    return None


def _memory_of(buffer_name: str) -> str:
    """Return whose memory a buffer type is: a device's or the host's."""
    return HOST_MEMORY if _HOST_BUFFER.fullmatch(buffer_name) else buffer_name


def planned_memory(fault: Fault, plan: Plan) -> str | None:
    """Return the fault's memory by the plan's name of it (``gpu0``, ``host``); ``None`` where nobody said which.

    A buffer of a worker bears the number that the device has there (``RPC0[HOST:PORT]``), whatever the engine calls it.
    """
    if fault.memory in {HOST_MEMORY, None}:
        return fault.memory
    planned = [use.name for use in plan.footprint.devices]
    if match := _WORKER_BUFFER.fullmatch(fault.memory or ""):
        of_worker = (match["address"], f"{match['address']}/{match['idx']}")
        return next((name for name in planned if name in of_worker), None)
    return dict(zip(plan.engine_devices, planned, strict=False)).get(fault.memory or "")


def telling_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the few lines that tell most: those with a sign, else the first exception and the last words of failure."""
    text = "\n".join(without_quotes(lines))
    signs = {line for _, pattern in _SIGN_PATTERNS for line in _lines_with(pattern, text)}
    if signs:
        return tuple([line for line in lines if line in signs][-_N_TELLING:])
    present = [line for line in lines if line.strip() and not BENIGN.search(line)]
    told = [line for line in present if not _WRAPPER.search(line)]
    raised = [line for line in told if _RAISED.search(line) and not _WARNED.search(line)]
    suspicious = [line for line in told if line in raised or (_SUSPICIOUS.search(line) and not _FRAME.search(line))]
    if raised and raised[0] not in suspicious[-_N_TELLING:]:
        return (raised[0], *suspicious[1 - _N_TELLING :])
    wrappers = [line for line in present if _WRAPPER.search(line)]
    chosen = suspicious or wrappers or present
    return tuple(chosen[-_N_TELLING:])
