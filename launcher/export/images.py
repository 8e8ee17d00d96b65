"""The pinned images and versions that exported files name, as data.

It must not know plans. What is pinned satisfies `launcher.inventory.vllm_holes`: a test compares.
"""

from typing import Final

VLLM_VERSION: Final = "0.32.0"
"""The release whose options ``launcher.backends.vllm`` writes."""
VLLM_IMAGE: Final = f"docker.io/vllm/vllm-openai:v{VLLM_VERSION}"

LLAMA_BUILD: Final = "b11382"
"""Images are published of some builds only; this one lies between the two whose options were tried (10434 and 11434)."""
_LLAMA: Final = "ghcr.io/ggml-org/llama.cpp"
LLAMA_IMAGES: Final = {
    None: f"{_LLAMA}:server-{LLAMA_BUILD}",
    "cuda": f"{_LLAMA}:server-cuda-{LLAMA_BUILD}",
    "rocm": f"{_LLAMA}:server-rocm-{LLAMA_BUILD}",
}
"""By the kind of device that the image is built for; ``None`` is the CPU."""
LLAMA_SERVER: Final = "/app/llama-server"
"""Where those images have it."""
LLAMA_DEVICES: Final = {"cuda": "CUDA", "rocm": "ROCm"}
"""What those builds call their devices, a number follows."""

RAY_VERSION: Final = "2.58.0"
RAY_VLLM_VERSION: Final = "0.26.0"
"""What the image has of vLLM."""
RAY_IMAGE: Final = f"docker.io/rayproject/ray-llm:{RAY_VERSION}-py312-cu130"

SKYPILOT_GPUS: Final = {
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100-SXM4-40GB": "A100",
    "NVIDIA L40S": "L40S",
    "NVIDIA L4": "L4",
    "Tesla T4": "T4",
    "AMD Instinct MI300X": "MI300X",
    "NVIDIA GeForce RTX 5090": "RTX5090",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "NVIDIA GeForce RTX 3090": "RTX3090",
}
"""Names in SkyPilot's catalog (0.14.1) of GPUs as their drivers name them."""
