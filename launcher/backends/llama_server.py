"""The command line of native ``llama-server`` for a plan.

Options are those of builds 10434 and 11434. Builds differ: an option that an older or newer build lacks is left out
only if the plan's value is what that build does anyway; otherwise the build is refused.
"""

from typing import Final

from msgspec.structs import replace

from launcher.backends.canary import CANARY_PATH, canary_body
from launcher.domain import Address, Command, EngineInstall, Plan
from launcher.errors import EngineTooOldError
from launcher.units import MIB

_Option = tuple[str, ...]

_HARMLESS_WITHOUT: Final = frozenset(
    {"--no-kv-unified", "--fit", "--op-offload", "--log-colors", "--offline", "--metrics"}
)
"""Options whose absence means that the build already behaves as the plan wants: it predates the other behaviour."""
_HARMLESS_AT_ZERO: Final = frozenset({"--cache-ram", "--ctx-checkpoints"})
"""A build without them keeps neither; the planner sets 0 for it."""


def _memory_options(plan: Plan) -> list[_Option]:
    """Return the options that the footprint depends on."""
    options: list[_Option] = [
        ("--ctx-size", str(plan.n_ctx)),
        ("--parallel", str(plan.n_parallel)),
        ("--kv-unified",) if plan.kv_unified else ("--no-kv-unified",),
        ("--batch-size", str(plan.n_batch)),
        ("--ubatch-size", str(plan.n_ubatch)),
        ("--n-gpu-layers", str(plan.n_gpu_layers)),
        ("--cache-type-k", plan.cache_type_k),
        ("--cache-type-v", plan.cache_type_v),
        ("--flash-attn", "on" if plan.flash_attn else "off"),
        ("--device", ",".join(plan.engine_devices) or "none"),
        ("--cache-ram", str(plan.cache_ram_bytes // MIB)),
        ("--ctx-checkpoints", str(plan.n_ctx_checkpoints)),
        ("--op-offload",) if plan.op_offload else ("--no-op-offload",),
        ("--fit", "off"),
    ]
    if plan.n_cpu_moe:
        options.append(("--n-cpu-moe", str(plan.n_cpu_moe)))
    if plan.tensor_split:
        shares = ",".join(f"{share:g}" for share in plan.tensor_split)
        options += [("--split-mode", "layer"), ("--tensor-split", shares)]
    if plan.swa_full:
        options.append(("--swa-full",))
    return options


def _mmap_option(plan: Plan, flags: frozenset[str]) -> list[_Option]:
    """Newer builds name how weights are read in one option; in older ones mapping is the default."""
    if "--load-mode" in flags:
        return [("--load-mode", "mmap" if plan.mmap else "none")]
    return [] if plan.mmap else [("--no-mmap",)]


def build_command(plan: Plan, install: EngineInstall, weights_path: str, address: Address, alias: str) -> Command:
    """Return the command for one build; ``address.port`` must be known.

    Raises:
        EngineTooOldError: the build lacks an option that the plan depends on.
    """
    options: list[_Option] = [
        ("--model", weights_path),
        ("--alias", alias),
        ("--host", address.host),
        ("--port", str(address.port)),
        # All of them, also those of which the plan uses none: their order numbers the devices.
        *([("--rpc", ",".join(install.workers))] if plan.workers else []),
        *_memory_options(plan),
        *_mmap_option(plan, install.flags),
        ("--threads", str(plan.n_threads)),
        ("--threads-batch", str(plan.n_threads_batch)),
        ("--log-verbosity", "4"),  # the level that tells where layers and buffers were placed
        ("--log-colors", "off"),
        ("--metrics",),
        ("--offline",),
    ]
    argv = list(install.argv)
    for option in options:
        if not install.flags or option[0] in install.flags:
            argv += option
        elif option[0] not in _HARMLESS_WITHOUT and not (option[0] in _HARMLESS_AT_ZERO and option[1] == "0"):
            msg = f"{install.argv[0]} ({install.version or 'unknown version'}) has no option {option[0]}"
            raise EngineTooOldError(msg, help="install a newer llama-server; `launch hardware` lists the ones found")
    return Command(
        argv=tuple(argv),
        env=install.env,
        address=address,
        ready_path="/health",
        canary_path=CANARY_PATH,
        canary_body=canary_body(alias),
        expected_gpu_layers=plan.n_gpu_layers if plan.engine_devices else 0,
        expected_footprint=plan.footprint,
    )


def tell_before_load(command: Command) -> Command | None:
    """Return the command under which the engine prints its memory breakdown before it loads; ``None`` where it cannot.

    ``--fit on`` makes it build model and context once without allocating them. It changes none of the planned values:
    the context is left alone where it was given, and so is the rest where the layers were ("n_gpu_layers already set by
    user, abort": ``common_params_fit_impl`` in llama.cpp's ``common/fit.cpp``, build 11434; seen in 10434 too).
    """
    argv = command.argv
    if "--fit" not in argv:
        return None
    idx = argv.index("--fit") + 1
    return replace(command, argv=(*argv[:idx], "on", *argv[idx + 1 :]), tells_memory=True)


def from_hub(command: Command, repository: str, file: str | None, quantization: str) -> Command:
    """Return a command that loads a file of a hub's repository, the quantization's where no file is known, instead of a path.

    A projector for pictures that the repository may have is not loaded: it is not in the plan's footprint.
    """
    argv = list(command.argv)
    idx = argv.index("--model")
    where = (
        ["--hf-repo", repository, "--hf-file", file]
        if file is not None
        else ["--hf-repo", f"{repository}:{quantization}"]
    )
    argv[idx : idx + 2] = [*where, "--no-mmproj"]
    argv.remove("--offline")
    return replace(command, argv=tuple(argv))
