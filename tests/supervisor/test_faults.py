"""What ended an engine, by recorded transcripts."""

from pathlib import Path

import pytest

from launcher.supervisor.faults import SIGNS, Cause, describe_exit, diagnose, telling_lines

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts" / "llama-server"


def read(name: str) -> list[str]:
    """A transcript without its header."""
    return [line for line in (TRANSCRIPTS / name).read_text().splitlines() if not line.startswith("# ")]


@pytest.mark.parametrize(
    ("name", "cause", "telling"),
    [
        ("b10434-file-missing.log", Cause.WEIGHTS, "failed to open GGUF file"),
        ("b10434-not-a-gguf.log", Cause.WEIGHTS, "invalid magic characters: 'hell'"),
        ("b10434-truncated-weights.log", Cause.WEIGHTS, "failed to read key-value pairs"),
        ("b10434-unknown-flag.log", Cause.ARGUMENT, "invalid argument: --nonsense"),
        ("b10434-port-in-use.log", Cause.PORT, "couldn't bind HTTP server socket"),
        ("b10434-oom-kv-cache.log", Cause.MEMORY, "failed to allocate CPU buffer"),
        ("b10434-vulkan-oom.log", Cause.MEMORY, "ErrorOutOfDeviceMemory"),
    ],
)
def test_a_recorded_failure_is_known(name: str, cause: Cause, telling: str) -> None:
    """Each is permanent, with its cause, the line that says so among the telling ones, and no line that says nothing."""
    found = diagnose(read(name))
    assert (found.cause, found.permanent) == (cause, True)
    assert found.help
    assert any(telling in line for line in found.lines)
    assert not any("exiting due to" in line for line in found.lines)


def test_a_good_start_has_no_sign() -> None:
    """No sign matches what a healthy engine prints."""
    found = diagnose(read("b10434-silent-cpu-fallback.log"))
    assert (found.cause, found.permanent) == (Cause.UNKNOWN, False)


def test_wrappers_and_benign_lines_decide_nothing() -> None:
    """They say that something failed, or that the engine helps itself."""
    lines = [
        "E srv load_model: failed to load model, 'x.gguf'",
        "W sched_reserve: failed to allocate compute buffers, retrying without pipeline parallelism",
        "W failed to allocate 12 MiB of pinned memory: out of memory",
    ]
    assert diagnose(lines).cause is Cause.UNKNOWN
    assert telling_lines(lines) == (lines[0],)


def test_an_illegal_instruction_is_the_builds_fault() -> None:
    """SIGILL needs no text: the same build will do it again."""
    found = diagnose(["loading"], signal_number=4)
    assert (found.cause, found.permanent) == (Cause.CPU, True)


def test_a_kill_without_text_may_be_tried_again() -> None:
    """SIGKILL leaves no word; the lines are then the last ones."""
    found = diagnose(["one", "", "two"], signal_number=9)
    assert not found.permanent
    assert found.lines == ("one", "two")
    assert describe_exit(None, 9) == "SIGKILL"
    assert describe_exit(3, None) == "exit code 3"


def test_signs_are_in_order_from_specific_to_general() -> None:
    """A bind failure is a port's, although the engine then says more."""
    assert SIGNS[0].cause is Cause.PORT
