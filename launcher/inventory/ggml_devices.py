"""A program that lists the devices of a ggml library, in the words of ``llama-server --list-devices``.

llama-cpp-python has no such option. It runs as a process of its own, because a GPU driver may crash or hang; it must not
know who asks. The calls are those of ``ggml/include/ggml-backend.h`` (llama.cpp build 11434).
"""

import ctypes
import sys

_CPU = 0
"""``GGML_BACKEND_DEVICE_TYPE_CPU``"""


def list_devices(library: str) -> str:
    """Return a heading, then a line per device that is not the processor.

    Raises:
        OSError: the library, or one that it needs, cannot be loaded.
    """
    ggml = ctypes.CDLL(library)
    device_p, size_p = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes, ggml.ggml_backend_dev_get.restype = [ctypes.c_size_t], device_p
    ggml.ggml_backend_dev_name.argtypes, ggml.ggml_backend_dev_name.restype = [device_p], ctypes.c_char_p
    ggml.ggml_backend_dev_description.argtypes = [device_p]
    ggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_type.argtypes = [device_p]
    ggml.ggml_backend_dev_memory.argtypes, ggml.ggml_backend_dev_memory.restype = [device_p, size_p, size_p], None

    lines = ["Available devices:"]
    for idx in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(idx)
        if ggml.ggml_backend_dev_type(device) == _CPU:
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        name = ggml.ggml_backend_dev_name(device).decode(errors="replace")
        description = ggml.ggml_backend_dev_description(device).decode(errors="replace")
        lines.append(f"  {name}: {description} ({total.value >> 20} MiB, {free.value >> 20} MiB free)")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(list_devices(sys.argv[1]))
