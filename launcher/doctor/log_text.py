"""A log's text to an engine's own lines, and to what the log itself says of its end. Pure.

It knows the forms in which such lines are passed on: as the engine printed them, with the prefixes of the journal, as the
journal's JSON, in the launcher's own events and messages. It must not know what an engine's line means.
"""

import json
import re
from typing import Any, Final

from launcher.domain import Noun
from launcher.inventory.text import without_styles

_MAX_LINE: Final = 8192
_PREFIX: Final = re.compile(
    r"^(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?|\d{4}-\d\d-\d\dT\S+) \S+ (?P<program>[\w@./:-]+?)(?:\[\d+\])?: "
)
"""Of a line of ``journalctl``, or of a syslog: time, host, program, number."""
_OOM: Final = re.compile(r"ut of memory: Killed process \d+ \((?P<name>[^)]*)\)")
"""The kernel's words (``__oom_kill_process`` in mm/oom_kill.c), for a machine and for a control group."""
_OOM_OF_UNIT: Final = re.compile(r"A process of this unit has been killed by the OOM killer")
_ENGINE_NAMES: Final = ("llama", "python", "vllm", "VLLM", "ray::")
_ENDED: Final = re.compile(r"the engine ended (?:while it \w+ )?\((?:exit code (?P<code>\d+)|(?P<signal>SIG[A-Z]+))\)")
_MAIN_ENDED: Final = re.compile(r"Main process exited, code=(?P<how>exited|killed|dumped), status=(?P<status>\d+)/")
_ERROR: Final = re.compile(r"\berror\[(?P<code>[a-z][a-z0-9-]*)\]: ")
_SIGNALS: Final = {"SIGHUP": 1, "SIGINT": 2, "SIGILL": 4, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8, "SIGKILL": 9, "SIGSEGV": 11, "SIGTERM": 15}  # fmt: skip


class LogText(Noun, frozen=True):
    """The lines, and of the last end what the log says: code or signal, and how often the kernel killed for memory.

    ``codes`` are of the launcher's own errors, in their order, each once.
    """

    lines: tuple[str, ...] = ()
    code: int | None = None
    signal_number: int | None = None
    n_oom_kills: int = 0
    codes: tuple[str, ...] = ()


def parse_log(text: str) -> LogText:
    """Return what stands in a log, whatever wrote it; lines are cut after 8 KiB."""
    lines: list[str] = []
    codes: dict[str, None] = {}
    code: int | None = None
    signal_number: int | None = None
    n_oom_kills = 0
    for raw in text.splitlines():
        message, told_end = _unwrap(without_styles(raw[:_MAX_LINE]))
        for line in message.splitlines() or [""]:
            lines.append(line)
            n_oom_kills += _is_oom_kill(line)
            if (found := _ERROR.search(line)) is not None:
                codes[found["code"]] = None
            end = told_end or _end_in(line)
            if end is not None:
                code, signal_number = end
    return LogText(
        lines=tuple(lines), code=code, signal_number=signal_number, n_oom_kills=n_oom_kills, codes=tuple(codes)
    )


def _unwrap(line: str) -> tuple[str, tuple[int | None, int | None] | None]:
    """Take a line out of what passed it on, or several that were one message; also return the end that an event tells."""
    if line.startswith("{") and line.rstrip().endswith("}"):
        return _of_json(line)
    return _PREFIX.sub("", line), None


def _of_json(line: str) -> tuple[str, tuple[int | None, int | None] | None]:
    try:
        told: Any = json.loads(line)
    except (ValueError, RecursionError):
        return line, None
    if not isinstance(told, dict):
        return line, None
    if (message := _message(told.get("MESSAGE"))) is not None:
        return without_styles(message), None
    if told.get("event") == "engine.exited":
        return line, (_int(told.get("code")), _int(told.get("signal")))
    return line, None


def _message(value: object) -> str | None:
    """Return a line of the journal's JSON, which writes one with colours or undecodable bytes as a list of its bytes."""
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode(errors="replace") if isinstance(value, list) else None
    except (TypeError, ValueError):
        return None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_oom_kill(line: str) -> bool:
    """Tell whether a line says that the kernel killed an engine for memory; that it killed another program says nothing."""
    found = _OOM.search(line)
    return _OOM_OF_UNIT.search(line) is not None or (found is not None and found["name"].startswith(_ENGINE_NAMES))


def _end_in(line: str) -> tuple[int | None, int | None] | None:
    if (found := _ENDED.search(line)) is not None:
        return (int(found["code"]), None) if found["code"] else (None, _SIGNALS.get(found["signal"]))
    if (found := _MAIN_ENDED.search(line)) is not None:
        status = int(found["status"])
        return (status, None) if found["how"] == "exited" else (None, status)
    return None
