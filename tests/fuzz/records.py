"""State as it is written: one record of each kind, with all that a record can hold.

It must not know what is done with them.
"""

from collections.abc import Iterator

import msgspec

from launcher.domain import (
    Address,
    Calibration,
    Correction,
    Engine,
    InstanceRecord,
    Lesson,
    MeasuredRates,
    MemoryUse,
    Plan,
    ProcessId,
    Request,
    State,
    Tuning,
)
from launcher.inventory.machines import load_machines
from launcher.planner.advice import plan
from launcher.profiles import load_profile
from launcher.store import GuardRecord
from launcher.supervisor.account import without_tensors
from launcher.supervisor.breakdown import Breakdown, DeviceRow
from launcher.units import MIB


def calibration() -> Calibration:
    """Return what was measured of a machine: rates, a tuning, a correction."""
    return Calibration(
        machine="here",
        rates=(
            MeasuredRates(name="gpu0", bandwidth_bytes_per_s=9e11, efficiency=0.7, prompt_flops=5e13),
            MeasuredRates(name="host", bandwidth_bytes_per_s=4e10, efficiency=0.6),
        ),
        tunings=(
            Tuning(
                engine=Engine.LLAMA_SERVER,
                build="10434-abc",
                architecture="gemma2",
                weights_bytes=10**9,
                n_gpu_layers=5,
                n_cpu_moe=0,
                n_threads=4,
                n_threads_batch=8,
                n_batch=2048,
                n_ubatch=512,
                flash_attn=True,
                prompt_tps=900.0,
                generation_tps=40.0,
                n_prompt=512,
                n_generated=64,
                measured_at=1e9,
            ),
        ),
        corrections=(
            Correction(
                memory="gpu0",
                build="10434-abc",
                model="gemma2",
                configuration="any",
                lesson=next(iter(Lesson)),
                planned_bytes=10**9,
                unaccounted_bytes=10**8,
                learnt_at=1e9,
            ),
        ),
    )


def records() -> Iterator[tuple[str, bytes]]:
    """Yield each with its kind."""
    process = ProcessId(pid=2**22, start_time=123, boot_id="none")
    for name, machine in (("gemma2-9b", "rtx4090"), ("llama3.1-8b", "cpu-16g"), ("qwen3-30b-a3b", "rtx3060-12g")):
        outcome = plan(Request(profile=load_profile(name)), load_machines(machine))
        record = InstanceRecord(
            name="tiny",
            state=State.READY,
            supervisor=process,
            address=Address(port=8080),
            started_at=1e9,
            changed_at=1e9,
            reason="as planned",
            details=("a line",),
            guard=process,
            engine=process,
            ready_at=1e9,
            n_restarts=1,
            n_ladder_steps=1,
            story=("memory ran out", "less context"),
            offer="more context",
            slow="20 tokens/s where 40 were expected",
            last_exit="exit code 1",
            log_path="/x/engine.log",
            plan=without_tensors(outcome) if isinstance(outcome, Plan) else None,
        )
        yield "instance", msgspec.json.encode(record)
    yield "guard", msgspec.json.encode(GuardRecord(token="0123456789abcdef" * 2, guard=process, engine=process))
    yield "calibration", msgspec.json.encode(calibration())
    use = MemoryUse(name="CUDA0", weights_bytes=32 * MIB, kv_cache_bytes=MIB, compute_bytes=MIB)
    told = Breakdown(devices=(DeviceRow(use=use, free_bytes=None),), hosts=(use,), complete=True)
    yield "told", msgspec.json.encode(told)
