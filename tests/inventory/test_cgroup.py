"""Control groups of both versions, on trees as the kernel shows them, and the real ones of this machine."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.inventory.cgroup import (
    CgroupMemory,
    find_folders,
    find_oom_counter,
    parse_cpu_max,
    parse_limit,
    parse_mountinfo,
    parse_oom_kills,
    parse_self_cgroup,
    parse_stat,
    probe_cpu_quota,
    probe_memory,
    read_memory,
    read_oom_kills,
)
from launcher.units import GIB, MIB

V1_UNLIMITED = "9223372036854771712"
V2_MOUNT = "31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = """\
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files below a root that stands for ``/``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def v2_tree(root: Path, group: str, files: dict[str, str]) -> Path:
    """Write a tree of version 2 with this process in ``group``."""
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return tree(root, {"proc/self/cgroup": f"0::{group}", "proc/self/mountinfo": V2_MOUNT, **files})


def v1_tree(root: Path, group: str, files: dict[str, str], mount_root: str = "/") -> Path:
    """Write a tree of version 1, version 2 mounted beside it without controllers, as on hybrid systems."""
    memberships = f"4:memory:{group}\n1:cpu,cpuacct:{group}\n0::/"
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    mounts = V1_MOUNTS.format(root=mount_root)
    return tree(root, {"proc/self/cgroup": memberships, "proc/self/mountinfo": mounts, **files})


def test_v2_no_limit(tmp_path: Path) -> None:
    """``max`` at every level is no limit."""
    files = {"a/memory.max": "max", "a/memory.high": "max", "a/memory.current": "5", "a/cpu.max": "max 100000"}
    root = v2_tree(tmp_path, "/a", files)
    assert probe_memory(root) == CgroupMemory(None, None)
    assert probe_cpu_quota(root) is None


def test_v2_limit_and_cache(tmp_path: Path) -> None:
    """Inactive file cache does not count as used: the kernel gives it back before it kills."""
    root = v2_tree(
        tmp_path,
        "/app.slice/x",
        {
            "app.slice/x/memory.max": str(8 * GIB),
            "app.slice/x/memory.current": str(3 * GIB),
            "app.slice/x/memory.stat": f"anon {GIB}\nfile {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB}",
        },
    )
    assert probe_memory(root) == CgroupMemory(8 * GIB, 2 * GIB)


def test_the_cache_may_be_left_out(tmp_path: Path) -> None:
    """Before it kills, the kernel gives back the active pages of files too, in both versions."""
    stat = f"active_file {GIB}\ninactive_file {MIB}\ntotal_active_file {2 * GIB}\ntotal_inactive_file {MIB}"
    files = {"a/memory.max": str(8 * GIB), "a/memory.current": str(3 * GIB), "a/memory.stat": stat}
    folders = tuple(find_folders(v2_tree(tmp_path / "two", "/a", files), "memory"))
    assert read_memory(folders) == CgroupMemory(8 * GIB, 3 * GIB - MIB)
    assert read_memory(folders, with_cache=False) == CgroupMemory(8 * GIB, 2 * GIB - MIB)
    files = {"limit_in_bytes": str(8 * GIB), "usage_in_bytes": str(3 * GIB), "stat": stat}
    root = v1_tree(tmp_path / "one", "/a", {f"memory/a/memory.{name}": text for name, text in files.items()})
    folders = tuple(find_folders(root, "memory"))
    assert read_memory(folders, with_cache=False) == CgroupMemory(8 * GIB, GIB - MIB)


def test_v2_parent_binds(tmp_path: Path) -> None:
    """The level that leaves least binds, though its limit is the larger: its other children fill it."""
    root = v2_tree(
        tmp_path,
        "/pod/me",
        {
            "pod/memory.max": str(10 * GIB),
            "pod/memory.current": str(9 * GIB),
            "pod/me/memory.max": str(4 * GIB),
            "pod/me/memory.current": str(GIB),
        },
    )
    assert probe_memory(root) == CgroupMemory(10 * GIB, 9 * GIB)


def test_v2_high_binds(tmp_path: Path) -> None:
    """``memory.high`` is a limit too: above it the kernel throttles."""
    root = v2_tree(tmp_path, "/a", {"a/memory.max": str(4 * GIB), "a/memory.high": str(GIB), "a/memory.current": "0"})
    assert probe_memory(root).limit_bytes == GIB


