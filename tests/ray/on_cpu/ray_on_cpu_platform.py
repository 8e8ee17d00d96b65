"""vLLM's platform for CPUs, with the one attribute that its executor on Ray asks for: what a worker reserves."""

from vllm.platforms.cpu import CpuPlatform


class RayOnCpu(CpuPlatform):  # type: ignore[misc]  # vLLM is in another environment
    """Computes on the CPU, and reserves a GPU that a node declares."""

    ray_device_key = "GPU"
