"""Names the platform under which vLLM for CPUs takes the GPUs that a Ray cluster's nodes declare.

A plugin of vLLM's: found by the entry point beside it. It must not import vLLM, which asks it while it is being imported.
"""


def register() -> str:
    """Return the platform's class by its path."""
    return "ray_on_cpu_platform.RayOnCpu"
