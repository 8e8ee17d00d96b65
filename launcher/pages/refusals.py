"""Pages of the planner's refusals: one for each ``RefusalCode``, the shared ones apart. Data."""

from functools import partial
from typing import Final

from launcher.pages.page import Kind, Page, page_of

_refusal = partial(page_of, Kind.REFUSAL)

PAGES: Final[tuple[Page, ...]] = (
    _refusal(
        "exceeds-memory",
        "The model needs more than all memories of the machine can give together.",
        "Weights, cache and compute buffers are summed for the mildest form that was allowed, and compared with what is "
        "free, less a margin per memory. Offloading does not help: the sum itself is too large.",
        "Each line `help:` is a way out that was planned again and fits: paste its command.",
        "`launch plan NAME --inventory MACHINE` plans for another machine.",
        "A smaller context needs less cache: `launch plan NAME --context 4096`.",
    ),
    _refusal(
        "exceeds-device-memory",
        "A GPU cannot hold what was to be put on it.",
        "The sum of all memories would do, but layers were ordered onto the GPU (`--n-gpu-layers`), or the engine does not "
        "share a layer between memories.",
        "Leave `--n-gpu-layers` out to let the planner divide the model.",
        "`launch doctor` names the programs that hold the GPU's memory.",
    ),
    _refusal(
        "exceeds-host-memory",
        "The host's memory cannot hold its part.",
        "What is not on a GPU is in the host's memory, and so are parts of what is: buffers, caches of prompts. A control "
        "group's limit counts like missing memory.",
        "End programs that hold memory, or raise the limit: `launch doctor` names both.",
        "A smaller quantization needs less: `launch plan NAME --all` shows what else there is.",
    ),
    _refusal(
        "exceeds-context",
        "More context was ordered than the model was trained for.",
        "Beyond its training a model's answers degrade, without an error of the engine.",
        "Ask for at most what the message names, or override it with `--force`.",
    ),
    _refusal(
        "exceeds-disk",
        "The weights would not fit on the disk.",
        "Even the smallest form that was considered is larger than what is free where weights are kept.",
        "Free some space, or set HF_HUB_CACHE, for weights from addresses LAUNCHER_CACHE_DIR, to a folder on another disk.",
    ),
    _refusal(
        "below-speed-floor",
        "It would fit, but generate slower than the floor.",
        "Speed is predicted from the bytes that each token has to read and the bandwidth of the memory that they are in; a "
        "part on the processor decides it. The floor is 2 tokens/s where nobody set one.",
        "Lower the floor with `--min-tps`, or override it with `--force`.",
        "`launch calibrate` replaces assumed speeds by measured ones.",
    ),
    _refusal(
        "below-quality-floor",
        "Only forms worse than the quality floor would fit.",
        "The profile or `--min-quant` names the worst quantization to accept; those above it are too large.",
        "Lower the floor with `--min-quant`, or take a smaller model: below about 3 bits per weight that is mostly better.",
    ),
    _refusal(
        "no-such-quantization",
        "The model is not published at the quantization that was asked for.",
        "The profile lists what there is; the message has the list.",
        "Choose one of those listed, or leave `--quant` out.",
    ),
    _refusal(
        "no-engine",
        "None of the engines that can serve the model is installed.",
        "GGUF files are served by llama-server and llama-cpp-python, safetensors by vLLM.",
        "`launch hardware` lists what is found; the README says how to get the others.",
    ),
    _refusal(
        "unsupported",
        "What was asked for cannot be done, by any plan or by this engine.",
        "As a refusal: settings contradict each other, or no engine that was named can do them on this model. As the cause "
        "of an engine's end: it does not know the architecture, tokenizer, file version or quantization of the weights.",
        "The message names the setting, or the engine's own words.",
        "Newer models need newer engines: update it, or choose another with `--engine`.",
        also=Kind.CAUSE,
    ),
)
