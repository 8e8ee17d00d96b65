"""The texts by which engines say what went wrong, as data: pattern, meaning, engines, evidence with its builds.

It must not know how an engine ended, nor what follows. The evidence is a transcript below ``tests/transcripts``, recorded
from a real failure, or, where the machine of the recordings cannot provoke it, a place in the source of llama.cpp build
11434 (marked ``source:``). Pure.
"""

import re
from enum import StrEnum
from typing import Final

from launcher.domain import Engine, Noun


class Cause(StrEnum):
    """What goes wrong with engines."""

    MEMORY = "memory"
    """An allocation was refused; the engine usually says which."""
    KILLED_FOR_MEMORY = "killed-for-memory"
    """The kernel ended it: its control group or the machine had no memory left."""
    WEIGHTS = "weights"
    UNSUPPORTED = "unsupported"
    ARGUMENT = "argument"
    PORT = "port"
    CPU = "cpu"
    INSTALL = "install"
    DRIVER = "driver"
    DEVICE_LOST = "device-lost"
    """A device, or the worker that stands for one, failed while it was used."""
    HUNG = "hung"
    """Up, and no longer answering."""
    SICK = "sick"
    """Up, and answering every request with an error that it does not explain."""
    SPILLED = "spilled"
    """Answering, far slower than it should: memory overflowed to where it is slow, without an error."""
    UNKNOWN = "unknown"


class Part(StrEnum):
    """What an allocation was for."""

    WEIGHTS = "weights"
    KV_CACHE = "kv-cache"
    COMPUTE = "compute"


_SOURCE: Final = "source: "


class Sign(Noun, frozen=True):
    """A text that engines print, searched in each line. `launch explain` has a page for its ``code``."""

    code: str
    pattern: str
    cause: Cause
    meaning: str
    evidence: tuple[str, ...]
    engines: tuple[Engine, ...] = (Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON)
    part: Part | None = None

    @property
    def builds(self) -> tuple[str, ...]:
        """The builds that were seen to print it, by their transcripts' names; none where only the source shows it."""
        names = [path.partition("/")[2] for path in self.evidence if not path.startswith(_SOURCE)]
        return tuple(sorted({name.partition("-")[0].removeprefix("b") for name in names}))


_SERVER: Final = (Engine.LLAMA_SERVER,)
_PYTHON: Final = (Engine.LLAMA_CPP_PYTHON,)

