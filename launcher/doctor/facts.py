"""What `launch doctor` reads of a machine, as values.

It must not know how they are read, nor what follows from them. ``None`` means "could not be read" or "is not there", as
each field says. Sizes are bytes.
"""

from launcher.domain import DeviceProcess, InstanceView, Inventory, Noun, Outcome
from launcher.inventory.nvidia_versions import NvidiaVersions


class Silent(Noun, frozen=True):
    """Something that was asked and did not answer within its bound, or that broke when it was asked."""

    what: str
    timeout_s: float
    error: str | None = None


class User(Noun, frozen=True):
    """Who asks: numbers, and the names of its groups."""

    uid: int
    name: str
    groups: tuple[str, ...] = ()


class DisplayCard(Noun, frozen=True):
    """A display controller on the PCI bus; ``driver`` is the kernel module that has it, ``None`` for none."""

    bus_id: str
    vendor: str
    device: str
    driver: str | None = None


class DeviceNode(Noun, frozen=True):
    """A file below ``/dev`` by which a GPU is reached; ``vendor`` is of the card behind it, where sysfs tells."""

    path: str
    is_accessible: bool
    owner: str
    group: str
    mode: int
    vendor: str | None = None


class VulkanDriver(Noun, frozen=True):
    """A manifest of an installable client driver; ``is_there`` tells whether the library that it names can be found."""

    manifest: str
    library: str | None
    is_there: bool


