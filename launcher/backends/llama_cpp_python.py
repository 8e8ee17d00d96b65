"""The command line of ``python -m llama_cpp.server`` for a plan.

Options are those of llama-cpp-python 0.3.36. It serves one request at a time, has no ``/health``, and is ready when it
lists its model.
"""

from typing import Final

from launcher.backends.canary import CANARY_PATH, canary_body
from launcher.domain import Address, CacheType, Command, EngineInstall, Plan
from launcher.errors import EngineMissingError
from launcher.tensor_types import TRAITS

_SPLIT_NONE: Final = "0"
_SPLIT_LAYER: Final = "1"


def _ggml_id(cache_type: CacheType) -> str:
    return str(TRAITS[cache_type.tensor_type].ggml_id)


def build_command(plan: Plan, install: EngineInstall, weights_path: str, address: Address, alias: str) -> Command:
    """Return the command; ``address.port`` must be known.

    Raises:
        EngineMissingError: the plan needs more parallel requests than the one this engine serves.
    """
    if plan.n_parallel > 1:
        msg = f"llama-cpp-python serves one request at a time; the plan has {plan.n_parallel}"
        raise EngineMissingError(msg, help="install llama-server, or ask for --parallel 1")
    argv = [
        *install.argv,
        *("--model", weights_path),
        *("--model_alias", alias),
        *("--host", address.host),
        *("--port", str(address.port)),
        *("--n_ctx", str(plan.n_ctx)),
        *("--n_batch", str(plan.n_batch)),
        *("--n_ubatch", str(plan.n_ubatch)),
        *("--n_gpu_layers", str(plan.n_gpu_layers)),
        *("--split_mode", _SPLIT_LAYER if plan.tensor_split else _SPLIT_NONE),
        *("--type_k", _ggml_id(plan.cache_type_k)),
        *("--type_v", _ggml_id(plan.cache_type_v)),
        *("--flash_attn", str(plan.flash_attn)),
        *("--use_mmap", str(plan.mmap)),
        *("--use_mlock", "False"),
        *("--offload_kqv", "True"),
        *("--logits_all", "False"),  # its default allocates an output row for every token of a batch
        *("--cache", "False"),
        *("--n_threads", str(plan.n_threads)),
        *("--n_threads_batch", str(plan.n_threads_batch)),
        *("--interrupt_requests", "False"),  # else whatever comes ends a running stream, as if it were complete
        *("--verbose", "True"),  # else it does not tell where layers and buffers were placed
    ]
    if plan.tensor_split:
        argv += ["--tensor_split", *(f"{share:g}" for share in plan.tensor_split)]
    return Command(
        argv=tuple(argv),
        env=install.env,
        address=address,
        ready_path="/v1/models",
        alive_path="/health",  # it has none, and says so at once: its list of models waits for the running request
        canary_path=CANARY_PATH,
        canary_body=canary_body(alias),
        expected_gpu_layers=plan.n_gpu_layers if plan.engine_devices else 0,
        expected_footprint=plan.footprint,
    )
