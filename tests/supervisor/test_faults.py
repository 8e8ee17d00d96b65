"""What ended engines, by recorded transcripts of real failures."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import Footprint, HostUse, MemoryUse
from launcher.supervisor.faults import (
    Answer,
    End,
    Fault,
    classify,
    describe,
    describe_exit,
    find_sign,
    planned_memory,
    telling_lines,
    without_quotes,
)
from launcher.supervisor.signs import SIGNS, Cause, Part, Sign
from launcher.units import GIB
from tests.fakes.plans import plan_for

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
SIGNAL_NUMBERS = {"SIGABRT": 6, "SIGBUS": 7, "SIGKILL": 9, "SIGSEGV": 11}


def read(name: str) -> list[str]:
    """A transcript without its header."""
    lines = (TRANSCRIPTS / name).read_text().splitlines()
    return [line for line in lines if not line.startswith("# ")]


def end_of(name: str, *, was_ready: bool = False, n_oom_kills: int | None = 0) -> End:
    """How a transcript's process ended, by its header."""
    match = re.search(r"^# end: (?:exit code (\d+)|(SIG\w+))$", (TRANSCRIPTS / name).read_text(), re.MULTILINE)
    return End(
        lines=tuple(read(name)),
        code=int(match[1]) if match and match[1] else None,
        signal_number=SIGNAL_NUMBERS[match[2]] if match and match[2] else None,
        was_ready=was_ready,
        n_oom_kills=n_oom_kills,
    )


PERMANENT = [
    ("llama-server/b10434-file-missing.log", Cause.WEIGHTS, "failed to open GGUF file"),
    ("llama-server/b10434-not-a-gguf.log", Cause.WEIGHTS, "invalid magic characters: 'hell'"),
    ("llama-server/b10434-truncated-weights.log", Cause.WEIGHTS, "failed to read key-value pairs"),
    ("llama-server/b10434-empty.log", Cause.WEIGHTS, "failed to read magic"),
    ("llama-server/b11434-empty.log", Cause.WEIGHTS, "failed to read magic"),
    ("llama-server/b10434-data-cut-off.log", Cause.WEIGHTS, "corrupted or incomplete"),
    ("llama-server/b11434-data-cut-off.log", Cause.WEIGHTS, "corrupted or incomplete"),
    ("llama-server/b10434-missing-tensor.log", Cause.WEIGHTS, "'blk.0.attn_q.weight' not found"),
    ("llama-server/b11434-missing-tensor.log", Cause.WEIGHTS, "'blk.0.attn_q.weight' not found"),
    ("llama-server/b10434-unknown-architecture.log", Cause.UNSUPPORTED, "'gemmaX'"),
    ("llama-server/b11434-unknown-architecture.log", Cause.UNSUPPORTED, "'gemmaX'"),
    ("llama-server/b10434-newer-version.log", Cause.UNSUPPORTED, "version 9"),
    ("llama-server/b11434-newer-version.log", Cause.UNSUPPORTED, "version 9"),
    ("llama-server/b10434-unknown-flag.log", Cause.ARGUMENT, "invalid argument: --nonsense"),
    ("llama-server/b11434-unknown-flag.log", Cause.ARGUMENT, "invalid argument: --nonsense"),
    ("llama-server/b10434-bad-value.log", Cause.ARGUMENT, "Unsupported cache type: f17"),
    ("llama-server/b11434-bad-value.log", Cause.ARGUMENT, "Unsupported cache type: f17"),
    ("llama-server/b10434-bad-device.log", Cause.ARGUMENT, "invalid device: CUDA7"),
    ("llama-server/b11434-bad-device.log", Cause.ARGUMENT, "invalid device: CUDA7"),
    ("llama-server/b10434-port-in-use.log", Cause.PORT, "couldn't bind HTTP server socket"),
    ("llama-server/b11434-port-in-use.log", Cause.PORT, "couldn't bind HTTP server socket"),
    ("llama-server/b11434-rpc-worker-of-another-version.log", Cause.INSTALL, "version mismatch: 5.0.0"),
    ("llama-cpp-python/0.3.36-file-missing.log", Cause.WEIGHTS, "Model path does not exist"),
    ("llama-cpp-python/0.3.36-data-cut-off.log", Cause.WEIGHTS, "corrupted or incomplete"),
    ("llama-cpp-python/0.3.36-unknown-architecture.log", Cause.UNSUPPORTED, "'gemmaX'"),
    ("llama-cpp-python/0.3.36-unknown-flag.log", Cause.ARGUMENT, "--nonsense"),
    ("llama-cpp-python/0.3.36-bad-value.log", Cause.ARGUMENT, "'lots'"),
    ("llama-cpp-python/0.3.36-port-in-use.log", Cause.PORT, "address already in use"),
    ("vllm/0.32.0-cpu-port-in-use.log", Cause.PORT, "Address already in use"),
    ("vllm/0.32.0-cpu-unknown-architecture.log", Cause.UNSUPPORTED, "totally_made_up"),
    ("vllm/0.32.0-cpu-data-cut-off.log", Cause.WEIGHTS, "file not fully covered"),
    ("vllm/0.32.0-cpu-file-missing.log", Cause.WEIGHTS, "Cannot find any model weights"),
    ("vllm/0.32.0-cpu-unknown-quantization.log", Cause.UNSUPPORTED, "q4_k_m"),
    ("vllm/0.32.0-cpu-other-shapes.log", Cause.WEIGHTS, "size of tensor a (256)"),
    ("vllm/0.32.0-cpu-no-such-folder.log", Cause.WEIGHTS, "HFValidationError"),
    ("vllm/0.32.0-cpu-no-such-name.log", Cause.WEIGHTS, "LocalEntryNotFoundError"),
    ("vllm/0.32.0-cpu-unknown-flag.log", Cause.ARGUMENT, "--swap-space"),
    ("vllm/0.32.0-cpu-bad-value.log", Cause.ARGUMENT, "invalid choice: 'q8_0'"),
    ("vllm/0.32.0-cpu-refused-settings.log", Cause.ARGUMENT, "VllmConfig"),
    ("vllm/0.32.0-cpu-context-above-the-models.log", Cause.ARGUMENT, "max_model_len (8192)"),
]


