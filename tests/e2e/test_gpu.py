"""What only a machine with an NVIDIA GPU can show: ``pytest -m gpu`` there. Not measured where this was written."""

import json
import os
import signal
import subprocess

import pytest

from launcher.inventory import probe_inventory

pytestmark = [pytest.mark.gpu, pytest.mark.engine, pytest.mark.usefixtures("real_model")]


def test_the_driver_tells_what_a_plan_needs() -> None:
    """NVML gives memory, bandwidth, compute capability and PCI Express for every GPU, and an engine reaches it."""
    inventory = probe_inventory()
    assert inventory.devices
    for device in inventory.devices:
        assert device.free_bytes is not None
        assert 0 < device.free_bytes <= device.total_bytes
        assert device.bandwidth_bytes_per_s is not None
        assert device.compute_capability is not None
    assert any(install.has_gpu for install in inventory.engines or ())


def test_a_model_is_served_from_the_gpu(launch: tuple[str, ...], environment: dict[str, str]) -> None:
    """All layers are offloaded, and the engine's process holds at least the planned weights on the device."""
    command = [*launch, "serve", "gemma3-270m", "--port", "0", "--context", "2048", "--n-gpu-layers", "99"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as served:
        try:
            assert served.stdout is not None
            assert "/v1" in served.stdout.readline()
            status = subprocess.run(
                [*launch, "status", "gemma3-270m", "--json"],
                capture_output=True,
                text=True,
                env=environment,
                check=True,
            )
            record = json.loads(status.stdout)["record"]
            planned = sum(use["weights_bytes"] for use in record["plan"]["footprint"]["devices"])
            held = {
                process.pid: process.used_bytes
                for device in probe_inventory(with_engines=False).devices
                for process in device.processes
            }
            assert planned > 0
            assert (held.get(record["engine"]["pid"]) or 0) >= planned
        finally:
            os.killpg(served.pid, signal.SIGTERM)
            served.wait(60)
