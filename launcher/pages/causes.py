"""Pages of the causes by which engines are lost: one for each ``Cause``, the shared one apart. Data."""

from functools import partial
from typing import Final

from launcher.pages.page import Kind, Page, page_of

_cause = partial(page_of, Kind.CAUSE)

PAGES: Final[tuple[Page, ...]] = (
    _cause(
        "memory",
        "An allocation was refused.",
        "Weights, cache or compute buffers did not fit into the memory of a device or of the host. The same plan would end "
        "the same way, so the launcher goes one step down its ladder and remembers what was missing.",
        "Free memory (`launch doctor` names who holds it), or plan with less: a smaller `--context`, fewer "
        "`--n-gpu-layers`, a smaller `--quant`.",
        "`launch status NAME` tells what was given up.",
    ),
    _cause(
        "killed-for-memory",
        "The kernel killed the engine for want of memory.",
        "Its control group, or the machine, had none left. It leaves no text in the engine's log; the kernel's count tells. "
        "The launcher steps down.",
        "Raise the memory limit of the unit or container, or plan with less.",
        "`launch doctor` shows the limit and what else is under it.",
    ),
    _cause(
        "weights",
        "The weights file is missing, damaged or of another kind.",
        "The engine could not open it, or what it read does not fit together. No other plan mends that: given up at once.",
        "`launch inspect FILE` reads the header; fetch the file again if it is damaged.",
    ),
    _cause(
        "argument",
        "The engine refused its command line.",
        "The build does not know an option, or not that value of it. Given up at once.",
        "Update the engine, or choose another with `--engine`.",
    ),
    _cause(
        "port",
        "The engine could not listen on its port.",
        "Somebody else has it. Behind the gateway the engine's port is private, and the next start takes another.",
        "For the port that clients see: `launch serve NAME --port N`.",
    ),
    _cause(
        "cpu",
        "The engine executed an instruction that this processor lacks.",
        "The build was compiled for another processor (SIGILL). Given up at once.",
        "Install a build for any processor of this architecture, or choose another with `--engine`.",
    ),
    _cause(
        "install",
        "The engine's installation is incomplete.",
        "A library or a Python module is missing, or a worker runs another version. Given up at once.",
        "Install what the line names, or another build of the engine.",
    ),
    _cause(
        "driver",
        "The GPU's driver and this build of the engine do not go together.",
        "The build needs a newer driver, or has no code for this GPU. Given up at once.",
        "Update the driver, or install a build that fits it; `launch doctor` compares the versions.",
    ),
    _cause(
        "device-lost",
        "A device failed while it was used, or a worker that stands for one was lost.",
        "A fault of the driver or the hardware, a reset, a lost connection. The launcher starts the engine again, within "
        "bounds; for a lost worker it plans for those that are left.",
        "If it comes back: the kernel's messages name the fault (`journalctl -k`), heat and power are the usual reasons.",
    ),
    _cause(
        "hung",
        "The engine is up and no longer answers.",
        "Requests are under way, nothing comes, and no processor time is used. It is killed and started again.",
        "If it comes back, `launch logs NAME` has its last words; a driver that hangs shows in the kernel's messages.",
    ),
    _cause(
        "sick",
        "The engine is up and answers every request with an error.",
        "Its own question of one token is answered with an error too, and no line says why. It is killed and started again.",
        "`launch logs NAME` has what it printed.",
    ),
    _cause(
        "spilled",
        "The engine answers far slower than it should, with a memory used up.",
        "A driver that moves what does not fit into slower memory gives no error. The launcher asks for a smaller plan.",
        "Plan with less, or end other programs on the GPU: `launch doctor` names them.",
    ),
    _cause(
        "unknown",
        "No known sign was found.",
        "The engine ended, and neither its lines nor the kernel's counts say why. The launcher starts it again, within bounds.",
        "`launch logs NAME` prints all; `launch doctor NAME` looks at what is around it.",
    ),
)