@pytest.mark.parametrize(("name", "cause", "telling"), PERMANENT)
def test_what_no_plan_mends(name: str, cause: Cause, telling: str) -> None:
    """Given up at once, with help, and the line that says so among the telling ones, not those that say nothing."""
    found = classify(end_of(name))
    assert (found.cause, found.answer) == (cause, Answer.GIVE_UP)
    assert found.help
    assert any(telling in line for line in found.lines)
    assert not any("exiting due to" in line for line in found.lines)
    assert (found.memory, found.n_bytes, found.part) == (None, None, None)


OUT_OF_MEMORY = [
    ("llama-server/b10434-oom-weights.log", "host", 222073344, Part.WEIGHTS),
    ("llama-server/b10434-oom-map.log", "host", None, Part.WEIGHTS),
    ("llama-server/b10434-oom-kv-cache.log", "host", 3072589824, Part.KV_CACHE),
    ("llama-server/b10434-oom-compute.log", "host", 2841739296, Part.COMPUTE),
    ("llama-server/b11434-oom-weights.log", "host", 224296960, Part.WEIGHTS),
    ("llama-server/b11434-oom-kv-cache.log", "host", 3072589824, Part.KV_CACHE),
    ("llama-server/b11434-oom-compute.log", "host", 2862776352, Part.COMPUTE),
    ("llama-server/b10434-vulkan-oom.log", "Vulkan0", 1073741824, Part.KV_CACHE),
    ("llama-server/b10434-vulkan-oom-weights.log", "Vulkan0", 34365952, Part.WEIGHTS),
    ("llama-server/b10434-vulkan-oom-host-buffer.log", "host", 1763803200, Part.COMPUTE),
    ("llama-server/b10434-vulkan-cache-beyond-largest-buffer.log", "Vulkan0", None, Part.KV_CACHE),
    ("llama-server/b10434-rpc-oom-weights.log", "RPC0[127.0.0.1:43081]", 246587904, Part.WEIGHTS),
    ("llama-server/b10434-rpc-oom-kv-cache.log", "RPC0[127.0.0.1:48683]", 3686793216, Part.KV_CACHE),
    ("llama-server/b11434-rpc-oom-kv-cache.log", "RPC0[127.0.0.1:51025]", 3686793216, Part.KV_CACHE),
    ("llama-cpp-python/0.3.36-oom-kv-cache.log", "host", 6144393216, Part.KV_CACHE),
    ("llama-cpp-python/0.3.36-oom-compute.log", "host", 4315955200, Part.COMPUTE),
    ("vllm/0.32.0-cpu-oom-weights.log", "host", 196608000000, None),
    ("vllm/0.32.0-cpu-oom-at-start.log", "host", int((18.65 - 4.94) * GIB), None),
    ("vllm/0.32.0-cpu-oom-kv-cache.log", "host", int((400.0 - 5.08) * GIB), Part.KV_CACHE),
    ("llama-cpp-python/0.3.36-oom-array.log", "host", None, None),
]


