"""Writes a footprint, for a person or as JSON.

It must not know what the footprint is of, nor print.
"""

import msgspec

from launcher.domain import Footprint
from launcher.units import MIB

_COLUMNS = ("weights", "kv cache", "compute", "total")


def render_footprint_json(footprint: Footprint) -> str:
    """Return one JSON object, exact bytes: ``devices`` in order, then ``host``. It is of one machine, which has no name."""
    held = msgspec.to_builtins(footprint)
    del held["further_hosts"]
    for use in (*held["devices"], held["host"]):
        del use["host"]
    return msgspec.json.format(msgspec.json.encode(held), indent=2).decode() + "\n"


def render_footprint(footprint: Footprint) -> str:
    """Return one line per memory in MiB, then what serving may add on the host."""
    host = footprint.host
    rows = [
        (use.name, use.weights_bytes, use.kv_cache_bytes, use.compute_bytes, use.total_bytes)
        for use in footprint.devices
    ]
    rows.append(("host", host.weights_bytes, host.kv_cache_bytes, host.compute_bytes, host.engine_bytes))
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'MiB':<{width}}" + "".join(f"{column:>12}" for column in _COLUMNS)]
    lines += [f"{name:<{width}}" + "".join(f"{_mib(n_bytes):>12}" for n_bytes in parts) for name, *parts in rows]
    prompt_cache, checkpoints = _mib(host.prompt_cache_bytes), _mib(host.checkpoints_bytes)
    lines += [
        "",
        f"while serving, on the host: prompt cache up to {prompt_cache} MiB, checkpoints up to {checkpoints} MiB",
        f"as page cache that can be given back: {_mib(host.resident_mmap_bytes)} MiB of the weights file",
    ]
    return "\n".join(lines) + "\n"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f}"
