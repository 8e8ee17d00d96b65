"""Pages of what `launch doctor` finds: one for each kind of finding. Data."""

from functools import partial
from typing import Final

from launcher.pages.page import Kind, Page, page_of

_finding = partial(page_of, Kind.FINDING)

_DRIVERS: Final = (
    _finding(
        "nvidia-mismatch",
        "NVIDIA's library and its kernel module are of different versions.",
        "An update replaced the library, while the old module is still loaded. Every program that asks for a GPU fails.",
        "Reboot. Without a reboot: end all that uses the GPU, then unload and load the module.",
    ),
    _finding(
        "nvidia-not-loaded",
        "An NVIDIA GPU is on the bus, and its driver is not loaded.",
        "The driver is not installed, was not built for the running kernel, or a free driver (nouveau) has the card. In a "
        "container: it was started without its GPUs.",
        "Install the driver of your distribution and reboot.",
        "Start the container with `--gpus all` (Docker) or `--device nvidia.com/gpu=all` (Podman).",
    ),
    _finding(
        "nvidia-unusable",
        "NVIDIA's driver is loaded and refuses to answer.",
        "Its library could not begin, or is not there. The evidence has NVML's own words.",
        "Read the kernel's messages with the word NVRM; a GPU in an error state needs a reset or a reboot.",
        "A library that is not there comes with the driver's packages; it has to be of the module's version.",
    ),
    _finding(
        "gpu-out-of-use",
        "One GPU does not answer, others may.",
        "It fell off the bus, or is in a state of error.",
        "Reboot; if it comes back, check power, heat and seat of the card.",
    ),
    _finding(
        "gpu-memory-untold",
        "A GPU does not tell its memory.",
        "NVML has no figure for GPUs that share the host's memory. What an engine lists for such a GPU is taken instead.",
        "Nothing has to be done where an engine lists the GPU: `launch hardware` shows that.",
    ),
    _finding(
        "cuda-too-old",
        "An engine is built for a newer major version of CUDA than the driver offers.",
        "What the build is linked with is compared with what the driver says. Across major versions it cannot start on the "
        "GPU, and some builds fall back to the processor in silence.",
        "Update NVIDIA's driver, or install a build for an older CUDA.",
    ),
    _finding(
        "cuda-older",
        "An engine is built for a newer minor version of CUDA than the driver offers.",
        "Within one major version that works, but for code that the driver would have to compile.",
        "Nothing has to be done while it works; a newer driver removes the doubt.",
    ),
    _finding(
        "amd-not-loaded",
        "An AMD GPU is on the bus, and the kernel's amdgpu driver does not have it.",
        "The module is not loaded, or the card is too old for it.",
        "Load it with `modprobe amdgpu`; its firmware may be a package of its own.",
    ),
    _finding(
        "kfd-missing",
        "/dev/kfd is not there, by which ROCm reaches the GPU.",
        "The container was started without it, or the kernel has no compute support for this card.",
        "Start the container with `--device /dev/kfd --device /dev/dri`.",
        "A build for Vulkan needs no /dev/kfd.",
    ),
    _finding(
        "vulkan-no-driver",
        "No Vulkan driver is registered, though an engine is built for Vulkan.",
        "The loader looks for manifests in icd.d folders, and found none.",
        "Install the GPU's Vulkan driver, Mesa's for AMD and Intel.",
        "A container is given NVIDIA's by the variable NVIDIA_DRIVER_CAPABILITIES=all.",
    ),
    _finding(
        "vulkan-broken-driver",
        "A Vulkan driver is registered whose library cannot be loaded.",
        "A package was removed half-way, or the manifest is for another architecture. The loader leaves it out.",
        "Reinstall the package that the manifest belongs to, or remove the manifest.",
    ),
    _finding(
        "software-renderer",
        "A device that an engine lists is a program on the processor, no GPU.",
        "Mesa's lavapipe offers Vulkan without any GPU. It is slower than the engine's own code for the processor.",
        "Leave it out: `launch serve NAME --n-gpu-layers 0`, or remove the package.",
    ),
    _finding(
        "gpu-link",
        "A GPU's link to the host is narrower than it could be.",
        "The slot has fewer lanes, or the card is not seated well. Only what crosses the link is slower: loading, and "
        "weights that stay on the host.",
        "Another slot gives all lanes; for models that fit the GPU whole it matters little.",
    ),
)