def test_v2_quota_least_of_levels(tmp_path: Path) -> None:
    """The smallest share of all levels holds, with or without a written period."""
    root = v2_tree(tmp_path, "/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "400000"})
    assert probe_cpu_quota(root) == 1.5


def test_v2_own_namespace(tmp_path: Path) -> None:
    """In a container with a namespace of its own, the group is the mount's top."""
    root = v2_tree(tmp_path, "/", {"memory.max": str(GIB), "memory.current": str(MIB), "cpu.max": "50000 100000"})
    assert probe_memory(root) == CgroupMemory(GIB, MIB)
    assert probe_cpu_quota(root) == 0.5


def test_v2_group_outside_the_mount(tmp_path: Path) -> None:
    """A group that lies outside what is mounted is read at the mount's top, never above it."""
    (tmp_path / "sys/memory.max").parent.mkdir()
    (tmp_path / "sys/memory.max").write_text("1")
    root = v2_tree(tmp_path, "/../../x", {"memory.max": str(GIB), "memory.current": "0"})
    assert probe_memory(root).limit_bytes == GIB


def test_v1_limit_on_a_hybrid(tmp_path: Path) -> None:
    """Version 1's limit, use less inactive cache, and quota are found beside a version 2 without controllers."""
    root = v1_tree(
        tmp_path,
        "/box",
        {
            "memory/memory.limit_in_bytes": V1_UNLIMITED,
            "memory/box/memory.limit_in_bytes": str(2 * GIB),
            "memory/box/memory.usage_in_bytes": str(GIB),
            "memory/box/memory.stat": f"inactive_file 1\nhierarchical_memory_limit {2 * GIB}\ntotal_inactive_file {MIB}",
            "cpu,cpuacct/box/cpu.cfs_quota_us": "250000",
            "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
        },
    )
    assert probe_memory(root) == CgroupMemory(2 * GIB, GIB - MIB)
    assert probe_cpu_quota(root) == 2.5


def test_v1_no_limit(tmp_path: Path) -> None:
    """Version 1's huge number and its quota of -1 are no limits."""
    files = {
        "memory/memory.limit_in_bytes": V1_UNLIMITED,
        "memory/memory.usage_in_bytes": "12345",
        "memory/memory.stat": f"hierarchical_memory_limit {V1_UNLIMITED}",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    root = v1_tree(tmp_path, "/", files)
    assert probe_memory(root) == CgroupMemory(None, None)
    assert probe_cpu_quota(root) is None


def test_v1_container_without_namespace(tmp_path: Path) -> None:
    """Where a container sees only its own part of the tree under the host's path, the mount's root is taken off."""
    files = {"memory/memory.limit_in_bytes": str(GIB), "memory/memory.usage_in_bytes": "0"}
    assert probe_memory(v1_tree(tmp_path, "/docker/abc", files, mount_root="/docker/abc")).limit_bytes == GIB


def test_v1_ancestor_out_of_sight(tmp_path: Path) -> None:
    """The limit of an ancestor that cannot be seen is known from ``hierarchical_memory_limit``."""
    files = {
        "memory/memory.limit_in_bytes": V1_UNLIMITED,
        "memory/memory.usage_in_bytes": str(MIB),
        "memory/memory.stat": f"hierarchical_memory_limit {GIB}",
    }
    assert probe_memory(v1_tree(tmp_path, "/", files)) == CgroupMemory(GIB, MIB)


def test_v2_kills_are_counted_by_the_group(tmp_path: Path) -> None:
    """Version 2: the group's events, its children's included."""
    files = {"a/b/memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0"}
    counter = find_oom_counter(v2_tree(tmp_path, "/a/b", files))
    assert counter is not None
    assert read_oom_kills(counter) == 3


def test_v1_kills_are_counted_by_the_process_group_alone(tmp_path: Path) -> None:
    """Version 1: groups above count only their own; the group of another process is found by its number."""
    own = "oom_kill_disable 0\nunder_oom 0\noom_kill {}"
    files = {"memory/box/memory.oom_control": own.format(4), "memory/memory.oom_control": own.format(9)}
    root = v1_tree(tmp_path, "/box", files)
    counter = find_oom_counter(root)
    assert counter is not None
    assert read_oom_kills(counter) == 4
    tree(root, {"proc/77/cgroup": "4:memory:/"})
    other = find_oom_counter(root, 77)
    assert other is not None
    assert read_oom_kills(other) == 9
    counter.unlink()
    assert read_oom_kills(counter) is None


def test_without_a_group_the_machine_counts(tmp_path: Path) -> None:
    """The top of version 2 has no events: the whole machine's count stands in, where the kernel has it."""
    root = v2_tree(tmp_path, "/", {})
    assert find_oom_counter(root) is None
    tree(root, {"proc/vmstat": "pgfault 12\noom_kill 1"})
    counter = find_oom_counter(root)
    assert counter is not None
    assert read_oom_kills(counter) == 1


def test_no_cgroups(tmp_path: Path) -> None:
    """A system without control groups has no limits."""
    assert probe_memory(tmp_path) == CgroupMemory(None, None)
    assert probe_cpu_quota(tmp_path) is None


def test_escaped_mount_point() -> None:
    """A mount point with a space, which the kernel writes in octal, is the real path."""
    mounts = parse_mountinfo(r"31 23 0:27 / /mnt/my\040groups rw - cgroup2 none rw")
    assert mounts[0].mount_point == PurePosixPath("/mnt/my groups")


def test_path_with_colons() -> None:
    """Only the first two colons separate columns."""
    assert parse_self_cgroup("0::/a:b:c\n")[0].path == PurePosixPath("/a:b:c")


@pytest.mark.parametrize(
    "parse", [parse_self_cgroup, parse_mountinfo, parse_limit, parse_stat, parse_cpu_max, parse_oom_kills]
)
@given(text=st.text(alphabet="0123456789 :-/,\\\nabcgroup2max", max_size=80))
def test_garbage_is_no_error(parse: object, text: str) -> None:
    """No text makes a parser fail, and no limit or share is below 0."""
    assert callable(parse)
    result = parse(text)
    assert not isinstance(result, int | float) or result >= 0


def test_this_machine() -> None:
    """The real tree of the machine that runs the tests can be read, whatever version it has."""
    memory, quota = probe_memory(), probe_cpu_quota()
    assert memory.limit_bytes is None or memory.limit_bytes > 0
    assert quota is None or quota > 0
