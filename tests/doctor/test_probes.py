"""The probes on what this machine can show, on recorded trees, and on things made for them."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.doctor import gather as gathering
from launcher.doctor.facts import Model
from launcher.doctor.gather import Asked, gather
from launcher.doctor.judge import judge
from launcher.doctor.probes import builds, drivers, host, systemd
from launcher.doctor.probes.state import probe_state
from launcher.doctor.probes.weights import probe_weights
from launcher.domain import Artifact, ArtifactFile, Engine, EngineInstall, Inventory, WeightsFormat
from launcher.fetch.digests import record_digest, what_changed
from launcher.findings import FindingCode, Severity
from launcher.inventory.bounded import Bounded
from launcher.inventory.nvidia_versions import parse_cuda_version, parse_module_version
from launcher.store import state_root
from launcher.supervisor.processes import TOKEN_VARIABLE, find_marked
from launcher.units import MIB


def put(path: Path, text: str, mode: int = 0o644) -> Path:
    """Write a file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


# --- Drivers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12.2", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.28.03  Release Build  (archlinux)", "560.28.03"),
        ("NVRM version: NVIDIA UNIX aarch64 Kernel Module  570.86", "570.86"),
        ("", None),
        ("GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)", None),
    ],
)  # fmt: skip
def test_module_version(text: str, version: str | None) -> None:
    """The version stands in the first line of the module's file, of the closed and of the open module."""
    assert parse_module_version(text) == version


def test_cuda_version() -> None:
    """CUDA writes a version as one number."""
    assert parse_cuda_version(12040) == (12, 4)
    assert parse_cuda_version(13000) == (13, 0)


def card(root: Path, bus_id: str, *, vendor: str, device: str, driver: str | None, kind: str = "0x030000") -> None:
    """Put a PCI device into a tree of sysfs."""
    folder = root / "sys/bus/pci/devices" / bus_id
    for name, text in (("class", kind), ("vendor", vendor), ("device", device)):
        put(folder / name, f"{text}\n")
    if driver is not None:
        target = root / "sys/bus/pci/drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(target)


def test_cards_and_nodes(tmp_path: Path) -> None:
    """Display controllers are told with the driver that has them, other devices not; device files with mode and owner."""
    card(tmp_path, "0000:01:00.0", vendor="0x10de", device="0x2684", driver="nouveau")
    card(tmp_path, "0000:02:00.0", vendor="0x1002", device="0x744c", driver=None, kind="0x038000")
    card(tmp_path, "0000:03:00.0", vendor="0x8086", device="0x15f3", driver="igc", kind="0x020000")
    card(tmp_path, "0000:04:00.0", vendor="0x1002", device="0x74a1", driver="amdgpu", kind="0x120000")  # MI300X
    card(tmp_path, "0000:05:00.0", vendor="0x8086", device="0x7d1d", driver="intel_vpu", kind="0x120000")  # no GPU
    put(tmp_path / "dev/nvidiactl", "", 0o600)
    put(tmp_path / "dev/dri/renderD128", "", 0o660)
    put(tmp_path / "sys/class/drm/renderD128/device/vendor", "0x1002\n")
    put(tmp_path / "opt/rocm/.info/version", "6.2.0-66\n")
    put(tmp_path / "run/.containerenv", "")
    found = drivers.probe_drivers(tmp_path)
    assert [(item.vendor, item.driver) for item in found.cards] == [
        ("0x10de", "nouveau"),
        ("0x1002", None),
        ("0x1002", "amdgpu"),
    ]
    assert [(item.path, item.mode, item.vendor) for item in found.nodes] == [
        ("/dev/nvidiactl", 0o600, None),
        ("/dev/dri/renderD128", 0o660, "0x1002"),
    ]
    assert (found.rocm, found.container) == ("6.2.0-66", "/run/.containerenv")


@pytest.mark.parametrize(
    ("name", "driver", "modules"),
    [
        ("updates/dkms/nvidia.ko.zst", "nouveau", ("nvidia",)),
        ("nvidia.ko", None, ("nvidia",)),
        ("nvidia-uvm.ko", None, ()),
        ("nvidia.ko", "nvidia", ()),
    ],
)
def test_modules_that_could_be_loaded(name: str, driver: str | None, modules: tuple[str, ...], tmp_path: Path) -> None:
    """Those of the running kernel's folder, for cards that they do not have yet."""
    card(tmp_path, "0000:01:00.0", vendor="0x10de", device="0x2684", driver=driver)
    put(tmp_path / "lib/modules" / os.uname().release / name, "")
    assert drivers.probe_drivers(tmp_path).modules == modules