_ENGINES: Final = (
    _finding(
        "no-engine-found",
        "No engine is found.",
        "It was looked in $LAUNCHER_LLAMA_SERVER and $LAUNCHER_VLLM, on PATH, and in the Python that runs the launcher.",
        "Install one; the README's table says how.",
    ),
    _finding(
        "engine-unusable",
        "A program that looks like an engine is not used.",
        "It does not answer, cannot run here, lacks a part, or has a published fault. The note has its words.",
        "Install another build. One that hangs mostly waits for a GPU's driver: see the findings on drivers.",
    ),
    _finding(
        "engine-without-gpu",
        "There is a GPU, and no engine reaches it.",
        "The engines found are built for the processor alone, or their back end did not load. Everything works, some ten "
        "times slower than it could.",
        "Install a build of llama-server with CUDA, ROCm or Vulkan; put it on PATH or name it in $LAUNCHER_LLAMA_SERVER.",
        "`launch hardware` shows what each engine reaches.",
    ),
    _finding(
        "backend-not-loaded",
        "An engine carries a back end for GPUs, and lists no GPU.",
        "Libraries that the back end needs are missing, or the driver gives it no device. llama.cpp says nothing then, and "
        "computes on the processor.",
        "Install what is listed as not found; CUDA's runtime has to be of the build's major version.",
    ),
    _finding(
        "several-engines",
        "Several engines are found; the finding says which would be used and why.",
        "The order is $LAUNCHER_LLAMA_SERVER, PATH, this Python; one that reaches a GPU goes before one that does not, and "
        "one that was measured to be faster before both.",
        "Choose with `--engine`; `launch calibrate` measures them.",
    ),
)

_MEMORY: Final = (
    _finding(
        "memory-low",
        "Less than a tenth of the host's memory is left.",
        "Programs hold it; the largest are named with what their end would free.",
        "End what is not needed, or ask for less.",
    ),
    _finding(
        "memory-users",
        "Programs hold a part of the host's memory.",
        "Those above 256 MiB are named, with what their end would free.",
        "Nothing has to be done: plans count only what is available.",
    ),
    _finding(
        "gpu-memory-users",
        "A part of a GPU's memory is held already.",
        "The driver names the processes, but for those of other users and containers.",
        "End what is not needed; `launch plan NAME` says how it would stand then.",
    ),
    _finding(
        "memory-stalls",
        "Programs had to wait for memory within the last ten seconds.",
        "The kernel's pressure figures: memory is short, and what is needed is read again or swapped in.",
        "End what is not needed before a model is loaded.",
    ),
    _finding(
        "swap-in-use",
        "More than half of the swap is in use.",
        "Memory was short at some time. Plans count no swap.",
        "If the machine is slow, end programs; what was swapped out comes back when it is needed.",
    ),
    _finding(
        "cgroup-limit",
        "A control group allows less memory than the machine has.",
        "A container, a unit or a session with a limit. Plans keep to it.",
        "Raise it (`MemoryMax=`, `--memory`), or serve outside of it, if more is needed.",
    ),
    _finding(
        "cgroup-full",
        "The control group's memory is nearly used up.",
        "At the limit the kernel kills, mostly the largest process: the engine.",
        "Raise the limit, or end what shares the group.",
    ),
    _finding(
        "cpu-quota",
        "A control group allows only a part of the processors' time.",
        "Plans use so many threads as it pays for.",
        "Raise the quota (`CPUQuota=`, `--cpus`) if speed on the processor matters.",
    ),
    _finding(
        "address-space-limit",
        "A process may map only so much.",
        "`ulimit -v` or LimitAS=. Drivers of GPUs reserve address space for all memories at once, and fail under such a limit.",
        "Lift it: `ulimit -v unlimited`.",
    ),
    _finding(
        "open-files-limit",
        "Few files may be open at once.",
        "Each client's connection is one, and each request to the engine.",
        "Raise it: `ulimit -n 4096`, in a unit LimitNOFILE=4096.",
    ),
    _finding(
        "strict-overcommit",
        "The kernel counts every byte that is asked for, used or not.",
        "vm.overcommit_memory is 2. Engines and drivers ask for more than they use, so that less can be had than is free.",
        "Set vm.overcommit_memory to 0, the usual.",
    ),
    _finding(
        "busy-processors",
        "More tasks want to run than there are processors.",
        "On a busy machine several threads are slower than one, since they wait for each other in every layer.",
        "Predicted speeds hold for an idle machine; `launch calibrate` wants one, too.",
    ),
)

