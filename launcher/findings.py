"""The nouns of what was looked into: a finding of `launch doctor`, a page of `launch explain`, the reading of a log.

It must not know how anything was read or judged. Immutable values, as all of ``domain``; they double as versioned JSON.
"""

from enum import StrEnum

from launcher.domain import SCHEMA_VERSION, Noun


class Severity(StrEnum):
    """How much a finding matters, least first."""

    OK = "ok"
    """Looked into, and in order."""
    NOTE = "note"
    """Worth knowing; nothing is wrong."""
    WARNING = "warning"
    """It works, but worse or less safely than it could, or it is about to fail."""
    FAULT = "fault"
    """Something does not work."""


class Area(StrEnum):
    """What a finding is about, in the order in which a machine is looked over."""

    DRIVERS = "drivers"
    ENGINES = "engines"
    MEMORY = "memory"
    LIMITS = "limits"
    KERNEL = "kernel"
    DISK = "disk"
    PERMISSIONS = "permissions"
    PROFILE = "profile"
    WEIGHTS = "weights"
    PORTS = "ports"
    STATE = "state"
    SYSTEMD = "systemd"
    CLOCK = "clock"
    NETWORK = "network"


class FindingCode(StrEnum):
    """The kinds of findings; ``launch explain CODE`` has a page of each."""

    IN_ORDER = "in-order"
    NOT_ANSWERED = "not-answered"

    NVIDIA_MISMATCH = "nvidia-mismatch"
    NVIDIA_NOT_LOADED = "nvidia-not-loaded"
    NVIDIA_UNUSABLE = "nvidia-unusable"
    GPU_OUT_OF_USE = "gpu-out-of-use"
    GPU_MEMORY_UNTOLD = "gpu-memory-untold"
    CUDA_TOO_OLD = "cuda-too-old"
    CUDA_OLDER = "cuda-older"
    AMD_NOT_LOADED = "amd-not-loaded"
    KFD_MISSING = "kfd-missing"
    VULKAN_NO_DRIVER = "vulkan-no-driver"
    VULKAN_BROKEN_DRIVER = "vulkan-broken-driver"
    SOFTWARE_RENDERER = "software-renderer"
    GPU_LINK = "gpu-link"

    NO_ENGINE_FOUND = "no-engine-found"
    ENGINE_UNUSABLE = "engine-unusable"
    ENGINE_WITHOUT_GPU = "engine-without-gpu"
    BACKEND_NOT_LOADED = "backend-not-loaded"
    SEVERAL_ENGINES = "several-engines"

    MEMORY_LOW = "memory-low"
    MEMORY_USERS = "memory-users"
    GPU_MEMORY_USERS = "gpu-memory-users"
    MEMORY_STALLS = "memory-stalls"
    SWAP_IN_USE = "swap-in-use"

    CGROUP_LIMIT = "cgroup-limit"
    CGROUP_FULL = "cgroup-full"
    CPU_QUOTA = "cpu-quota"
    ADDRESS_SPACE_LIMIT = "address-space-limit"
    OPEN_FILES_LIMIT = "open-files-limit"

    STRICT_OVERCOMMIT = "strict-overcommit"
    BUSY_PROCESSORS = "busy-processors"

    DISK_FULL = "disk-full"
    DISK_LOW = "disk-low"
    DISK_READ_ONLY = "disk-read-only"
    DISK_REMOTE = "disk-remote"
    DISK_SLOW = "disk-slow"

    DEVICE_DENIED = "device-denied"
    DEVICE_MISSING = "device-missing"
    STATE_OPEN = "state-open"
    STATE_NOT_OURS = "state-not-ours"

    PROFILE_UNUSABLE = "profile-unusable"
    PROFILE_BROKEN = "profile-broken"
    PLAN_REFUSED = "plan-refused"

    WEIGHTS_ABSENT = "weights-absent"
    WEIGHTS_UNREADABLE = "weights-unreadable"
    WEIGHTS_DIFFER = "weights-differ"

    PORT_TAKEN = "port-taken"

    INSTANCE_FAILED = "instance-failed"
    INSTANCE_STALE = "instance-stale"
    ORPHANS = "orphans"
    RECORD_CORRUPT = "record-corrupt"

    UNIT_FAILED = "unit-failed"
    UNIT_NO_LINGER = "unit-no-linger"
    UNIT_NOT_ENABLED = "unit-not-enabled"
    UNIT_PROGRAM_MISSING = "unit-program-missing"

    CLOCK_BEHIND = "clock-behind"
    CLOCK_FREE = "clock-free"

    PROXY_FOR_LOOPBACK = "proxy-for-loopback"


class Evidence(Noun, frozen=True):
    """What was read: ``source`` is a file, a program or a call, ``value`` what stood there."""

    source: str
    value: str


class Finding(Noun, frozen=True):
    """One thing that was looked into: the fact, what it was read from, and what to do about it.

    ``command`` are the words of a command to paste, empty where there is none; its program is there.
    """

    code: FindingCode
    severity: Severity
    area: Area
    text: str
    evidence: tuple[Evidence, ...] = ()
    help: str | None = None
    command: tuple[str, ...] = ()


class Checkup(Noun, frozen=True):
    """What ``launch doctor`` found on this machine, worst first; ``name`` is the model it was asked about."""

    findings: tuple[Finding, ...]
    name: str | None = None

    def count(self, severity: Severity) -> int:
        """Return how many findings have a severity."""
        return sum(finding.severity is severity for finding in self.findings)


class Diagnosis(Noun, frozen=True):
    """What a log says went wrong.

    ``code`` has a page, as has ``cause``; ``lines`` are the telling ones. ``answer`` says what the launcher does about
    it, ``help`` what a person can do.
    """

    code: str
    cause: str
    meaning: str
    answer: str
    help: str | None = None
    lines: tuple[str, ...] = ()
    memory: str | None = None
    n_bytes: int | None = None


class LogReading(Noun, frozen=True):
    """What was read of a log: how much of it, whether it was cut, and what it says.

    ``codes`` are of errors that the launcher itself wrote there. ``diagnosis`` is ``None`` where no known sign was found.
    """

    source: str
    n_lines: int
    n_bytes: int
    is_cut: bool = False
    diagnosis: Diagnosis | None = None
    codes: tuple[str, ...] = ()
    last_lines: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
