"""What the checks are run with is pinned by digest and in step with what the project asks for; how an audit of it is judged."""

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = ROOT / "requirements" / "check.txt"
_EXTRAS: Final = ("check", "gemma3-270m", "llama-cpp")
_RENEW: Final = "run `make lock` and commit requirements/check.txt"


def _pins(file: Path) -> dict[str, tuple[str, list[str]]]:
    """Return version and digests by name."""
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in re.split(r"\n(?=[A-Za-z])", file.read_text()):
        match = re.match(r"([A-Za-z0-9_.-]+)==(\S+)", entry)
        if match is not None:
            found[canonicalize_name(match[1])] = (
                match[2].rstrip(";"),
                re.findall(r"--hash=sha256:([0-9a-f]{64})", entry),
            )
    return found


def test_what_is_asked_for_is_locked() -> None:
    """Each dependency and each extra of the checks has a pin that satisfies it, and digests of its files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in _EXTRAS for each in project["optional-dependencies"][extra]),
    ]
    pins = _pins(LOCK)
    assert len(pins) > len(wanted)
    assert {"fastapi", "uvicorn"} <= pins.keys()
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name == "llama-cpp-python":
            continue  # compiled by the Makefile, which names the version; its server's libraries are locked
        assert name in pins, f"{name} is not locked: {_RENEW}"
        version, digests = pins[name]
        assert Version(version) in requirement.specifier, f"{name} {version} is not {requirement.specifier}: {_RENEW}"
        assert digests, f"{name} has no digest: {_RENEW}"


@pytest.mark.parametrize("file", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_every_pin_is_exact_and_names_no_host(file: Path) -> None:
    """Where packages come from is the matter of whoever installs them."""
    text = file.read_text()
    assert re.search(r"^\s*(?:--index-url|--extra-index-url|--find-links|-i |-f )", text, re.MULTILINE) is None
    assert "://" not in re.sub(r"#.*", "", text)
    pins = _pins(file)
    assert pins
    assert [name for name, (_, digests) in pins.items() if not digests] == []


@pytest.fixture(name="audit", scope="module")
def load_audit() -> ModuleType:
    """The script that ``make audit`` runs."""
    spec = spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_REPORT: Final = """{"dependencies": [
 {"name": "good", "version": "1.0", "vulns": []},
 {"name": "bad", "version": "2.0", "vulns": [
  {"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"], "fix_versions": ["2.1"]}, {"id": "PYSEC-2", "aliases": [], "fix_versions": []}]},
 {"name": "strange", "skip_reason": "not found"}], "fixes": []}"""


def test_a_finding_needs_a_reason(audit: ModuleType) -> None:
    """By the package and any of its ids; what nobody excused is left, and so is what a database does not know."""
    findings, unknown = audit.parse_report(_REPORT)
    assert [str(finding) for finding in findings] == [
        "bad 2.0: CVE-1, GHSA-1, PYSEC-1; mended in 2.1",
        "bad 2.0: PYSEC-2; nothing mends it yet",
    ]
    assert unknown == ["strange"]
    excused = audit.read_exceptions('[[exception]]\npackage = "bad"\nid = "GHSA-1"\nreason = "not used so"\n')
    left, used = audit.judge(findings, {**excused, ("good", "CVE-9"): "old"})
    assert [finding.ids for finding in left] == [{"PYSEC-2"}]
    assert used == {("bad", "GHSA-1")}
    with pytest.raises(ValueError, match="no reason"):
        audit.read_exceptions('[[exception]]\npackage = "bad"\nid = "GHSA-1"\nreason = " "\n')


def test_the_exceptions_of_the_project_have_reasons(audit: ModuleType) -> None:
    """Each of them is read, whatever is audited."""
    assert audit.read_exceptions(audit.EXCEPTIONS.read_text()) is not None


def test_an_audit_that_sees_nothing_does_not_pass(
    audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database that does not know of an old hole was not asked; one that does decides."""
    file = tmp_path / "x.txt"
    file.write_text("bad==2.0 \\\n    --hash=sha256:00\n# a word\ngood==1.0; sys_platform == 'linux'\n")
    assert audit.pins_of(file) == "bad==2.0\ngood==1.0\n"
    answers = {"control": '{"dependencies": []}', "else": _REPORT}

    def ask(asked: Path) -> str:
        return answers["control" if audit.CONTROL in asked.read_text() else "else"]

    monkeypatch.setattr(audit, "ask", ask)
    assert audit.audit([file], {}) == audit.EXIT_BLIND
    assert "not audited" in capsys.readouterr().out
    answers["control"] = _REPORT
    assert audit.audit([file], {}) == audit.EXIT_FOUND
    assert "2 pins, 2 findings, 2 without a reason" in capsys.readouterr().out
    excused = {("bad", "CVE-1"): "r", ("bad", "PYSEC-2"): "r"}
    assert audit.audit([file], excused) == 0
