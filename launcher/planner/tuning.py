"""Measured settings in a chosen plan, where the user fixed none.

It must not know how anything was measured.
"""

from typing import Final

from msgspec.structs import replace

from launcher.domain import Calibration, EngineInstall, Provenance, Speed, Tuning
from launcher.planner.ask import Ask
from launcher.planner.calibration import build_of
from launcher.planner.sizing import Candidate, Trial, try_shape

_SPEED_FIELDS: Final = ("n_threads", "n_batch", "n_ubatch", "flash_attn")


def find_tuning(
    calibration: Calibration | None,
    install: EngineInstall | None,
    candidate: Candidate,
    n_gpu_layers: int,
    n_cpu_moe: int,
) -> Tuning | None:
    """Return what was measured of these weights in this build at this placement."""
    if calibration is None or install is None:
        return None
    wanted = (
        build_of(install),
        candidate.architecture.name,
        candidate.weights.total_bytes,
        n_gpu_layers,
        n_cpu_moe,
    )
    for tuning in calibration.tunings:
        have = (tuning.build, tuning.architecture, tuning.weights_bytes, tuning.n_gpu_layers, tuning.n_cpu_moe)
        if have == wanted:
            return tuning
    return None


def apply_tuning(trial: Trial, ask: Ask) -> Trial:
    """Give a chosen trial the measured settings, where the user fixed none and it still fits with them.

    The measured rates become the prediction only if all settings that they were measured with are in effect.
    """
    target, shape, fixed = trial.target, trial.shape, ask.settings
    tuning = find_tuning(
        target.calibration, target.install, trial.candidate, trial.config.n_gpu_layers, trial.config.n_cpu_moe
    )
    if tuning is None:
        return trial
    settings = replace(
        fixed,
        n_threads=fixed.n_threads or tuning.n_threads,
        n_batch=fixed.n_batch or tuning.n_batch,
    )
    measured_shape = replace(
        shape,
        n_ubatch=fixed.n_ubatch or tuning.n_ubatch,
        flash_attn=tuning.flash_attn if fixed.flash_attn is None else fixed.flash_attn,
    )
    tuned = try_shape(trial.candidate, replace(ask, settings=settings), target, measured_shape)
    if not tuned.fits:
        return trial
    as_measured = all(getattr(fixed, name) in {None, getattr(tuning, name)} for name in _SPEED_FIELDS)
    if as_measured:
        measured = Speed(generation_tps=tuning.generation_tps, prompt_tps=tuning.prompt_tps, basis=Provenance.MEASURED)
        tuned = replace(tuned, speed=measured)
    return replace(tuned, tuning=tuning)


def describe_tuning(tuning: Tuning) -> str:
    """Say in a note what was taken over, and what it gave when it was measured."""
    return (
        "threads, batch and flash attention follow `launch calibrate` where they were not fixed: "
        f"{tuning.prompt_tps:.0f} prompt and {tuning.generation_tps:.0f} generated tokens/s were measured here"
    )
