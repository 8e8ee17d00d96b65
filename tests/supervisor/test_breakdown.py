"""What engines said that they need before they loaded, in recorded transcripts of both builds and both forms."""

from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import MemoryUse
from launcher.supervisor.breakdown import Breakdown, DeviceRow, read_line
from launcher.units import MIB

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts" / "llama-server"


def lines_of(name: str) -> list[str]:
    """A transcript's lines."""
    return (TRANSCRIPTS / name).read_text().splitlines()


def read(name: str) -> Breakdown:
    """Read a transcript to its end."""
    return reduce(read_line, lines_of(name), Breakdown())


def use(name: str, weights: int, context: int, compute: int) -> MemoryUse:
    """A memory's use in MiB."""
    return MemoryUse(name=name, weights_bytes=weights * MIB, kv_cache_bytes=context * MIB, compute_bytes=compute * MIB)


TWO_DEVICES = Breakdown(
    devices=(
        DeviceRow(use=use("RPC0", 35, 11, 44), free_bytes=24105 * MIB),
        DeviceRow(use=use("RPC1", 199, 10, 38), free_bytes=24105 * MIB),
    ),
    hosts=(use("Host", 170, 0, 24),),
    complete=True,
)


def test_a_device_with_brackets_in_its_description() -> None:
    """Build 10434: the device's parts and free memory; what the processor repacks is host memory too."""
    told = read("b10434-lavapipe-ngl10.log")
    assert told.devices == (DeviceRow(use=use("Vulkan0", 32, 4, 17), free_bytes=2048 * MIB),)
    assert told.hosts == (use("Host", 202, 4, 3), use("AMX", 190, 0, 0))
    assert told.host == use("host", 392, 4, 3)
    assert told.complete


def test_a_processor_alone() -> None:
    """Without a device there are only rows of the host."""
    told = read("b10434-silent-cpu-fallback.log")
    assert (told.devices, told.host) == ((), use("host", 424, 21, 20))


@pytest.mark.parametrize("name", ["b11434-two-devices-text.log", "b11434-two-devices-jsonl.log"])
def test_both_forms_say_the_same(name: str) -> None:
    """Build 11434, once in text and once as JSON lines."""
    assert read(name) == TWO_DEVICES


def test_the_object_alone_suffices() -> None:
    """A consumer of JSON may see only the object, without the rows as messages before it."""
    (line,) = (line for line in lines_of("b11434-two-devices-jsonl.log") if "fit_memory_breakdown" in line)
    assert read_line(Breakdown(), line) == TWO_DEVICES


def test_an_object_of_another_shape_leaves_the_rows() -> None:
    """A newer build may change its JSON; the text rows before it then stand, until the table's end."""
    told = reduce(read_line, lines_of("b11434-two-devices-text.log")[:24], Breakdown())
    changed = '{"type":"fit_memory_breakdown","data":{"unit":"GiB","rows":[]}}'
    assert read_line(told, changed) == told
    assert read_line(told, '{"type":"fit_memory_breakdown","data":7}') == told


def test_rows_are_known_as_they_come() -> None:
    """A device's row is known before the host's, and neither is the end: an excess can be seen at once."""
    lines = lines_of("b11434-two-devices-text.log")
    seen = [Breakdown()]
    for line in lines:
        if read_line(seen[-1], line) != seen[-1]:
            seen.append(read_line(seen[-1], line))
    shapes = [(len(told.devices), len(told.hosts), told.complete) for told in seen]
    assert shapes == [(0, 0, False), (1, 0, False), (2, 0, False), (2, 1, False), (2, 1, True)]


def test_other_lines_between_the_rows() -> None:
    """A library that writes to the same stream does not end the table."""
    lines = lines_of("b10434-lavapipe-ngl10.log")
    idx = next(idx for idx, line in enumerate(lines) if "- AMX" in line)
    with_noise = [*lines[:idx], "AMX is not ready to be used!", *lines[idx:]]
    assert reduce(read_line, with_noise, Breakdown()) == read("b10434-lavapipe-ngl10.log")


def test_what_is_printed_after_the_end_is_not_read() -> None:
    """The engine prints the same table again when it ends, with what it then holds."""
    lines = lines_of("b11434-two-devices-text.log")
    assert reduce(read_line, lines + lines, Breakdown()) == TWO_DEVICES


def test_a_file_that_cannot_be_read_has_no_breakdown() -> None:
    """The engine fails before it: nothing is told, and nothing complete."""
    assert read("b11434-data-cut-off.log") == Breakdown()


@given(st.text(max_size=300))
def test_no_text_is_an_error(text: str) -> None:
    """Whatever an engine prints, reading it goes on."""
    for line in (text, f"memory_breakdown_print: |   - {text}", f'{{"type":"fit_memory_breakdown",{text}'):
        told = read_line(TWO_DEVICES, line)
        assert told == TWO_DEVICES
        assert not read_line(Breakdown(), line).complete