@pytest.mark.parametrize(("name", "memory", "n_bytes", "part"), OUT_OF_MEMORY)
def test_out_of_memory_at_load(name: str, memory: str, n_bytes: int | None, part: Part | None) -> None:
    """Which memory refused how many bytes, and for what: the next plan down the ladder is sized by it."""
    found = classify(end_of(name))
    assert (found.cause, found.answer, found.was_ready) == (Cause.MEMORY, Answer.STEP_DOWN, False)
    assert (found.memory, found.n_bytes, found.part) == (memory, n_bytes, part)


def test_a_gpu_that_does_not_suffice_for_vllm() -> None:
    """Its own check before it loads, and PyTorch's allocator while it does. Not recorded here: by their sources."""
    check = (
        "ValueError: Free memory on device cuda:1 (15.50/23.60 GiB) on startup is less than desired GPU memory"
        " utilization (0.92, 21.71 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    found = classify(End(lines=(check,), code=1))
    assert (found.memory, found.n_bytes) == ("cuda:1", int((21.71 - 15.50) * GIB))
    torch = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.6 GiB"
    )
    found = classify(End(lines=(torch,), code=1))
    assert (found.cause, found.memory, found.n_bytes) == (Cause.MEMORY, "cuda:0", int(2.5 * GIB))


@pytest.mark.parametrize("name", ["worker-killed", "core-killed"])
def test_an_exit_code_of_vllm_proves_nothing(name: str) -> None:
    """It lost a process and ended with 0: started again, and the telling line is not the wrapper's."""
    found = classify(end_of(f"vllm/0.32.0-cpu-{name}.log", was_ready=True))
    assert (found.cause, found.answer) == (Cause.DEVICE_LOST, Answer.RESTART)
    assert len(found.lines) == 1


def test_out_of_memory_while_serving() -> None:
    """The host refused an allocation in the middle of a request, and the engine aborted two requests later."""
    found = classify(end_of("llama-server/b10434-oom-host-serving.log", was_ready=True))
    assert (found.cause, found.memory, found.was_ready) == (Cause.MEMORY, "host", True)
    assert any("std::bad_alloc" in line for line in found.lines)


def test_an_engine_that_lives_and_refuses_everything() -> None:
    """llama-cpp-python stays up without memory and answers every request with an error: its lines alone show it."""
    lines = read("llama-cpp-python/0.3.36-oom-host-serving.log")
    found = find_sign(lines, was_ready=True)
    assert found is not None
    assert (found.cause, found.memory, found.n_bytes, found.part) == (Cause.MEMORY, "host", 512 << 20, Part.COMPUTE)


def test_a_gpu_that_runs_out_while_serving() -> None:
    """CUDA's own words and the device's number; the process aborts. Not recorded here: by the engine's source."""
    lines = (
        "CUDA error: out of memory",
        "  current device: 1, in function alloc at ggml/src/ggml-cuda/ggml-cuda.cu:512",
        "  cuMemCreate(&handle, reserve_size, &prop, 0)",
        "ggml/src/ggml-cuda/ggml-cuda.cu:109: CUDA error",
    )
    found = classify(End(lines=lines, signal_number=6, was_ready=True))
    assert (found.cause, found.memory, found.part) == (Cause.MEMORY, "CUDA1", Part.COMPUTE)
    lines = (lines[0].replace("out of memory", "CUBLAS_STATUS_ALLOC_FAILED").replace("CUDA", "ROCm"), *lines[1:])
    assert classify(End(lines=lines, signal_number=6)).memory == "ROCm1"


