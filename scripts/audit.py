"""Ask for published vulnerabilities of what requirements/*.txt pins, and fail on those without a reason to live with them.

A database that does not know a package says nothing of it, and one that cannot be reached may look like one that knows
nothing: so an old release with a known hole is asked for, too. Where that is not found, nothing was audited, and that is said.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

REQUIREMENTS: Final = Path(__file__).parent.parent / "requirements"
EXCEPTIONS: Final = REQUIREMENTS / "audit-exceptions.toml"
CONTROL: Final = "jinja2==2.10.0"
"""It has a hole (CVE-2019-10906) that every database has known for years."""
EXIT_FOUND: Final = 1
EXIT_BLIND: Final = 3


class Finding(NamedTuple):
    """One vulnerability of one pinned release."""

    package: str
    version: str
    ids: frozenset[str]
    mended: tuple[str, ...]

    def __str__(self) -> str:
        """Tell it in a line."""
        mended = f"; mended in {', '.join(self.mended)}" if self.mended else "; nothing mends it yet"
        return f"{self.package} {self.version}: {', '.join(sorted(self.ids))}{mended}"


def parse_report(text: str) -> tuple[list[Finding], list[str]]:
    """Return what pip-audit found, and the packages that no database knows."""
    dependencies: list[Mapping[str, Any]] = json.loads(text)["dependencies"]
    findings = [
        Finding(
            package=each["name"],
            version=each["version"],
            ids=frozenset({vulnerability["id"], *vulnerability.get("aliases", ())}),
            mended=tuple(vulnerability.get("fix_versions", ())),
        )
        for each in dependencies
        for vulnerability in each.get("vulns", ())
    ]
    return findings, [each["name"] for each in dependencies if "skip_reason" in each]


def read_exceptions(text: str) -> dict[tuple[str, str], str]:
    """Return the reasons to live with findings, by package and id; each must have one.

    Raises:
        ValueError: one has none.
    """
    found = {}
    for each in tomllib.loads(text).get("exception", ()):
        if not each.get("reason", "").strip():
            message = f"the exception for {each.get('package')} has no reason"
            raise ValueError(message)
        found[each["package"], each["id"]] = each["reason"]
    return found


def judge(
    findings: Iterable[Finding], exceptions: Mapping[tuple[str, str], str]
) -> tuple[list[Finding], set[tuple[str, str]]]:
    """Return the findings that nobody gave a reason for, and the exceptions that were of use."""
    open_, used = [], set()
    for finding in findings:
        excused = {(finding.package, id_) for id_ in finding.ids} & exceptions.keys()
        used |= excused
        if not excused:
            open_.append(finding)
    return open_, used


def ask(file: Path) -> str:
    """Return pip-audit's report on a file of pins, as JSON; an empty one where it could not be had.

    Nothing is installed or resolved: what is pinned is what is asked for.
    """
    argv = [sys.executable, "-m", "pip_audit", "--requirement", str(file), "--no-deps", "--disable-pip"]
    argv += ["--format", "json", "--progress-spinner", "off", "--timeout", "20"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    return done.stdout if done.stdout.startswith("{") else '{"dependencies": []}'


def pins_of(file: Path) -> str:
    """Return the pins of a file without digests, which are no matter here, and without what is no release's number alone."""
    lines = (line.partition("#")[0].partition("--hash")[0].strip(" \\\n") for line in file.read_text().splitlines())
    return "".join(f"{line.partition(';')[0].strip()}\n" for line in lines if "==" in line)


def audit(files: Iterable[Path], exceptions: Mapping[tuple[str, str], str]) -> int:
    """Ask for each file, print what was found, and return the exit code."""
    used: set[tuple[str, str]] = set()
    n_open = 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "pins.txt"
        scratch.write_text(f"{CONTROL}\n")
        if not parse_report(ask(scratch))[0]:
            print(
                f"not audited: the database does not know of the hole in {CONTROL}, so it cannot be reached from here"
            )
            return EXIT_BLIND
        for file in files:
            scratch.write_text(pins_of(file))
            findings, unknown = parse_report(ask(scratch))
            left, excused = judge(findings, exceptions)
            used |= excused
            n_open += len(left)
            told = f", of {len(unknown)} nothing is known ({', '.join(unknown)})" if unknown else ""
            print(
                f"{file.name}: {len(pins_of(file).splitlines())} pins, {len(findings)} findings, {len(left)} without a reason{told}"
            )
            for finding in left:
                print(f"  {finding}")
    for package, id_ in sorted(exceptions.keys() - used):
        print(f"exception of no use any more: {package} {id_}")
    return EXIT_FOUND if n_open else 0


def main() -> int:
    """Audit all files, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, default=sorted(REQUIREMENTS.glob("*.txt")))
    return audit(parser.parse_args().files, read_exceptions(EXCEPTIONS.read_text()))


if __name__ == "__main__":
    sys.exit(main())