_DISK: Final = (
    _finding(
        "disk-low",
        "A disk has little left, or is memory itself.",
        "Logs and records are small; weights are not. What is stored in a tmpfs takes memory from engines.",
        "Set HF_HUB_CACHE, for weights from packages and addresses LAUNCHER_CACHE_DIR, to a folder on a larger disk.",
    ),
    _finding(
        "disk-read-only",
        "A folder that has to be written cannot be.",
        "Its file system is mounted read-only, perhaps after an error, or it is somebody else's.",
        "Set LAUNCHER_STATE_DIR, HF_HUB_CACHE or LAUNCHER_CACHE_DIR, as the finding says, to a folder of your own.",
    ),
    _finding(
        "disk-remote",
        "State or weights are on a network file system.",
        "Weights come as fast as the network; a server that is gone makes programs hang.",
        "Keep weights on a local disk where loading time matters.",
    ),
    _finding(
        "disk-slow",
        "Reading the weights would take minutes.",
        "A part of the file was read and timed; what the kernel had in memory makes the figure too high, never too low.",
        "Move the weights to a faster disk.",
    ),
)

_ACCESS: Final = (
    _finding(
        "device-denied",
        "This user may not use a GPU's device file.",
        "The file belongs to a group (render, video) that the user is not in, or something confines the process.",
        "Join the group and log in anew.",
    ),
    _finding(
        "device-missing",
        "A device file of NVIDIA's driver is not there.",
        "It is made by nvidia-modprobe or by udev; in a container it has to be handed over.",
        "Run `nvidia-modprobe -u -c=0` as root.",
    ),
    _finding(
        "state-open",
        "Others may look into the state directory.",
        "Its mode was changed. Logs and records may hold what clients sent.",
        "Set its mode to 0700; the next `launch serve` does.",
    ),
    _finding(
        "state-not-ours",
        "The state directory cannot be used.",
        "It belongs to another user, is a symbolic link, or cannot be looked into.",
        "Set LAUNCHER_STATE_DIR to a folder of your own.",
    ),
)

_MODEL: Final = (
    _finding(
        "profile-unusable",
        "What was asked about cannot be read.",
        "The name is unknown, its profile is broken, its weights have no header, or a server did not give it. The evidence "
        "has the error and its code.",
        "`launch explain CODE` has a page for that code.",
    ),
    _finding(
        "profile-broken",
        "A profile cannot be read.",
        "It hides no other; all its faults are in the evidence.",
        "Correct the file; docs/profiles.md has every key.",
    ),
    _finding(
        "plan-refused",
        "The planner refuses the model on this machine as it is now.",
        "The text is the refusal's fact, the evidence its derivation. The command is a way out that was planned again.",
        "`launch plan NAME` prints the whole refusal.",
    ),
    _finding(
        "weights-absent",
        "The weights that would be served are not on this machine.",
        "No form that the profile lists has its files here, or none of those that would do.",
        "`launch pull NAME` downloads them, as `launch serve` does first; `launch plan NAME` says which form fits.",
    ),
    _finding(
        "weights-unreadable",
        "A weights file cannot be read.",
        "It was moved, is a broken link, or this user may not read it.",
        "Correct path or permissions, or fetch it again.",
    ),
    _finding(
        "weights-differ",
        "A weights file is not what was published, or not what was verified.",
        "Its size is another than the published one, or it was changed since its digest was found; then it is read again.",
        "`launch inspect FILE` reads its header; fetch it again if it is damaged.",
    ),
)

