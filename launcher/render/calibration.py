"""What a calibration found, as the lines that a person reads. Pure."""

from collections.abc import Sequence

from launcher.domain import Calibration, Tuning
from launcher.units import format_rate


def render_calibration(
    calibration: Calibration,
    tunings: Sequence[Tuning],
    *,
    model: str,
    default_request_s: float,
    complete: bool,
    left_out: Sequence[str],
) -> str:
    """Return the chosen settings of each build, the gain over the plan's own, what the memory delivered, and what was left out."""
    best = tunings[0]
    flash = "on" if best.flash_attn else "off"
    lines = [
        f"`{model}` is fastest here with {best.engine} ({best.build}):",
        f"  threads   {best.n_threads}, {best.n_threads_batch} for prompts",
        f"  batch     {best.n_batch}, in steps of {best.n_ubatch}; flash attention {flash}",
        f"  speed     {best.prompt_tps:.0f} prompt and {best.generation_tps:.1f} generated tokens/s",
        f"  gain      {default_request_s / best.request_s:.2f} times as fast as without a calibration",
    ]
    lines += [
        f"  slower    {other.engine} ({other.build}): {other.prompt_tps:.0f} and {other.generation_tps:.1f} tokens/s"
        for other in tunings[1:]
    ]
    lines += [
        f"  {rates.name:<9} {format_rate(rates.bandwidth_bytes_per_s)}; generation reaches {rates.efficiency:.0%} of it"
        for rates in calibration.rates
    ]
    lines += [f"  left out  {line}" for line in left_out]
    if not complete:
        lines.append("  the time was over before every setting was measured; `--max-time` gives more")
    return "\n".join(lines) + "\n"