_ACCESS = """
import os, sys
from pathlib import Path
from launcher.doctor.probes.drivers import probe_drivers
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
print([node.is_accessible for node in probe_drivers(Path(sys.argv[1])).nodes])
"""


def test_a_device_file_of_root_is_closed_to_others() -> None:
    """What this user may not open is told to be closed, by the kernel's own answer."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is closed to whom root becomes here
        root = Path(name)
        root.chmod(0o755)
        put(root / "dev/kfd", "", 0o660 if os.geteuid() == 0 else 0o000)
        put(root / "dev/nvidiactl", "", 0o666)
        done = subprocess.run(
            [sys.executable, "-c", _ACCESS, name], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.stdout.strip() == "[True, False]", done.stderr


def test_vulkan_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest's library is looked for as the loader does: a bare name, or a path from the manifest's folder."""
    folder = tmp_path / "usr/share/vulkan/icd.d"
    put(folder / "a.json", '{"ICD": {"library_path": "libc.so.6"}}')
    put(folder / "b.json", '{"ICD": {"library_path": "libno-such-driver.so"}}')
    put(folder / "c.json", '{"ICD": {"library_path": "./here.so"}}')
    put(folder / "here.so", "")
    put(folder / "d.json", "no json")
    without_settings_of_vulkan(monkeypatch, tmp_path)
    assert [(Path(item.manifest).name, item.is_there) for item in drivers.probe_drivers(tmp_path).vulkan] == [
        ("a.json", True),
        ("b.json", False),
        ("c.json", True),
        ("d.json", False),
    ]
    monkeypatch.setenv("VK_DRIVER_FILES", str(folder / "b.json"))
    assert [Path(item.manifest).name for item in drivers.probe_drivers(tmp_path).vulkan] == ["b.json"]


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        (None, "etc/vulkan/icd.d"),
        (None, "usr/local/etc/vulkan/icd.d"),
        (None, "usr/local/share/vulkan/icd.d"),
        (None, "home/.config/vulkan/icd.d"),
        (None, "home/.local/share/vulkan/icd.d"),
        ("XDG_DATA_DIRS", "driver/share/vulkan/icd.d"),
        ("XDG_CONFIG_HOME", "driver/share/vulkan/icd.d"),
        ("VK_DRIVER_FILES", "driver/share"),
    ],
)
def test_where_vulkan_s_manifests_may_be(
    variable: str | None, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place where the loader looks is looked at: a driver found by none of the usual ones is there all the same."""
    without_settings_of_vulkan(monkeypatch, tmp_path)
    if variable is not None:
        monkeypatch.setenv(variable, f"{tmp_path}/driver/share")
    put(tmp_path / place / "a.json", '{"ICD": {"library_path": "libc.so.6"}}')
    (found,) = drivers.probe_drivers(tmp_path).vulkan
    assert (found.manifest, found.is_there) == (str(tmp_path / place / "a.json"), True)


def test_a_vulkan_driver_that_crashes_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded in a process of its own, and told to be one that cannot be."""
    without_settings_of_vulkan(monkeypatch, tmp_path)
    source = put(tmp_path / "crash.c", "#include <stdlib.h>\n__attribute__((constructor)) void go(void) { abort(); }\n")
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libcrash.so", source], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    put(tmp_path / "etc/vulkan/icd.d/a.json", '{"ICD": {"library_path": "libcrash.so"}}')
    assert [driver.is_there for driver in drivers.probe_drivers(tmp_path).vulkan] == [False]


def without_settings_of_vulkan(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take away what tells the loader where to look, and the home folder."""
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_DATA_DIRS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder / "home"))


# --- Builds -----------------------------------------------------------------------------------------------------


def compile_library(path: Path, *options: str) -> None:
    """Compile an empty library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wl,--no-as-needed", "-xc", "/dev/null", "-o", str(path), *options],
        check=True,
        timeout=60,
    )


def test_a_back_end_that_lacks_a_library(tmp_path: Path) -> None:
    """A real library that is linked with CUDA's runtime, which is not there: what the loader misses, and the version."""
    away = tmp_path / "away"
    compile_library(away / "libcudart.so.12", "-Wl,-soname,libcudart.so.12")
    server = put(tmp_path / "bin/llama-server", "#!/bin/sh\n", 0o755)
    compile_library(tmp_path / "bin/libggml-cuda.so", f"-L{away}", "-l:libcudart.so.12")
    install = EngineInstall(engine=Engine.LLAMA_SERVER, argv=(str(server),))
    (found,) = builds.probe_builds((install,))
    assert (found.backends, found.cuda) == (("cuda",), (12, None))
    assert [line.split()[0] for line in found.missing] == ["libcudart.so.12"]
    env = {"LD_LIBRARY_PATH": str(away)}
    (whole,) = builds.probe_builds((EngineInstall(engine=Engine.LLAMA_SERVER, argv=(str(server),), env=env),))
    assert whole.missing == ()


def test_vllm_s_cuda(tmp_path: Path) -> None:
    """The CUDA of vLLM is that of the PyTorch beside it, read from its version file; a build for CPUs has none."""
    file = put(
        tmp_path / "lib/python3.11/site-packages/torch/version.py",
        "__version__ = '2.9.0+cu128'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n",
    )
    install = EngineInstall(engine=Engine.VLLM, argv=(str(tmp_path / "bin/python"), "-m", "vllm"))
    assert [found.cuda for found in builds.probe_builds((install,))] == [(12, 8)]
    file.write_text("cuda: Optional[str] = None\n")
    assert [found.cuda for found in builds.probe_builds((install,))] == [None]


@pytest.mark.engine
def test_a_real_engine(llama_server: EngineInstall) -> None:
    """The engine of this machine: what its libraries need is there, for it runs."""
    (found,) = builds.probe_builds((llama_server,))
    assert found.libraries
    assert found.missing == ()


# --- Host -------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """Mount a file system of so many bytes in memory. Ends the test where that is not permitted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.xfail(f"needs to mount a file system: {mounted.stderr.decode(errors='replace').strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    """A real file system is filled up, then made read-only: each is a fault, with the very figures."""
    with small_disk(tmp_path / "disk", 2 * MIB) as folder:
        (folder / "ballast").write_bytes(b"x" * (2 * MIB - 100 * 1024))
        full = gather(asked(disks=(("state", folder / "launcher"),)))
        assert (FindingCode.DISK_FULL, Severity.FAULT) in kinds(full_findings := judge(full).findings), full_findings
        assert full.disks[0].fs_type == "tmpfs"
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        closed = gather(asked(disks=(("state", folder / "launcher"),)))
        assert (FindingCode.DISK_READ_ONLY, Severity.FAULT) in kinds(judge(closed).findings)


def test_a_model_is_planned_with_what_is_free_for_weights(tmp_path: Path) -> None:
    """A plan that would download more than there is room for is refused by `launch serve`, and so by the doctor."""
    told: list[int | None] = []

    def describe(machine: Inventory) -> Model:
        told.append(machine.host.free_disk_bytes)
        return Model(name="x", asked="x")

    with small_disk(tmp_path / "disk", 8 * MIB) as folder:
        facts = gather(asked(disks=(("state", tmp_path), ("weights", folder / "hub")), model=describe))
    assert told == [facts.disks[1].free_bytes]
    assert 0 < facts.disks[1].free_bytes <= 8 * MIB


def asked(**fields: object) -> Asked:
    """A question about no model."""
    return Asked(**{"disks": (), "find_marked": find_marked, **fields})  # type: ignore[arg-type]  # as each test says


def kinds(findings: object) -> set[tuple[FindingCode, Severity]]:
    """The kinds of findings, with how grave they are."""
    return {(finding.code, finding.severity) for finding in findings}  # type: ignore[attr-defined]  # a tuple of findings


def test_limits_are_this_process_s() -> None:
    """A limit that is set is read back, by a process of its own."""
    code = (
        "import resource\nfrom launcher.doctor.probes.host import probe_limits\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
        "found = probe_limits()\nprint(found.n_open_files, found.address_space_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["100", str(1 << 40)], done.stderr


def test_the_kernel(tmp_path: Path) -> None:
    """Settings are read as the kernel writes them; what is not there is unknown."""
    put(tmp_path / "proc/meminfo", "MemTotal: 100 kB\nCommitLimit:  4096 kB\nCommitted_AS:  1024 kB\n")
    put(tmp_path / "proc/loadavg", "3.45 2.18 1.96 4/1027 9402\n")
    put(tmp_path / "proc/sys/vm/overcommit_memory", "2\n")
    put(tmp_path / "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    put(tmp_path / "proc/pressure/memory", "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00\n")
    found = host.probe_kernel(tmp_path)
    assert (found.overcommit, found.commit_limit_bytes, found.committed_bytes) == (2, 4 * MIB, MIB)
    assert (found.load_1min, found.huge_pages, found.stall_some) == (3.45, "madvise", 0.125)
    nothing = host.probe_kernel(tmp_path / "none")
    assert {getattr(nothing, name) for name in nothing.__struct_fields__} == {None, ""}


def test_this_machine_s_disk(tmp_path: Path) -> None:
    """The file system of a folder that does not exist yet is that of the nearest one that does."""
    found = host.probe_disk("state", tmp_path / "a/b/c")
    assert found is not None
    assert found.path == str(tmp_path)
    assert found.total_bytes >= found.free_bytes > 0
    assert found.fs_type


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://me:s3cret@proxy:3128", "http://proxy:3128"),
        ("me:s3cret@proxy:3128/", "proxy:3128"),
        ("socks5://proxy", "socks5://proxy"),
        ("http://[", "http://?"),
        ("http://me:s3/cret@proxy:3128", "http://proxy:3128"),
        ("http://me:s3://cret@proxy:3128", "http://proxy:3128"),
        ("me:s3?cret#@proxy:3128", "proxy:3128"),
    ],
)
def test_no_password_of_a_proxy_is_shown(value: str, shown: str) -> None:
    """Of a proxy's address what stands before the @ is left out, and what stands behind the host."""
    assert host.without_credentials(value) == shown


_LETTERS = st.characters(codec="utf-8")


@given(st.text(max_size=9), st.text(_LETTERS, min_size=6, max_size=12))
def test_no_secret_passes(user: str, secret: str) -> None:
    """Whatever user and password are."""
    assert f"hidden-{secret}" not in host.without_credentials(f"http://{user}:hidden-{secret}@proxy:1")


def test_what_installs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installer that is offered sees what this program stands on; a folder that cannot be written has none."""
    found = host.find_installer()
    if found:
        argv = [*found, "--dry-run", "--no-index", "typer"]
        assert subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0
    monkeypatch.setattr("sysconfig.get_path", lambda _: "/nowhere")
    assert host.find_installer() == ()


# --- systemd ----------------------------------------------------------------------------------------------------


SHOWN = """ExecMainStatus=3
MainPID=0
NRestarts=0
ExecStart={ path=/nowhere/bin/launch ; argv[]=/nowhere/bin/launch serve x ; ignore_errors=no ; start_time=[n/a] ; pid=0 }
Id=launch@x.service
LoadState=loaded
ActiveState=failed
SubState=failed
FragmentPath=/root/.config/systemd/user/launch@.service
UnitFileState=enabled
Result=exit-code

Id=launch@y.service
LoadState=not-found
ActiveState=inactive
"""
"""What ``systemctl show`` of systemd 252 prints, of a unit that was refused and of one that is not there."""


def test_units() -> None:
    """A unit that is loaded is told with what it starts; one that is not there is none."""
    (unit,) = systemd.parse_units(SHOWN, "user")
    assert (unit.name, unit.active, unit.result, unit.exit_status) == ("launch@x.service", "failed", "exit-code", 3)
    assert (unit.program, unit.is_program_there) == ("/nowhere/bin/launch", False)


def test_without_systemd(tmp_path: Path) -> None:
    """Where systemd does not run there is nothing to say of units."""
    assert systemd.probe_systemd(None, "root", tmp_path) is None


def test_a_systemctl_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that speaks as systemctl does: both scopes are asked, and whether the user lingers."""
    put(tmp_path / "shown", SHOWN)
    script = '#!/bin/sh\ncase "$1" in --version) echo "systemd 252 (252.38)";; --user) cat "$SHOWN";; *) ;; esac\n'
    put(tmp_path / "bin/systemctl", script, 0o755)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("SHOWN", str(tmp_path / "shown"))
    found = systemd.probe_systemd("x", "me", tmp_path)
    assert found is not None
    assert (found.version, found.lingers, [(unit.scope, unit.name) for unit in found.units]) == (
        252,
        False,
        [("user", "launch@x.service")],
    )
    put(tmp_path / "var/lib/systemd/linger/me", "")
    again = systemd.probe_systemd("x", "me", tmp_path)
    assert again is not None
    assert again.lingers is True


def test_a_systemctl_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, and said to be silent."""
    put(tmp_path / "bin/systemctl", "#!/bin/sh\nsleep 60\n", 0o755)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(systemd, "_ANSWER_S", 0.2)
    found = systemd.probe_systemd("x", "me", tmp_path)
    assert found is not None
    assert any("did not answer within 0.2 s" in note for note in found.notes)


# --- State ------------------------------------------------------------------------------------------------------


def test_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living process with the token of a guard that is gone is an orphan; nothing of the state is changed by looking."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path))
    token = "a" * 32
    record = put(
        state_root() / f"instances/x/guard-{token}.json", "no json: a guard that was killed while it wrote", 0o600
    )
    put(state_root() / "calibrations/m.json.corrupt", "", 0o600)
    tmp_path.chmod(0o700)
    before = sorted(path for path in tmp_path.rglob("*"))
    orphan = subprocess.Popen(
        ["cat"], env={**os.environ, TOKEN_VARIABLE: token}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert orphan.stdin is not None
    assert orphan.stdout is not None
    try:
        orphan.stdin.write(b"up\n")
        orphan.stdin.flush()
        orphan.stdout.readline()  # it runs: its environment is its own by now
        found = probe_state(find_marked)
        assert [(left.instance, left.guard_alive, left.pids) for left in found.leftovers] == [
            ("x", False, (orphan.pid,))
        ]
    finally:
        orphan.kill()
        orphan.communicate()
    assert found.corrupt == (str(tmp_path / "calibrations/m.json.corrupt"),)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert record.read_text().startswith("no json")


def test_an_open_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode, owner and open files are told; a state that is not there yet has none of them."""
    root = tmp_path / "state"
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(root))
    assert probe_state(find_marked).folder.mode is None
    put(root / "instances/x/engine.log", "", 0o644)
    root.chmod(0o755)
    folder = probe_state(find_marked).folder
    assert (folder.mode, folder.owner_uid, folder.n_open_files) == (0o755, os.geteuid(), 1)
    link = tmp_path / "link"
    link.symlink_to(root)
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(link))
    assert probe_state(find_marked).folder.is_link


