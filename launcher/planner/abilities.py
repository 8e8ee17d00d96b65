"""What an installed build of an engine lacks of the options that plans are made of.

Builds differ by years. A build that lacks what every plan needs is passed over; what only some plans need is planned
around (``Target``). It must not know models or machines.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from launcher.domain import Engine, EngineInstall

NEEDED_OPTIONS: Final[Mapping[Engine, tuple[str, ...]]] = {
    Engine.LLAMA_SERVER: (
        "--ctx-size", "--parallel", "--batch-size", "--ubatch-size", "--n-gpu-layers", "--cache-type-k",
        "--cache-type-v", "--flash-attn", "--device", "--threads", "--threads-batch", "--log-verbosity",
    ),
    Engine.LLAMA_CPP_PYTHON: (
        "--n_ctx", "--n_batch", "--n_ubatch", "--n_gpu_layers", "--split_mode", "--type_k", "--type_v", "--flash_attn",
        "--use_mmap", "--use_mlock", "--offload_kqv", "--logits_all", "--cache", "--n_threads", "--n_threads_batch",
        "--interrupt_requests", "--verbose",
    ),
    Engine.VLLM: (
        "--served-model-name", "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--dtype",
        "--kv-cache-dtype", "--tensor-parallel-size", "--pipeline-parallel-size", "--gpu-memory-utilization",
        "--kv-cache-memory-bytes", "--enforce-eager", "--cpu-offload-gb", "--load-format",
    ),
}  # fmt: skip
"""Without these a plan's memory or placement, or what becomes of a running request, would be left to a build's own defaults."""


def missing_options(install: EngineInstall) -> tuple[str, ...]:
    """Return what every plan needs and this build lacks; nothing where its options are unknown."""
    if not install.flags:
        return ()
    return tuple(option for option in NEEDED_OPTIONS.get(install.engine, ()) if option not in install.flags)


def has_option(install: EngineInstall | None, option: str) -> bool:
    """Tell whether a build has an option of llama-server's; an unknown build is taken for a current one."""
    if install is None or install.engine is not Engine.LLAMA_SERVER:
        return True
    return not install.flags or option in install.flags


def is_cpu_build(install: EngineInstall | None) -> bool:
    """Tell whether a vLLM is built for CPUs: its version says so, and it reaches no GPU."""
    version = install.version if install is not None and install.engine is Engine.VLLM else None
    return "cpu" in (version or "").partition("+")[2]


def describe_lack(install: EngineInstall) -> str:
    """Say of a build that is passed over what it lacks, or what is wrong with it."""
    version = f" ({install.version})" if install.version else ""
    faults = [f"has no {', '.join(missing_options(install))}"] if missing_options(install) else []
    return f"`{' '.join(install.argv)}`{version} {'; '.join((*faults, *install.holes))}"


def list_passed_over(installs: Iterable[EngineInstall]) -> Iterator[str]:
    """Yield a note on every build that is there and not used."""
    for install in installs:
        if not is_usable(install):
            yield f"{describe_lack(install)}: it is passed over"


def is_usable(install: EngineInstall) -> bool:
    """Tell whether a build has all that every plan needs, and no published fault that a served model is open to."""
    return not install.holes and not missing_options(install)