_LLAMA_CPP_SIGNS: Final = (
    Sign(
        code="port-bind-refused",
        pattern=r"couldn't bind HTTP server socket",
        cause=Cause.PORT,
        meaning="the port is in use",
        evidence=("llama-server/b10434-port-in-use.log", "llama-server/b11434-port-in-use.log"),
        engines=_SERVER,
    ),
    Sign(
        code="address-in-use",
        pattern=r"[Aa]ddress already in use",
        cause=Cause.PORT,
        meaning="the port is in use",
        evidence=("llama-cpp-python/0.3.36-port-in-use.log", "vllm/0.32.0-cpu-port-in-use.log"),
        engines=(*_PYTHON, Engine.VLLM),
    ),
    Sign(
        code="buffer-beyond-device",
        pattern=r"pre-allocated tensor \(\S+\) in a buffer \(\S+\) that cannot run the operation",
        cause=Cause.MEMORY,
        meaning="a part of the KV cache is larger than the device's largest buffer",
        evidence=("llama-server/b10434-vulkan-cache-beyond-largest-buffer.log",),
        part=Part.KV_CACHE,
    ),
    Sign(
        code="kv-cache-refused",
        pattern=r"failed to allocate buffer for (?:kv|rs) cache",
        cause=Cause.MEMORY,
        meaning="the KV cache does not fit",
        evidence=(
            "llama-server/b10434-oom-kv-cache.log",
            "llama-server/b11434-oom-kv-cache.log",
            "llama-server/b10434-vulkan-oom.log",
            "llama-server/b11434-rpc-oom-kv-cache.log",
            "llama-cpp-python/0.3.36-oom-kv-cache.log",
        ),
        part=Part.KV_CACHE,
    ),
    Sign(
        code="weights-buffer-refused",
        pattern=r"unable to allocate \S+ buffer",
        cause=Cause.MEMORY,
        meaning="the weights do not fit",
        evidence=(
            "llama-server/b10434-oom-weights.log",
            "llama-server/b11434-oom-weights.log",
            "llama-server/b10434-vulkan-oom-weights.log",
            "llama-server/b10434-rpc-oom-weights.log",
        ),
        part=Part.WEIGHTS,
    ),
    Sign(
        code="weights-map-refused",
        pattern=r"mmap failed: Cannot allocate memory",
        cause=Cause.MEMORY,
        meaning="the weights cannot be mapped",
        evidence=("llama-server/b10434-oom-map.log",),
        part=Part.WEIGHTS,
    ),
    Sign(
        code="compute-buffer-refused",
        pattern=r"failed to allocate compute",
        cause=Cause.MEMORY,
        meaning="the compute buffers do not fit",
        evidence=(
            "llama-server/b10434-oom-compute.log",
            "llama-server/b11434-oom-compute.log",
            "llama-server/b10434-vulkan-oom-host-buffer.log",
            "llama-cpp-python/0.3.36-oom-compute.log",
        ),
        part=Part.COMPUTE,
    ),
    Sign(
        code="output-buffer-refused",
        pattern=r"failed to allocate output buffer",
        cause=Cause.MEMORY,
        meaning="the memory ran out while it computed",
        evidence=("llama-cpp-python/0.3.36-oom-host-serving.log",),
        part=Part.COMPUTE,
    ),
    Sign(
        code="cuda-malloc-refused",
        pattern=r"cudaMalloc failed: out of memory",
        cause=Cause.MEMORY,
        meaning="the GPU's memory does not suffice",
        evidence=("source: ggml/src/ggml-cuda/ggml-cuda.cu, ggml_backend_cuda_buffer_type_alloc_buffer",),
    ),
    Sign(
        code="cuda-out-of-memory",
        pattern=r"(?:CUDA|ROCm|MUSA) error: out of memory",
        cause=Cause.MEMORY,
        meaning="the GPU's memory ran out",
        evidence=("source: ggml/src/ggml-cuda/ggml-cuda.cu, ggml_cuda_error",),
        part=Part.COMPUTE,
    ),
    Sign(
        code="cublas-alloc-failed",
        pattern=r"CUBLAS_STATUS_ALLOC_FAILED",
        cause=Cause.MEMORY,
        meaning="the GPU's memory ran out",
        evidence=("source: ggml/src/ggml-cuda/common.cuh, CUBLAS_CHECK",),
        part=Part.COMPUTE,
    ),
    Sign(
        code="vulkan-out-of-memory",
        pattern=r"ErrorOutOfDeviceMemory|Device memory allocation of size \d+ failed",
        cause=Cause.MEMORY,
        meaning="the GPU's memory does not suffice",
        evidence=("llama-server/b10434-vulkan-oom.log", "llama-server/b10434-vulkan-oom-weights.log"),
    ),
    Sign(
        code="buffer-refused",
        pattern=r"failed to allocate \S+ buffer of size \d+",
        cause=Cause.MEMORY,
        meaning="the memory does not suffice",
        evidence=("llama-server/b10434-oom-kv-cache.log", "llama-server/b11434-rpc-oom-kv-cache.log"),
    ),
    Sign(
        code="host-malloc-refused",
        pattern=r"ggml_aligned_malloc: insufficient memory",
        cause=Cause.MEMORY,
        meaning="the host's memory does not suffice",
        evidence=("llama-server/b10434-oom-kv-cache.log", "llama-server/b11434-oom-weights.log"),
    ),
    Sign(
        code="bad-alloc",
        pattern=r"std::bad_alloc|\b(?:_Array)?MemoryError\b",
        cause=Cause.MEMORY,
        meaning="the host's memory does not suffice",
        evidence=("llama-server/b10434-oom-host-serving.log", "llama-cpp-python/0.3.36-oom-array.log"),
    ),
    Sign(
        code="unknown-architecture",
        pattern=r"unknown model architecture|unsupported model architecture",
        cause=Cause.UNSUPPORTED,
        meaning="the engine does not know the architecture",
        evidence=(
            "llama-server/b10434-unknown-architecture.log",
            "llama-server/b11434-unknown-architecture.log",
            "llama-cpp-python/0.3.36-unknown-architecture.log",
        ),
    ),
    Sign(
        code="gguf-version",
        pattern=r"this GGUF file is version \d+ but this software only supports|GGUFv1 is no longer supported",
        cause=Cause.UNSUPPORTED,
        meaning="the engine does not read this version of GGUF",
        evidence=("llama-server/b10434-newer-version.log", "llama-server/b11434-newer-version.log"),
    ),
    Sign(
        code="unknown-tokenizer",
        pattern=r"unknown (?:pre-)?tokenizer",
        cause=Cause.UNSUPPORTED,
        meaning="the engine does not know the tokenizer",
        evidence=("source: src/llama-vocab.cpp, llama_vocab::impl::load",),
    ),
    Sign(
        code="not-a-gguf",
        pattern=r"invalid magic",
        cause=Cause.WEIGHTS,
        meaning="the weights file is not a GGUF",
        evidence=("llama-server/b10434-not-a-gguf.log",),
    ),
    Sign(
        code="weights-cut-off",
        pattern=r"corrupted or incomplete",
        cause=Cause.WEIGHTS,
        meaning="the weights file is damaged",
        evidence=(
            "llama-server/b10434-data-cut-off.log",
            "llama-server/b11434-data-cut-off.log",
            "llama-cpp-python/0.3.36-data-cut-off.log",
        ),
    ),
    Sign(
        code="header-unreadable",
        pattern=r"gguf_init_from_\w+: failed to read",
        cause=Cause.WEIGHTS,
        meaning="the weights file is damaged",
        evidence=(
            "llama-server/b10434-truncated-weights.log",
            "llama-server/b10434-empty.log",
            "llama-server/b11434-empty.log",
        ),
    ),
    Sign(
        code="tensor-missing",
        pattern=r"check_tensor_dims: tensor '\S+' not found|missing tensor|wrong number of tensors|has wrong shape",
        cause=Cause.WEIGHTS,
        meaning="the weights file lacks a tensor, or has another than its architecture",
        evidence=("llama-server/b10434-missing-tensor.log", "llama-server/b11434-missing-tensor.log"),
    ),
    Sign(
        code="weights-not-opened",
        pattern=r"failed to open GGUF file|Model path does not exist",
        cause=Cause.WEIGHTS,
        meaning="the weights file cannot be opened",
        evidence=("llama-server/b10434-file-missing.log", "llama-cpp-python/0.3.36-file-missing.log"),
    ),
    Sign(
        code="rpc-version",
        pattern=r"RPC server version mismatch|RPC handshake failed",
        cause=Cause.INSTALL,
        meaning="the worker runs another version of llama.cpp",
        evidence=("llama-server/b11434-rpc-worker-of-another-version.log",),
        engines=_SERVER,
    ),
    Sign(
        code="rpc-device-missing",
        pattern=r"invalid device: RPC\d+",  # older builds go on without a worker, and miss its device then
        cause=Cause.DEVICE_LOST,
        meaning="a worker does not answer",
        evidence=("llama-server/b10434-rpc-worker-missing-by-name.log",),
        engines=_SERVER,
    ),
    Sign(
        code="library-missing",
        pattern=r"error while loading shared libraries|ModuleNotFoundError|ImportError:",
        cause=Cause.INSTALL,
        meaning="the engine's installation is incomplete",
        evidence=("source: the loader of glibc, and Python",),
    ),
    Sign(
        code="argument-refused",
        pattern=r"error: invalid argument|error: unknown argument|error while handling argument",
        cause=Cause.ARGUMENT,
        meaning="the engine refused its arguments",
        evidence=(
            "llama-server/b10434-unknown-flag.log",
            "llama-server/b11434-unknown-flag.log",
            "llama-server/b10434-bad-value.log",
            "llama-server/b11434-bad-device.log",
        ),
        engines=_SERVER,
    ),
    Sign(
        code="python-argument-refused",
        pattern=r"__main__\.py: error: (?:unrecognized arguments|argument )",
        cause=Cause.ARGUMENT,
        meaning="the engine refused its arguments",
        evidence=("llama-cpp-python/0.3.36-unknown-flag.log", "llama-cpp-python/0.3.36-bad-value.log"),
        engines=_PYTHON,
    ),
    Sign(
        code="driver-mismatch",
        pattern=r"driver version is insufficient|no kernel image is available|forward compatibility was attempted",
        cause=Cause.DRIVER,
        meaning="the GPU's driver and this build of the engine do not go together",
        evidence=("source: cudaGetErrorString, printed by ggml/src/ggml-cuda/ggml-cuda.cu",),
    ),
    Sign(
        code="device-failed",
        pattern=r"(?:CUDA|ROCm|MUSA) error:|ErrorDeviceLost|DeviceLostError",
        cause=Cause.DEVICE_LOST,
        meaning="the GPU or its driver failed while it computed",
        evidence=("source: ggml/src/ggml-cuda/ggml-cuda.cu, ggml_cuda_error; ggml/src/ggml-vulkan/ggml-vulkan.cpp",),
    ),
    Sign(
        code="rpc-worker-lost",
        pattern=r"Remote RPC server crashed or returned malformed response",
        cause=Cause.DEVICE_LOST,
        meaning="a worker was lost",
        evidence=(
            "llama-server/b10434-rpc-worker-lost.log",
            "llama-server/b11434-rpc-worker-lost.log",
            "llama-server/b11434-rpc-worker-lost-at-load.log",
        ),
        engines=_SERVER,
    ),
    Sign(
        code="rpc-worker-silent",
        pattern=r"ggml-rpc\.cpp:\d+: Failed to connect to",
        cause=Cause.DEVICE_LOST,
        meaning="a worker does not answer",
        evidence=("llama-server/b11434-rpc-worker-missing.log",),
        engines=_SERVER,
    ),
)