class Drivers(Noun, frozen=True):
    """What can be told of GPUs and their drivers without asking a driver, and NVIDIA's own answer.

    ``is_read`` is false where nobody could look: then nothing there means nothing.
    """

    is_read: bool = True
    cards: tuple[DisplayCard, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    vulkan: tuple[VulkanDriver, ...] = ()
    modules: tuple[str, ...] = ()
    """Of the kernel modules that would drive the cards which have another driver, or none: those that could be loaded."""
    nvidia: NvidiaVersions | None = None
    rocm: str | None = None
    container: str | None = None
    """By what this is seen to run in a container: the file that such a one has."""


class EngineBuild(Noun, frozen=True):
    """What the files of one engine tell: which GPU back ends it carries, what they lack, which CUDA they are of.

    ``libraries`` are the files looked into, ``missing`` what the loader does not find, as it says it; ``cuda`` is
    major and minor, the latter ``None`` where only a library's name tells.
    """

    argv: tuple[str, ...]
    backends: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    cuda: tuple[int, int | None] | None = None
    cuda_source: str = ""


class Limits(Noun, frozen=True):
    """The limits that an engine would inherit; ``None`` means unlimited.

    ``memory_files`` are the files of the control groups around this process that hold a memory limit, each with its text.
    """

    memory_files: tuple[tuple[str, str], ...] = ()
    address_space_bytes: int | None = None
    memlock_bytes: int | None = None
    n_open_files: int | None = None


class Kernel(Noun, frozen=True):
    """Settings and figures of the kernel that memory and speed depend on."""

    overcommit: int | None = None
    commit_limit_bytes: int | None = None
    committed_bytes: int | None = None
    huge_pages: str | None = None
    load_1min: float | None = None
    stall_some: float | None = None
    stall_source: str = ""


class Disk(Noun, frozen=True):
    """The file system under a folder that matters; ``purpose`` says what for, ``path`` is the nearest folder that exists."""

    purpose: str
    wanted: str
    path: str
    total_bytes: int
    free_bytes: int
    n_free_files: int | None = None
    is_read_only: bool = False
    is_writable: bool = True
    fs_type: str | None = None
    needs_write: bool = True


class StateFolder(Noun, frozen=True):
    """The state directory; ``mode`` and ``owner_uid`` are ``None`` where it does not exist yet."""

    path: str
    owner_uid: int | None = None
    mode: int | None = None
    is_link: bool = False
    n_open_files: int = 0
    """How many of its files others may read or write."""
    open_file: str | None = None
    error: str | None = None


class Leftover(Noun, frozen=True):
    """A guard's record in an instance's folder: the processes that still carry its token, and whether it lives."""

    instance: str
    path: str
    guard_alive: bool
    pids: tuple[int, ...] = ()


class State(Noun, frozen=True):
    """What was ever served here, what of it is left, and files that were set aside since nobody understood them."""

    folder: StateFolder
    instances: tuple[InstanceView, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    corrupt: tuple[str, ...] = ()


class Port(Noun, frozen=True):
    """The address that would be served on. ``instance`` is ours that has it; ``error`` why it cannot be listened on."""

    host: str
    port: int
    error: str | None = None
    holder: str | None = None
    instance: str | None = None
    free_port: int | None = None


class Unit(Noun, frozen=True):
    """A unit of systemd, by what ``systemctl show`` says of it; ``scope`` is ``user`` or ``system``."""

    name: str
    scope: str
    load: str = "loaded"
    active: str = ""
    sub: str = ""
    result: str = ""
    enabled: str = ""
    exit_status: int | None = None
    main_pid: int | None = None
    n_restarts: int = 0
    path: str = ""
    program: str | None = None
    is_program_there: bool = True


class Systemd(Noun, frozen=True):
    """The launcher's units; ``lingers`` is ``None`` where there is no user unit, or nobody tells."""

    version: int | None = None
    units: tuple[Unit, ...] = ()
    lingers: bool | None = None
    notes: tuple[str, ...] = ()


class Clock(Noun, frozen=True):
    """The time of day, in seconds since 1970, beside that of this program's own files."""

    now: float
    installed_at: float
    is_synchronised: bool | None = None


class Proxy(Noun, frozen=True):
    """A variable that names a proxy; its value without user and password."""

    variable: str
    value: str


class Network(Noun, frozen=True):
    """What the environment says of proxies. Nobody on the network is asked."""

    proxies: tuple[Proxy, ...] = ()
    no_proxy: str | None = None


class Told(Noun, frozen=True):
    """A named fault of the launcher, as a value."""

    code: str
    message: str
    details: tuple[str, ...] = ()
    help: str | None = None


class WeightsFile(Noun, frozen=True):
    """One file of the weights that the model's plan, or its profile, names on this machine.

    ``published_bytes`` is what the profile says. ``is_recorded``: its digest was found once; ``changed`` says in words what
    of the file is different since. ``read_bytes`` were read of it in ``read_s`` seconds.
    """

    path: str
    size_bytes: int | None = None
    published_bytes: int | None = None
    error: str | None = None
    is_recorded: bool = False
    changed: str | None = None
    read_bytes: int | None = None
    read_s: float | None = None


class Model(Noun, frozen=True):
    """What was found of the model that was asked about: its fault, or its plan or refusal, and its files.

    ``asked`` is what a command calls it: a path or an address is not its name.
    """

    name: str
    asked: str
    told: Told | None = None
    outcome: Outcome | None = None
    source: str = ""
    is_local: bool = False
    is_obtainable: bool = False
    """Whether what is not here can be downloaded."""
    files: tuple[WeightsFile, ...] = ()


class Facts(Noun, frozen=True):
    """All that was read."""

    user: User
    inventory: Inventory
    drivers: Drivers = Drivers(is_read=False)
    nvidia_notes: tuple[str, ...] = ()
    device_notes: tuple[str, ...] = ()
    engine_notes: tuple[str, ...] = ()
    builds: tuple[EngineBuild, ...] = ()
    holders: tuple[DeviceProcess, ...] = ()
    """Programs that hold much of the host's memory."""
    limits: Limits = Limits()
    kernel: Kernel = Kernel()
    disks: tuple[Disk, ...] = ()
    state: State | None = None
    port: Port | None = None
    systemd: Systemd | None = None
    clock: Clock | None = None
    network: Network = Network()
    broken_profiles: tuple[Told, ...] | None = None
    """``None`` where they were not all read."""
    model: Model | None = None
    silent: tuple[Silent, ...] = ()
    programs: frozenset[str] = frozenset()
    """Of the programs that a finding may name in a command: those that are there."""
    installer: tuple[str, ...] = ()
    """What installs a distribution beside this program; empty where this user has nothing that does."""
    engine_requirement: str | None = None
    """What it would install for the prebuilt engine, where this platform has it."""