def test_a_gpu_that_does_not_suffice_at_load() -> None:
    """The line carries MiB and device; the one after it the exact bytes. Not recorded here: by the engine's source."""
    cuda = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 7605.33 MiB on device 0: cudaMalloc failed: out of memory"
    found = classify(End(lines=(cuda,), code=1))
    assert (found.memory, found.n_bytes) == ("CUDA0", int(7605.33 * (1 << 20)))
    named = "alloc_tensor_range: failed to allocate CUDA0 buffer of size 7974767616"
    assert classify(End(lines=(cuda, named), code=1)).n_bytes == 7974767616


def test_a_workers_memory_by_the_plans_name() -> None:
    """A buffer bears the number that its device has at the worker: 0 at each, whatever the engine calls it."""
    names = ("10.0.0.1:50052", "10.0.0.2:50052/0", "10.0.0.2:50052/1")
    footprint = Footprint(devices=tuple(MemoryUse(name=name) for name in names), host=HostUse())
    plan = replace(plan_for(), footprint=footprint, engine_devices=("RPC0", "RPC1", "RPC2"))

    def named(memory: str) -> str | None:
        return planned_memory(Fault(cause=Cause.MEMORY, meaning="", memory=memory), plan)

    assert named("RPC0[10.0.0.1:50052]") == names[0]
    assert named("RPC0[10.0.0.2:50052]") == names[1]
    assert named("RPC1[10.0.0.2:50052]") == names[2]
    assert named("RPC0[10.0.0.3:50052]") is None
    assert (named("RPC1"), named("host")) == (names[1], "host")


def test_a_gpu_that_failed_is_started_again() -> None:
    """Any other CUDA error is the driver's or the device's."""
    found = classify(End(lines=("CUDA error: an illegal memory access was encountered",), signal_number=6))
    assert (found.cause, found.answer) == (Cause.DEVICE_LOST, Answer.RESTART)
    found = classify(End(lines=("CUDA error: no kernel image is available for execution on the device",)))
    assert (found.cause, found.answer) == (Cause.DRIVER, Answer.GIVE_UP)


@pytest.mark.parametrize(
    "name",
    [
        "b10434-rpc-worker-lost.log",
        "b10434-rpc-worker-missing-by-name.log",
        "b11434-rpc-worker-lost.log",
        "b11434-rpc-worker-lost-at-load.log",
        "b11434-rpc-worker-missing.log",
    ],
)
def test_a_lost_worker_may_come_back(name: str) -> None:
    """The restart policy decides: no smaller plan would help."""
    found = classify(end_of(f"llama-server/{name}"))
    assert (found.cause, found.answer) == (Cause.DEVICE_LOST, Answer.RESTART)


def test_a_kill_by_the_kernel_is_told_by_its_count() -> None:
    """SIGKILL leaves no text: that the group's count rose makes it want of memory, else it was somebody."""
    name = "llama-server/b10434-killed-for-memory.log"
    found = classify(end_of(name, n_oom_kills=1))
    assert (found.cause, found.answer, found.memory) == (Cause.KILLED_FOR_MEMORY, Answer.STEP_DOWN, "host")
    by_somebody = classify(end_of(name, n_oom_kills=0))
    assert (by_somebody.cause, by_somebody.meaning) == (Cause.UNKNOWN, "somebody ended it")
    untold = classify(end_of(name, n_oom_kills=None))
    assert (untold.cause, untold.answer) == (Cause.UNKNOWN, Answer.RESTART)
    assert "by somebody or by the kernel" in untold.meaning


def test_a_kill_of_one_process_among_several() -> None:
    """The engine then ends in its own way; a sign of its own goes first, for it is of what ended it."""
    assert classify(End(code=0, n_oom_kills=2)).cause is Cause.KILLED_FOR_MEMORY
    lost = end_of("vllm/0.32.0-cpu-worker-killed.log", was_ready=True, n_oom_kills=1)
    assert classify(lost).cause is Cause.KILLED_FOR_MEMORY
    assert classify(replace(end_of("llama-server/b10434-empty.log"), n_oom_kills=1)).cause is Cause.WEIGHTS