_VLLM: Final = (Engine.VLLM,)

_VLLM_SIGNS: Final = (
    Sign(
        code="torch-host-refused",
        pattern=r"can't allocate memory: you tried to allocate \d+ bytes",
        cause=Cause.MEMORY,
        meaning="the host's memory does not suffice",
        evidence=("vllm/0.32.0-cpu-oom-weights.log",),
        engines=_VLLM,
    ),
    Sign(
        code="torch-gpu-refused",
        pattern=r"CUDA out of memory\. Tried to allocate",
        cause=Cause.MEMORY,
        meaning="the GPU's memory does not suffice",
        evidence=("source: PyTorch's c10/cuda/CUDACachingAllocator.cpp",),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-share-not-free",
        pattern=r"on startup is less than desired (?:GPU|CPU) memory utilization",
        cause=Cause.MEMORY,
        meaning="less is free than the share of the memory that it was to take",
        evidence=("vllm/0.32.0-cpu-oom-at-start.log",),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-cache-too-small",
        pattern=r"is less than requested memory for kv|No available memory for the cache blocks|"
        r"To serve at least one request with the model",
        cause=Cause.MEMORY,
        meaning="the KV cache does not fit",
        evidence=("vllm/0.32.0-cpu-oom-kv-cache.log", "vllm/0.32.0-cpu-cache-below-one-request.log"),
        engines=_VLLM,
        part=Part.KV_CACHE,
    ),
    Sign(
        code="vllm-unknown-architecture",
        pattern=r"does not recognize this architecture|Model architectures \[.*\] are not supported",
        cause=Cause.UNSUPPORTED,
        meaning="the engine does not know the architecture",
        evidence=("vllm/0.32.0-cpu-unknown-architecture.log",),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-unknown-quantization",
        pattern=r"Unknown quantization method: ",
        cause=Cause.UNSUPPORTED,
        meaning="the engine does not know the quantization",
        evidence=("vllm/0.32.0-cpu-unknown-quantization.log",),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-other-shapes",
        pattern=r"The size of tensor a \(\d+\) must match the size of tensor b",
        cause=Cause.WEIGHTS,
        meaning="the weights have other shapes than the configuration says",
        evidence=("vllm/0.32.0-cpu-other-shapes.log",),
        engines=_VLLM,
    ),
    Sign(
        code="safetensors-damaged",
        pattern=r"SafetensorError: ",
        cause=Cause.WEIGHTS,
        meaning="the weights file is damaged",
        evidence=("vllm/0.32.0-cpu-data-cut-off.log",),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-weights-not-found",
        pattern=r"Cannot find any model weights with|Invalid repository ID or local directory specified|"
        r"LocalEntryNotFoundError: |HFValidationError: ",
        cause=Cause.WEIGHTS,
        meaning="the weights cannot be found",
        evidence=(
            "vllm/0.32.0-cpu-file-missing.log",
            "vllm/0.32.0-cpu-no-such-folder.log",
            "vllm/0.32.0-cpu-no-such-name.log",
        ),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-context-too-long",
        pattern=r"User-specified max_model_len \(\d+\) is greater than the derived max_model_len",
        cause=Cause.ARGUMENT,
        meaning="more context was asked for than the model has",
        evidence=("vllm/0.32.0-cpu-context-above-the-models.log",),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-argument-refused",
        pattern=r"vllm(?: serve)?: error: |validation errors? for \w+Config|\bValue error, ",
        cause=Cause.ARGUMENT,
        meaning="the engine refused its arguments",
        evidence=(
            "vllm/0.32.0-cpu-unknown-flag.log",
            "vllm/0.32.0-cpu-bad-value.log",
            "vllm/0.32.0-cpu-refused-settings.log",
        ),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-worker-died",
        pattern=r"Worker proc \S+ died unexpectedly",
        cause=Cause.DEVICE_LOST,
        meaning="one of its workers was lost",
        evidence=("vllm/0.32.0-cpu-worker-killed.log",),
        engines=_VLLM,
    ),
    Sign(
        code="vllm-core-died",
        pattern=r"engine core exited unexpectedly",
        cause=Cause.DEVICE_LOST,
        meaning="its engine core was lost",
        evidence=("vllm/0.32.0-cpu-core-killed.log",),
        engines=_VLLM,
    ),
)

