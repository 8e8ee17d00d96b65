"""Pages of the texts by which engines say what went wrong: one for each of the supervisor's signs. Data."""

from functools import partial
from typing import Final

from launcher.pages.page import Kind, Page, page_of

_sign = partial(page_of, Kind.SIGN)

_LESS: Final = "Plan with less: a smaller `--context`, fewer `--n-gpu-layers`, or a smaller `--quant`."
_WHO: Final = "`launch doctor` names who holds the memory, and which limits bind."
_AGAIN: Final = "Fetch the file again; `launch inspect FILE` reads its header."
_UPDATE: Final = "Update the engine: support comes with newer builds. Or choose another with `--engine`."
_WORKER: Final = "Start `launch worker` there again; `launch hardware --rpc HOST:PORT` shows whether it answers."

PAGES: Final[tuple[Page, ...]] = (
    _sign(
        "port-bind-refused",
        "llama-server could not listen on its port.",
        "Somebody else listens there, or the address is not this machine's.",
        "Of a port that clients see: choose another with `--port`; `launch doctor` names who has it.",
    ),
    _sign(
        "address-in-use",
        "The port is in use.",
        "Another server, or an earlier one of the same name that still runs.",
        "Of a port that clients see: choose another with `--port`; `launch ps` shows what is served here.",
    ),
    _sign(
        "buffer-beyond-device",
        "A part of the KV cache is larger than the device's largest buffer.",
        "Vulkan drivers bound a single buffer, some at 128 MiB to 4 GiB, however much memory the GPU has. The cache of one "
        "layer at a long context exceeds that.",
        "Ask for a smaller `--context`, or for fewer requests at once.",
    ),
    _sign(
        "kv-cache-refused",
        "The KV cache does not fit.",
        "The cache for the whole context is allocated at the start, after the weights; what was left did not suffice.",
        _LESS,
        _WHO,
    ),
    _sign(
        "weights-buffer-refused",
        "The weights do not fit.",
        "The buffer for the layers of one device, or of the host, was refused.",
        _LESS,
        _WHO,
    ),
    _sign(
        "weights-map-refused",
        "The weights cannot be mapped.",
        "The process may map no more: a limit of its address space (`ulimit -v`, LimitAS=), seldom the memory itself.",
        "Lift the limit; `launch doctor` shows it.",
    ),
    _sign(
        "compute-buffer-refused",
        "The compute buffers do not fit.",
        "They hold what one step of the graph needs, and grow with `--ubatch-size` and, without flash attention, with the "
        "context. They are allocated last.",
        "A smaller `--ubatch-size` costs only the speed of prompts.",
        _WHO,
    ),
    _sign(
        "output-buffer-refused",
        "The memory ran out while the engine computed.",
        "The rows of the output are allocated when a request first needs them.",
        _LESS,
        _WHO,
    ),
    _sign(
        "cuda-malloc-refused",
        "The GPU's memory does not suffice.",
        "cudaMalloc refused a buffer; the line has its MiB and the number of the device.",
        _LESS,
        _WHO,
    ),
    _sign(
        "cuda-out-of-memory",
        "The GPU's memory ran out while it served.",
        "A pool of the driver grew, or another program took what was free. The engine aborts.",
        _LESS,
        _WHO,
    ),
    _sign(
        "cublas-alloc-failed",
        "The GPU's memory ran out while it served.",
        "cuBLAS allocates its workspace at first use, beside the engine's own buffers.",
        _LESS,
        _WHO,
    ),
    _sign(
        "vulkan-out-of-memory",
        "The GPU's memory does not suffice.",
        "The Vulkan driver refused an allocation (ErrorOutOfDeviceMemory); the line has its bytes.",
        _LESS,
        _WHO,
    ),
    _sign(
        "buffer-refused",
        "A memory does not suffice.",
        "A buffer was refused; the line names its memory and its bytes, and lines around it what it was for.",
        _LESS,
        _WHO,
    ),
    _sign(
        "host-malloc-refused",
        "The host's memory does not suffice.",
        "An allocation in host memory was refused: a limit of the address space, strict overcommit, or no memory left.",
        _LESS,
        _WHO,
    ),
    _sign(
        "bad-alloc",
        "The host's memory does not suffice.",
        "The engine's own code could not have what it asked for (std::bad_alloc, MemoryError).",
        _LESS,
        _WHO,
    ),
    _sign(
        "unknown-architecture",
        "The engine does not know the architecture.",
        "The model is newer than the build, or the file names an architecture that nobody else uses.",
        _UPDATE,
    ),
    _sign(
        "gguf-version",
        "The engine does not read this version of GGUF.",
        "The file was written by a newer program, or is in a version that was given up.",
        _UPDATE,
        "For a very old file: fetch one that was converted anew.",
    ),
    _sign(
        "unknown-tokenizer",
        "The engine does not know the tokenizer.",
        "The model is newer than the build; the architecture alone may be known already.",
        _UPDATE,
    ),
    _sign(
        "not-a-gguf",
        "The weights file is not a GGUF.",
        "It begins with other bytes: a page that said 'not found' saved under that name, a pointer of Git LFS, another format.",
        _AGAIN,
    ),
    _sign(
        "weights-cut-off",
        "The weights file is damaged.",
        "Tensors lie beyond its end: the download was interrupted.",
        _AGAIN,
    ),
    _sign(
        "header-unreadable",
        "The weights file is damaged.",
        "It ends within its header, or is empty.",
        _AGAIN,
    ),
    _sign(
        "tensor-missing",
        "The weights lack a tensor, or have another than their architecture says.",
        "A conversion that failed half-way, a file for a fork of the engine, or one shard of several.",
        "Fetch a file that was converted for this engine; all shards lie in one folder.",
        _UPDATE,
    ),
    _sign(
        "weights-not-opened",
        "The weights file cannot be opened.",
        "It was moved or removed, or this user may not read it.",
        "`launch doctor NAME` shows path and permissions.",
    ),
    _sign(
        "rpc-version",
        "The worker runs another version of llama.cpp.",
        "The protocol of RPC changes with builds, and is not kept compatible.",
        "Install the same build on both machines.",
    ),
    _sign(
        "rpc-device-missing",
        "A worker does not answer.",
        "The engine went on without it and then missed its device.",
        _WORKER,
    ),
    _sign(
        "library-missing",
        "The engine's installation is incomplete.",
        "The loader did not find a shared library, or Python a module; the line names it.",
        "Install what the line names, or another build of the engine.",
        "`launch doctor` lists what each engine's libraries lack.",
    ),
    _sign(
        "argument-refused",
        "llama-server refused its arguments.",
        "The build is older or newer than the option, or does not take the value.",
        "Update the engine, or choose another with `--engine`.",
    ),
    _sign(
        "python-argument-refused",
        "llama_cpp.server refused its arguments.",
        "The release does not know the option, or does not take the value.",
        "Update llama-cpp-python, or choose another with `--engine`.",
    ),
    _sign(
        "driver-mismatch",
        "The GPU's driver and this build of the engine do not go together.",
        "The build needs a newer driver than is loaded, or was compiled without code for this GPU.",
        "`launch doctor` compares what the driver offers with what the build needs.",
        "Update the driver, or install a build that fits it.",
    ),
    _sign(
        "device-failed",
        "The GPU or its driver failed while it computed.",
        "An illegal access, a reset, a device that was lost. The line before it often names the operation.",
        "If it comes back: the kernel's messages name the fault (`journalctl -k`); heat and power are the usual reasons.",
    ),
    _sign(
        "rpc-worker-lost",
        "A worker was lost.",
        "Its connection ended while the engine used it; llama.cpp then aborts.",
        _WORKER,
    ),
    _sign(
        "rpc-worker-silent",
        "A worker does not answer.",
        "Nobody listens at its address, or a firewall is between.",
        _WORKER,
    ),
    _sign(
        "torch-host-refused",
        "The host's memory does not suffice.",
        "PyTorch was refused an allocation on the processor; the line has its bytes.",
        _LESS,
        _WHO,
    ),
    _sign(
        "torch-gpu-refused",
        "The GPU's memory does not suffice.",
        "PyTorch was refused an allocation; the line has its size, the GPU, and what is free there.",
        _LESS,
        _WHO,
    ),
    _sign(
        "vllm-share-not-free",
        "Less is free than the share of the memory that vLLM was to take.",
        "vLLM takes a share of the whole memory, and refuses to start when another program holds a part of it.",
        _WHO,
        "The launcher plans the share from what is free; planned again it is smaller.",
    ),
    _sign(
        "vllm-cache-too-small",
        "The KV cache does not fit.",
        "What weights and graphs leave of vLLM's share does not hold one request of full length. The line often names the "
        "length that it could hold.",
        "Ask for a smaller `--context`; the launcher goes on with the length that vLLM names, unless it was ordered.",
    ),
    _sign(
        "vllm-unknown-architecture",
        "vLLM does not know the architecture.",
        "The model is newer than the release, or needs code of its own, which is not run here.",
        _UPDATE,
    ),
    _sign(
        "vllm-unknown-quantization",
        "vLLM does not know the quantization.",
        "The configuration names a method that this release does not have.",
        _UPDATE,
    ),
    _sign(
        "vllm-other-shapes",
        "The weights have other shapes than the configuration says.",
        "Files of two revisions, or of two models, in one folder.",
        "Fetch the repository again into an empty folder.",
    ),
    _sign(
        "safetensors-damaged",
        "A weights file is damaged.",
        "Its header does not cover the file: the download was interrupted.",
        "Fetch the file again; `launch inspect FOLDER` reads the headers.",
    ),
    _sign(
        "vllm-weights-not-found",
        "The weights cannot be found.",
        "The folder has no safetensors, or the name is neither a folder nor a repository.",
        "`launch doctor NAME` shows which files are there.",
    ),
    _sign(
        "vllm-context-too-long",
        "More context was asked for than the model has.",
        "vLLM refuses a length above what the model's configuration gives.",
        "Ask for at most what the line names.",
    ),
    _sign(
        "vllm-argument-refused",
        "vLLM refused its arguments.",
        "The release does not know an option, or its settings contradict each other; the line says which.",
        "Update vLLM, or choose another engine with `--engine`.",
    ),
    _sign(
        "vllm-worker-died",
        "One of vLLM's workers was lost.",
        "A process of one rank ended: killed for memory, or failed in its driver. vLLM then ends, with exit code 0.",
        "The lines before it may name the cause; `launch doctor` shows memory and limits.",
    ),
    _sign(
        "vllm-core-died",
        "vLLM's engine core was lost.",
        "The process that computes ended, and the server with it, with exit code 0.",
        "The lines before it may name the cause; `launch doctor` shows memory and limits.",
    ),
)