_SERVED: Final = (
    _finding(
        "port-taken",
        "The port that would be served on is taken.",
        "Another program listens there; it is named where it may be looked into.",
        "`launch serve NAME --port 0` takes a free one.",
    ),
    _finding(
        "instance-failed",
        "An instance failed when it was last served.",
        "The text has the reason that its supervisor recorded.",
        "`launch status NAME` and `launch logs NAME` tell more; serving it again begins anew.",
    ),
    _finding(
        "instance-stale",
        "An instance's supervisor was killed.",
        "Its record says that it is served, and the process that it names does not run.",
        "Serve it again: what it left is ended first.",
    ),
    _finding(
        "orphans",
        "Processes of an engine live on without their guard.",
        "Supervisor and guard were both killed. The processes carry the guard's token in their environment.",
        "`launch stop NAME` or the next `launch serve` of that name ends them.",
    ),
    _finding(
        "record-corrupt",
        "A file of the state was set aside.",
        "It could not be understood: a disk that was full, another version, an edit by hand.",
        "Remove it when it is not wanted.",
    ),
    _finding(
        "unit-failed",
        "A unit of the launcher has failed.",
        "systemd gave it up: it ended too often, was refused (exit status 3), or could not be started; or its files are wrong.",
        "Read its journal; `launch explain -` takes it from a pipe.",
        "`launch doctor NAME` looks at the model that it serves.",
    ),
    _finding(
        "unit-no-linger",
        "A user unit ends with the session.",
        "Without lingering systemd stops a user's services at logout, and starts them at login.",
        "Allow it with `loginctl enable-linger`.",
    ),
    _finding(
        "unit-not-enabled",
        "A unit runs and would not start by itself.",
        "It was started and not enabled.",
        "Enable it, if it shall be there after a reboot.",
    ),
    _finding(
        "unit-program-missing",
        "A unit starts a program that is not there.",
        "The launcher was moved or installed elsewhere after the unit was made.",
        "Install it anew by `launch systemd install`, with the words after `serve` and the files of keys that "
        "`systemctl cat UNIT` shows: what is left out is not kept.",
    ),
)

_REST: Final = (
    _finding(
        "in-order",
        "Looked into, and nothing was found.",
        "The evidence, in `--json`, has what was read.",
        "Nothing has to be done.",
    ),
    _finding(
        "not-answered",
        "Something that was asked did not answer.",
        "A driver, an engine, a disk or a service hangs, or broke when it was asked. It was left behind after its bound.",
        "Look at the kernel's messages; what hangs for the doctor hangs for an engine, too.",
        "What broke is told with its words: findings that depend on it are missing.",
    ),
    _finding(
        "clock-behind",
        "The clock is behind this program's own files.",
        "A machine without a battery, or one that never reached a time server. Certificates are refused, and logs mislead.",
        "Set the clock, or have it kept by a time service.",
    ),
    _finding(
        "clock-free",
        "Nobody keeps the clock right.",
        "The kernel knows of no time service.",
        "Start one (systemd-timesyncd, chrony), if times in logs matter.",
    ),
    _finding(
        "proxy-for-loopback",
        "Clients would ask a proxy for the endpoint on this machine.",
        "http_proxy is set, and no_proxy does not spare loopback. curl and OpenAI's client obey it; the launcher itself "
        "does not use a proxy for its own engine.",
        "Add 127.0.0.1 and localhost to no_proxy, with commas; localhost alone spares no number.",
    ),
)

PAGES: Final[tuple[Page, ...]] = (*_DRIVERS, *_ENGINES, *_MEMORY, *_DISK, *_ACCESS, *_MODEL, *_SERVED, *_REST)
