"""What a machine offers: this one, measured, or others, named or read from a file.

It must not know of models, profiles or plans. Importing it is cheap: the modules that ask the machine (NVML, child
processes) are loaded by the call that needs them, so that planning for a reference machine stays quick.
"""

from pathlib import Path

from launcher.domain import Inventory
from launcher.inventory.machines import list_machines, load_inventory, load_machines

__all__ = ["list_machines", "load_inventory", "load_machines", "probe_inventory"]


def probe_inventory(*, with_engines: bool = True, disk_path: Path | None = None) -> Inventory:
    """Return this machine as it is now.

    ``with_engines`` also looks for engines, asking each what it is and which devices it sees; without it
    ``Inventory.engines`` is ``None``, devices that only an engine can list are missing, and no process is started.
    ``disk_path`` names where weights would go; its file system's free bytes are reported. What cannot be read is
    ``None`` or a line of ``Inventory.notes``, never an error.
    """
    from launcher.inventory.probe import probe_machine  # noqa: PLC0415 - asking costs more than a whole plan

    return probe_machine(with_engines=with_engines, disk_path=disk_path)