def test_a_signal_that_somebody_sent_is_not_explained_by_the_log() -> None:
    """An engine that survived a refused allocation, killed by a person later, is no reason to step down."""
    lines = ("E srv update_slots: decode() failed: std::bad_alloc",)
    assert classify(End(lines=lines, signal_number=15, was_ready=True, n_oom_kills=0)).cause is Cause.UNKNOWN
    assert classify(End(lines=lines, signal_number=6, was_ready=True, n_oom_kills=0)).cause is Cause.MEMORY


def test_a_weights_file_cut_under_the_engine() -> None:
    """A mapped file that shrinks gives SIGBUS; the next start reads the file anew and names it."""
    found = classify(end_of("llama-server/b10434-weights-cut-while-serving.log", was_ready=True))
    assert (found.cause, found.answer) == (Cause.UNKNOWN, Answer.RESTART)
    assert "mapped" in found.meaning


def test_a_good_start_has_no_sign() -> None:
    """No sign matches what healthy engines print, and the end of one is unknown, for the restart policy."""
    for name in (
        "b10434-silent-cpu-fallback",
        "b10434-lavapipe-ngl10",
        "b11434-rpc-ngl10",
        "b10434-rpc-worker-missing",
    ):
        assert find_sign(read(f"llama-server/{name}.log"), was_ready=False) is None
    found = classify(end_of("llama-server/b10434-silent-cpu-fallback.log"))
    assert (found.cause, found.answer) == (Cause.UNKNOWN, Answer.RESTART)


def test_of_an_unknown_end_the_first_exception_tells() -> None:
    """The last of vLLM's is that its core failed; what it caught before, at each start, tells nothing."""
    found = classify(end_of("vllm/0.32.0-cpu-too-many-ranks.log"))
    assert found.cause is Cause.UNKNOWN
    assert "AssertionError: Not enough allowed NUMA nodes" in next(line for line in found.lines if "Error: " in line)
    assert not any("Traceback" in line or "ulimit" in line or "Engine core init" in line for line in found.lines)
    first = "ValueError: the cause"
    later = [f"(Worker pid={n}) ERROR 11-22 01:02:03 [worker.py:{n}] RuntimeError: on its account" for n in range(20)]
    assert telling_lines([first, *later])[0] == first


def test_wrappers_and_benign_lines_decide_nothing() -> None:
    """They say that something failed, or that the engine helps itself."""
    lines = (
        "E srv load_model: failed to load model, 'x.gguf'",
        "W sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism",
        "W failed to allocate 12 MiB of pinned memory: out of memory",
        "W ggml_vulkan: Failed to allocate pinned memory (vk::Device::allocateMemory: ErrorOutOfDeviceMemory)",
        "E srv alloc: failed to allocate memory for prompt cache state: std::bad_alloc",
        "W srv update_slots: failed to find free space in the KV cache, retrying with smaller batch size",
    )
    assert classify(End(lines=lines, code=1)).cause is Cause.UNKNOWN
    assert telling_lines(lines) == (lines[0],)


def test_what_was_refused_before_a_retry_counts_no_longer() -> None:
    """With several devices the engine first tries copies of its buffers; without them it then fits."""
    refused = (
        "E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1700.00 MiB on device 1: cudaMalloc failed: out of memory",
        "E ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 1782579200",
        "E graph_reserve: failed to allocate compute buffers",
    )
    retry = "W sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism"
    assert classify(End(lines=(*refused, retry), code=1)).cause is Cause.UNKNOWN
    assert classify(End(lines=(*refused, retry, *refused), code=1)).memory == "CUDA1"


@pytest.mark.parametrize(
    "name", ["llama-server/b10434-words-of-clients.log", "llama-cpp-python/0.3.36-words-of-clients.log"]
)
def test_no_request_writes_a_sign_into_a_real_log(name: str) -> None:
    """Path, body, role, sampler, format and grammar of recorded requests were signs, a forged line of the log among them.

    The grammar ended llama-cpp-python: an unknown end, for the restart policy.
    """
    assert sum("std::bad_alloc" in line for line in read(name)) >= 3
    found = classify(replace(end_of(name, was_ready=True), signal_number=11))
    assert (found.cause, found.answer) == (Cause.UNKNOWN, Answer.RESTART)
    assert not any("std::bad_alloc" in line for line in without_quotes(read(name)))


