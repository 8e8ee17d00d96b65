"""The machine around the engines: limits, kernel, disks, clock, proxies, and who asks.

It must not know of GPUs, engines or models.
"""

import ctypes
import grp
import os
import pwd
import re
import resource
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from launcher.doctor.facts import Clock, Disk, Kernel, Limits, Network, Proxy, User
from launcher.doctor.probes.files import is_there, number_of, text_of
from launcher.inventory.cgroup import find_folders
from launcher.inventory.psi import find_psi, read_psi
from launcher.inventory.text import printable
from launcher.units import KIB

_PROXY_VARIABLES: Final = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TIMEX_BYTES: Final = 512  # `struct timex` of adjtimex(2) takes 208 on 64-bit Linux
_TIME_ERROR: Final = 5
"""What adjtimex(2) returns while nobody disciplines the clock."""


def probe_user() -> User:
    """Return who runs this program."""
    uid = os.geteuid()
    groups = []
    for gid in sorted({os.getegid(), *os.getgroups()}):
        try:
            groups.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            groups.append(str(gid))
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return User(uid=uid, name=name, groups=tuple(groups))


def probe_limits(root: Path = Path("/")) -> Limits:
    """Return the soft limits of this process, which engines inherit, and its control groups' files of them."""

    def soft(which: int) -> int | None:
        limit = resource.getrlimit(which)[0]
        return None if limit == resource.RLIM_INFINITY else limit

    files = [
        folder / name
        for version, folder in find_folders(root, "memory")
        for name in (("memory.limit_in_bytes",) if version == 1 else ("memory.max", "memory.high"))
    ]
    return Limits(
        memory_files=tuple((str(path), text) for path in files if (text := text_of(path)) is not None),
        address_space_bytes=soft(resource.RLIMIT_AS),
        memlock_bytes=soft(resource.RLIMIT_MEMLOCK),
        n_open_files=soft(resource.RLIMIT_NOFILE),
    )


def probe_kernel(root: Path = Path("/")) -> Kernel:
    """Return the kernel's settings and figures as they are now."""
    memory = _meminfo(text_of(root / "proc/meminfo") or "")
    load = (text_of(root / "proc/loadavg") or "").split()
    pressure = find_psi(root)
    stall = None if pressure is None else read_psi(pressure)
    return Kernel(
        overcommit=number_of(root / "proc/sys/vm/overcommit_memory"),
        commit_limit_bytes=memory.get("CommitLimit"),
        committed_bytes=memory.get("Committed_AS"),
        huge_pages=_chosen(text_of(root / "sys/kernel/mm/transparent_hugepage/enabled") or ""),
        load_1min=float(load[0]) if load and load[0].replace(".", "", 1).isdigit() else None,
        stall_some=None if stall is None else stall.some,
        stall_source="" if pressure is None else str(pressure),
    )


def _meminfo(text: str) -> dict[str, int]:
    lines = (line.partition(":") for line in text.splitlines())
    return {key: int(rest.split()[0]) * KIB for key, _, rest in lines if rest.split()[:1] and rest.split()[0].isdigit()}


def _chosen(text: str) -> str | None:
    """Return the choice that the kernel marks with brackets: ``always [madvise] never``."""
    _, opened, rest = text.partition("[")
    return rest.partition("]")[0] or None if opened else None


def parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """Return file system type and mount point by device number, ``254:1``, from ``/proc/self/mountinfo``."""
    found = {}
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        columns = before.split()
        if separator and len(columns) > 4 and after.split():  # noqa: PLR2004 - the mount point is the fifth column
            found[columns[2]] = (after.split()[0], columns[4])
    return found


def probe_disk(purpose: str, wanted: Path, *, needs_write: bool = True, root: Path = Path("/")) -> Disk | None:
    """Return the file system that a folder is or would be on; ``None`` where none of its parents can be looked at."""
    path = next((place for place in (wanted, *wanted.absolute().parents) if is_there(place)), None)
    if path is None:
        return None
    info = os.statvfs(path)
    device = os.stat(path).st_dev  # noqa: PTH116 - beside statvfs
    number = f"{os.major(device)}:{os.minor(device)}"
    fs_type, _ = parse_mounts(text_of(root / "proc/self/mountinfo") or "").get(number, (None, ""))
    return Disk(
        purpose=purpose,
        wanted=str(wanted),
        path=str(path),
        total_bytes=info.f_blocks * info.f_frsize,
        free_bytes=info.f_bavail * info.f_frsize,
        n_free_files=info.f_favail if info.f_files else None,
        is_read_only=bool(info.f_flag & os.ST_RDONLY),
        is_writable=os.access(path, os.W_OK),
        fs_type=fs_type,
        needs_write=needs_write,
    )


def probe_clock(own_file: Path) -> Clock:
    """Return the time of day, the time of a file of this program, and whether the kernel says that somebody keeps it right."""
    return Clock(now=time.time(), installed_at=own_file.stat().st_mtime, is_synchronised=_is_synchronised())


def _is_synchronised() -> bool | None:
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # all zero: asks, and sets nothing
    return None if state < 0 else state != _TIME_ERROR


def probe_network(environment: Mapping[str, str]) -> Network:
    """Return the proxies that the environment names, without user and password."""
    return Network(
        proxies=tuple(_proxies(environment)), no_proxy=environment.get("no_proxy") or environment.get("NO_PROXY")
    )


def _proxies(environment: Mapping[str, str]) -> Iterator[Proxy]:
    for variable in _PROXY_VARIABLES:
        if value := environment.get(variable):
            yield Proxy(variable=variable, value=without_credentials(value))


def without_credentials(value: str) -> str:
    """Return an address without what stands before its ``@``: user and password."""
    text = printable(value)
    found = _SCHEME.match(text)
    scheme = found[0] if found else ""
    try:
        # Before it is split: a slash in a password would end what is taken for the host within it.
        place = urlsplit(f"//{text.removeprefix(scheme).rpartition('@')[2]}").netloc
    except ValueError:
        place = "?"
    return f"{scheme}{place}"


def find_installer() -> tuple[str, ...]:
    """Return the words that install a distribution beside this program; none where this user or the system lets nothing do so."""
    folder = Path(sysconfig.get_path("purelib"))
    is_managed = sys.prefix == sys.base_prefix and is_there(Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))
    if is_managed or not os.access(folder, os.W_OK):
        return ()
    if find_spec("pip") is not None:
        return (sys.executable, "-m", "pip", "install")
    if shutil.which("uv") is not None:
        return ("uv", "pip", "install", "--python", sys.executable)
    return ()


def find_programs(names: tuple[str, ...]) -> frozenset[str]:
    """Return those of the programs that can be started by their name here."""
    return frozenset(name for name in names if shutil.which(name) is not None)
