"""Makes what a test container is put together from: a Debian with systemd, and the wheels of the project's dependencies.

Both are kept in a folder and made again when what they follow from changes. It must not know how a container is booted.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
EXTRAS: Final = "llama-server,gemma3-270m"
_PACKAGES: Final = ("systemd", "systemd-sysv", "libpam-systemd", "dbus", "libgomp1", "python3", "python3-venv")
SUITE_VARIABLE: Final = "LAUNCHER_SYSTEMD_SUITE"
_FALLBACK_SUITE: Final = "bookworm"  # where the machine's own apt knows no Debian; debootstrap has a mirror for it
_TIMEOUT_S: Final = 540
BOUND: Final = ("setpriv", "--pdeathsig", "KILL")
"""Runs what follows only as long as whoever started it lives."""


class Release(NamedTuple):
    """Which Debian, and where from: ``None`` is debootstrap's own mirror."""

    suite: str
    mirror: str | None


def parse_targets(text: str) -> Release | None:
    """Return the first Debian that apt takes packages from: lines of ``ORIGIN|CODENAME|COMPONENT|SITE``."""
    for line in text.splitlines():
        origin, suite, component, site = line.split("|", 3)
        if origin == "Debian" and component == "main" and suite.isalpha():  # no -updates, no -security
            return Release(suite, site)
    return None


def find_release() -> Release:
    """Return this machine's own Debian and mirror, as its apt knows them; or the Debian that is asked for."""
    form = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(SITE)"
    asked = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    found = None
    with contextlib.suppress(OSError):
        told = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        found = parse_targets(told.stdout) if told.returncode == 0 else None
    release = found or Release(_FALLBACK_SUITE, None)
    return release._replace(suite=os.environ.get(SUITE_VARIABLE) or release.suite)


def _proxies() -> dict[str, str]:
    """Return the environment's proxies, apt's own where it has one: debootstrap asks apt for none."""
    with contextlib.suppress(OSError):
        asked = ["apt-config", "shell", "proxy", "Acquire::http::Proxy"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
        proxy = told.removeprefix("proxy='").removesuffix("'")
        if proxy and proxy != "DIRECT" and "http_proxy" not in os.environ:
            return {"http_proxy": proxy}
    return {}


@contextlib.contextmanager
def _made(folder: Path, name: str) -> Iterator[Path | None]:
    """Give a new folder that becomes ``folder/name`` once the block has ended well; ``None`` where that exists."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once make it once
        if (folder / name).is_dir():
            yield None
            return
        for left in folder.glob(f".{name}.part-*"):  # of a run that was killed; its mounts went with its namespace
            shutil.rmtree(left)
        part = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}.part-"))
        part.chmod(0o755)
        try:
            yield part
            part.rename(folder / name)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _key(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _run(argv: list[str], what: str) -> None:
    began_s = time.monotonic()
    done = subprocess.run(
        [*BOUND, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **_proxies()},
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        message = f"{what}: exit code {done.returncode}\n{tail}"
        raise SystemExit(message)
    sys.stdout.write(f"{what}: {time.monotonic() - began_s:.0f} s\n")
    sys.stdout.flush()


def make_base(folder: Path) -> Path:
    """Return a root file system with systemd and Python, made with debootstrap where there is none yet."""
    release = find_release()
    name = f"base-{_key(release, _PACKAGES)}"
    with _made(folder, name) as part:
        if part is not None:
            # Namespaces of its own: whatever it mounts or starts is gone when it is killed.
            alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            words = ["--variant=minbase", f"--include={','.join(_PACKAGES)}", release.suite, str(part)]
            mirror = [] if release.mirror is None else [release.mirror]
            _run([*alone, "debootstrap", *words, *mirror], f"debootstrap {release.suite}")
            # The journal outlives a reboot; what apt and debootstrap brought along is not needed any more.
            (part / "var/log/journal").mkdir(exist_ok=True)
            shutil.rmtree(part / "var/cache/apt/archives", ignore_errors=True)
    return folder / name


def build_wheel(folder: Path) -> Path:
    """Return the wheel of this checkout, built into ``folder``."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("launcher-*.whl")
    return wheel


def python_of(base: Path) -> str:
    """Return the version of the Python in a root file system, as ``3.11``."""
    (library,) = (base / "usr/lib").glob("python3.[0-9]*")
    return library.name.removeprefix("python")


def download_wheels(folder: Path, version: str) -> Path:
    """Return a folder with all that the project needs to be installed by that Python, without the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = f"wheels-{_key(project['dependencies'], project['optional-dependencies'], version)}"
    with _made(folder, name) as part:
        if part is not None:
            wheel = build_wheel(part)
            pip = [sys.executable, "-m", "pip", "--quiet", "download", "--dest", str(part)]
            words = ["--only-binary=:all:", f"--python-version={version}", f"{wheel}[{EXTRAS}]"]
            _run([*pip, *words], "pip download")
            wheel.unlink()
    return folder / name


def main() -> None:
    """Make both in the folder that is named."""
    base = make_base(Path(sys.argv[1]))
    download_wheels(Path(sys.argv[1]), python_of(base))


if __name__ == "__main__":
    main()