SIGNS: Final = (*_LLAMA_CPP_SIGNS, *_VLLM_SIGNS)
"""Specific before general: the first of these that any line shows decides."""

RETRY: Final = re.compile(r"retrying without pipeline parallelism", re.IGNORECASE)
"""The engine gave up a copy of its buffers and tries again: what was refused before counts no longer."""
BENIGN: Final = re.compile(
    # Pinned memory is a convenience; a full cache of prompts is emptied; a full KV cache is tried with less. Of its open files
    # vLLM tells at each start.
    r"retrying without pipeline parallelism|failed to find free space in the KV cache, retrying|pinned memory|"
    r"failed to allocate memory for prompt cache state|failed to allocate host buffer for async uploads|"
    r"skipping reorder|Found ulimit of \d+ and failed to automatically increase",
    re.IGNORECASE,
)
"""Lines that look like a sign and are none."""
QUOTED: Final = re.compile(
    r"got exception: |send_error: |done request: |\bINFO: +\d+\.\d+\.\d+\.\d+:\d+ - |\{'type': '|"
    r"unable to match sampler by name"
)
"""Lines that repeat words of a client: whoever can send a request could else write a sign into the log."""
QUOTE_BEGIN: Final = re.compile(r"error parsing grammar: ")
QUOTE_END: Final = re.compile(r"failed to parse grammar$")
"""Between these a client's grammar stands word for word, over as many lines as it has."""
