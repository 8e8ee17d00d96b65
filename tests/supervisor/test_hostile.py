"""Lines and answers of engines that no engine of good will gives: inputs that `make fuzz` found, kept."""

import json

import pytest

from launcher.backends.canary import listed_models
from launcher.supervisor.breakdown import Breakdown, read_line
from launcher.supervisor.faults import End, classify
from launcher.supervisor.placement import parse_placement
from launcher.supervisor.readiness import _excerpt, is_completion
from launcher.supervisor.signs import Cause
from launcher.supervisor.vllm_told import parse_told

_LONG = "9" * 5000
"""Python refuses to read so many digits as a number."""
_NO_NUMBERS = ("1.2.3", ".", "..", _LONG, "9" * 400, f"1.{_LONG}")


@pytest.mark.parametrize("number", _NO_NUMBERS)
@pytest.mark.parametrize(
    "line",
    [
        "load_tensors:  Vulkan0 model buffer size = {} MiB",
        "load_tensors: layer {} assigned to device CUDA0, is_swa = 0",
        "load_tensors: offloaded {0}/{0} layers to GPU",
        "Model loading took {} GiB memory",
        "Available KV cache memory: {} GiB",
        "GPU KV cache size: {} tokens",
        "Maximum concurrency for 2,048 tokens per request: {}x",
    ],
)
def test_what_is_no_figure_tells_nothing(line: str, number: str) -> None:
    """A line with two points in its number ended the supervisor's reading of the log."""
    placed = parse_placement([line.format(number)])
    assert (placed.n_gpu_layers, placed.devices, placed.vllm) == (None, (), None)
    assert parse_told([line.format(number)]) is None


@pytest.mark.parametrize("number", [number for number in _NO_NUMBERS if number[0] != "."])
@pytest.mark.parametrize(
    "line",
    [
        "cudaMalloc failed: out of memory: allocating {} MiB on device 0: cudaMalloc failed: out of memory",
        "failed to allocate CPU buffer of size {}",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {} GiB. GPU 0 has a total capacity of 1 GiB",
        "Free memory on device cuda:0 ({0}/23.6 GiB) on startup is less than desired GPU memory utilization (0.9, {0} GiB)",
    ],
)
def test_a_refusal_without_a_figure_is_one_all_the_same(line: str, number: str) -> None:
    """Memory ran out, and how much was asked for is unknown."""
    fault = classify(End(lines=(line.format(number),), code=1))
    assert fault.cause is Cause.MEMORY
    assert fault.n_bytes is None


@pytest.mark.parametrize("figure", [-5, 10**12, 10**400])
def test_a_breakdown_of_no_memory_is_none(figure: int) -> None:
    """As JSON it may have any number; none is taken that no memory has."""
    row = {"name": "Host", "model": figure, "context": 1, "compute": 1}
    line = json.dumps({"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": [row]}})
    assert read_line(Breakdown(), "memory_breakdown " + line) == Breakdown()
    assert read_line(Breakdown(), line) == Breakdown()
    text = f"memory_breakdown_print: |   - Host  |  {abs(figure)}{_LONG} = {_LONG} + 4 + 3 |"
    assert read_line(Breakdown(), text) == Breakdown()


def test_an_answer_nested_without_end_is_no_completion() -> None:
    """A list of lists of lists: the decoder gives up with another fault than for what is no JSON."""
    answer = b"[" * 100_000
    assert not is_completion(answer)
    assert listed_models(answer) == []


def test_an_engines_words_cannot_steer_a_terminal() -> None:
    """They stand in the reason that `launch status` shows."""
    said = _excerpt(b"\x1b]0;title\x07\x1b[2Jno\r\n\xe2\x80\xaeevil" + b"x" * 500)
    assert said.isprintable()
    assert len(said) <= 200