def test_a_state_that_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place, above it, or in the place of its own folder is told in words that a finding can put behind the path."""
    file = put(tmp_path / "file", "")
    for path, error in ((file, "it is no folder"), (file / "below", "not a directory")):
        monkeypatch.setenv("LAUNCHER_STATE_DIR", str(path))
        assert (probe_state(find_marked).folder.path, probe_state(find_marked).folder.error) == (str(path), error)
    put(tmp_path / "state/instances", "")
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    found = probe_state(find_marked).folder
    assert (found.error, found.mode is not None) == ("not a directory", True)


# --- Weights ----------------------------------------------------------------------------------------------------


def test_weights(tmp_path: Path) -> None:
    """Shards beside the first are looked at, each with its published size; one is missing; the largest was read."""
    files = tuple(ArtifactFile(name=f"sub/m-0000{n}-of-00003.gguf", size_bytes=3 * MIB) for n in (1, 2, 3))
    artifact = Artifact(format=WeightsFormat.GGUF, quantization="q4_k_m", files=files)
    first = tmp_path / "m-00001-of-00003.gguf"
    first.write_bytes(b"x" * MIB)
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(b"x" * 3 * MIB)
    one, two, three = probe_weights(artifact, first)
    assert (one.size_bytes, one.published_bytes, one.read_bytes) == (MIB, 3 * MIB, None)
    assert (two.size_bytes, two.read_bytes) == (3 * MIB, 3 * MIB)
    assert two.read_s is not None
    assert (three.size_bytes, three.error) == (None, "no such file or directory")


def test_what_changed_since_a_digest_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a record is said nothing of; one with a record is unchanged until somebody writes to it."""
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x" * 100)
    artifact = Artifact(format=WeightsFormat.GGUF, quantization="q4_k_m")
    (unknown,) = probe_weights(artifact, path, what_changed)
    assert (unknown.is_recorded, unknown.changed) == (False, None)
    record_digest(path, hashlib.sha256(b"x" * 100).hexdigest())
    (known,) = probe_weights(artifact, path, what_changed)
    assert (known.is_recorded, known.changed) == (True, None)
    path.write_bytes(b"y" * 101)
    (spoilt,) = probe_weights(artifact, path, what_changed)
    assert spoilt.changed is not None
    assert spoilt.changed.startswith("size, ")


# --- All together -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_hangs_or_breaks_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that never ends and one that raises are findings; the others are there, and it does not take their time."""
    monkeypatch.setattr(gathering, "_SYSTEMD_S", 4.0)
    monkeypatch.setattr(gathering, "_FILES_S", 4.0)
    release = socket.socketpair()

    def hang(_: str) -> list[int]:
        release[0].recv(1)
        return []

    def raise_it() -> tuple[()]:
        message = "a bug"
        raise RuntimeError(message)

    try:
        call = Bounded(lambda: hang(""))
        assert not call.wait(0.05)
        facts = gather(asked(broken_profiles=raise_it, port=lambda: hang("")))
    finally:
        release[1].close()
        release[0].close()
    told = {silent.what: silent.error for silent in facts.silent}
    assert told["the profiles"] == "RuntimeError: a bug"
    assert told["the port"] is None
    assert {finding.severity for finding in judge(facts).findings if finding.code is FindingCode.NOT_ANSWERED} == {
        Severity.FAULT
    }
