"""The whole text of a calibration's result."""

from msgspec.structs import replace

from launcher.domain import Calibration, Engine, MeasuredRates, Tuning
from launcher.render.calibration import render_calibration

_BEST = Tuning(
    engine=Engine.LLAMA_SERVER,
    build="58aaf471",
    architecture="gemma3",
    weights_bytes=1,
    n_gpu_layers=0,
    n_cpu_moe=0,
    n_threads=1,
    n_threads_batch=2,
    n_batch=2048,
    n_ubatch=512,
    flash_attn=True,
    prompt_tps=400.0,
    generation_tps=30.0,
    n_prompt=400,
    n_generated=30,
    measured_at=1.0,
)
_OTHER = replace(_BEST, engine=Engine.LLAMA_CPP_PYTHON, build="cf7b", prompt_tps=300.0, generation_tps=20.0)
_HOST = MeasuredRates(name="host", bandwidth_bytes_per_s=11.2e9, efficiency=0.775)


def test_the_whole_text() -> None:
    """Settings, rates, gain, the slower engine, the memory; what was left out, and that time ran out."""
    found = Calibration(machine="m", rates=(_HOST,), tunings=(_BEST, _OTHER))
    text = render_calibration(
        found, found.tunings, model="gemma3-270m", default_request_s=3.0, complete=False, left_out=["a: given up"]
    )
    assert text.splitlines() == [
        "`gemma3-270m` is fastest here with llama-server (58aaf471):",
        "  threads   1, 2 for prompts",
        "  batch     2048, in steps of 512; flash attention on",
        "  speed     400 prompt and 30.0 generated tokens/s",
        "  gain      1.50 times as fast as without a calibration",
        "  slower    llama-cpp-python (cf7b): 300 and 20.0 tokens/s",
        "  host      11 GB/s; generation reaches 78% of it",
        "  left out  a: given up",
        "  the time was over before every setting was measured; `--max-time` gives more",
    ]
    complete = render_calibration(
        found, found.tunings, model="gemma3-270m", default_request_s=3.0, complete=True, left_out=()
    )
    assert complete == text.partition("  left out")[0]