def test_a_quotation_cannot_end_itself() -> None:
    """What a client puts behind the words that end it is still quoted; what the engine says afterwards counts."""
    quoted = [
        "parse: error parsing grammar: x",
        "failed to parse grammar",
        "std::bad_alloc",
        "E failed to parse grammar",
    ]
    assert without_quotes(["a", *quoted, "b"]) == ["a", "b"]
    assert without_quotes(["a", *quoted, "b", *quoted[:1], "std::bad_alloc"]) == ["a", "b"]
    own = "E ggml_aligned_malloc: insufficient memory (attempted to allocate 12.00 MB)"
    assert find_sign([*quoted, own], was_ready=True) is not None


@pytest.mark.parametrize(
    "line",
    [
        'E srv operator(): got exception: {"message":"last read: \'cudaMalloc failed: out of memory\'"}',
        "I srv log_server_r: done request: GET /ErrorOutOfDeviceMemory 127.0.0.1 404",
        'INFO:     127.0.0.1:33046 - "POST /std::bad_alloc HTTP/1.1" 404 Not Found',
    ],
)
def test_a_client_cannot_write_a_sign(line: str) -> None:
    """What repeats a request's words never counts: it would step the plan down at the next crash."""
    assert classify(End(lines=(line,), signal_number=11, was_ready=True)).cause is Cause.UNKNOWN


def test_an_illegal_instruction_is_the_builds_fault() -> None:
    """SIGILL needs no text: the same build will do it again."""
    found = classify(End(lines=("loading",), signal_number=4))
    assert (found.cause, found.answer) == (Cause.CPU, Answer.GIVE_UP)


def test_an_end_in_words() -> None:
    """Signals by name; the last lines where none tells; what was refused, and by which memory, as far as it is known."""
    told = describe(classify(end_of("llama-server/b10434-rpc-oom-kv-cache.log")))
    assert told == "the KV cache does not fit (3.4 GiB of RPC0[127.0.0.1:48683])"
    assert describe(Fault(cause=Cause.UNKNOWN, meaning="it gave no known reason")) == "it gave no known reason"
    assert describe(classify(End(signal_number=9, n_oom_kills=1))).endswith("(host)")
    assert classify(End(lines=("one", "", "two"), signal_number=9)).lines == ("one", "two")
    assert describe_exit(None, 9) == "SIGKILL"
    assert describe_exit(3, None) == "exit code 3"


def test_the_plans_name_of_a_memory() -> None:
    """The ladder speaks of `gpu1` where the engine says `CUDA0`, in the order of the plan."""
    plan = replace(
        plan_for(),
        engine_devices=("CUDA1", "CUDA0"),
        footprint=Footprint(devices=(MemoryUse(name="gpu1"), MemoryUse(name="gpu2")), host=HostUse()),
    )
    fault = Fault(cause=Cause.MEMORY, meaning="")
    names = {
        name: planned_memory(replace(fault, memory=name), plan) for name in ("CUDA1", "CUDA0", "host", "CUDA7", None)
    }
    assert names == {"CUDA1": "gpu1", "CUDA0": "gpu2", "host": "host", "CUDA7": None, None: None}


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: sign.pattern[:40])
def test_each_sign_has_its_evidence(sign: Sign) -> None:
    """Every transcript that is named shows it, from an engine and a build that are named; the rest names a place in the source."""
    assert sign.evidence
    for evidence in sign.evidence:
        if evidence.startswith("source: "):
            continue
        assert any(re.search(sign.pattern, line) for line in read(evidence)), evidence
        header = (TRANSCRIPTS / evidence).read_text().split("# version: ")[1].splitlines()[0]
        assert header.split()[0] in sign.builds
        assert evidence.partition("/")[0] in sign.engines


@given(lines=st.lists(st.text(max_size=80), max_size=20), number=st.one_of(st.none(), st.integers(1, 64)))
def test_any_log_is_classified(lines: list[str], number: int | None) -> None:
    """No text is an error; a kill that the kernel counted is always named."""
    found = classify(End(lines=tuple(lines), signal_number=number, n_oom_kills=1))
    assert found.meaning
    assert number != 9 or found.cause is Cause.KILLED_FOR_MEMORY
