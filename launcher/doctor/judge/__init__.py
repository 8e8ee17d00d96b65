"""What follows from what was read: facts to findings, worst first. Pure.

It must not read anything. Nothing is said of what was not read: where a fact is missing, no finding is made of it.
"""

from collections.abc import Callable, Iterable
from typing import Final

from launcher.doctor.commands import kernel_messages
from launcher.doctor.facts import Facts, Silent
from launcher.doctor.judge import drivers, engines, machine, memory, model, served
from launcher.findings import Area, Checkup, Evidence, Finding, FindingCode, Severity

_Check = Callable[[Facts], Iterable[Finding]]
_Summary = Callable[[Facts], tuple[str, tuple[Evidence, ...]] | None]

_AREAS: Final[tuple[tuple[Area, _Check, _Summary], ...]] = (
    (Area.DRIVERS, drivers.check_drivers, drivers.sum_up_drivers),
    (Area.ENGINES, engines.check_engines, engines.sum_up_engines),
    (Area.MEMORY, memory.check_memory, memory.sum_up_memory),
    (Area.LIMITS, memory.check_limits, memory.sum_up_limits),
    (Area.KERNEL, machine.check_kernel, machine.sum_up_kernel),
    (Area.DISK, machine.check_disks, machine.sum_up_disks),
    (Area.PERMISSIONS, drivers.check_permissions, drivers.sum_up_permissions),
    (Area.PROFILE, model.check_profile, model.sum_up_profile),
    (Area.WEIGHTS, model.check_weights, model.sum_up_weights),
    (Area.PORTS, served.check_port, served.sum_up_port),
    (Area.STATE, served.check_state, served.sum_up_state),
    (Area.SYSTEMD, served.check_systemd, served.sum_up_systemd),
    (Area.CLOCK, machine.check_clock, machine.sum_up_clock),
    (Area.NETWORK, machine.check_network, machine.sum_up_network),
)

_WORST_FIRST: Final = tuple(reversed(Severity))


def _is_hung(silent: Silent) -> bool:
    return silent.error is None or "did not answer within" in silent.error


def judge(facts: Facts) -> Checkup:
    """Return all findings. An area in which nothing was found, though it was read, is said to be in order."""
    findings = [
        Finding(
            code=FindingCode.NOT_ANSWERED,
            severity=Severity.FAULT,
            area=Area.DRIVERS if "driver" in silent.what else Area.KERNEL,
            text=f"{silent.what} could not be looked into",
            evidence=(
                Evidence(
                    source="asking it", value=silent.error or f"no answer within {silent.timeout_s:g} s, given up"
                ),
            ),
            help="what hangs here will hang an engine, too; the kernel's messages often name the driver or the disk"
            if _is_hung(silent)
            else "it broke when it was asked: all that depends on it is left out here",
            command=kernel_messages(facts) if _is_hung(silent) or "driver" in silent.what else (),
        )
        for silent in facts.silent
    ]
    for area, check, sum_up in _AREAS:
        found = list(check(facts))
        if not found and (told := sum_up(facts)) is not None:
            text, evidence = told
            found = [
                Finding(code=FindingCode.IN_ORDER, severity=Severity.OK, area=area, text=text, evidence=evidence)
            ]  # fmt: skip
        findings += found
    findings.sort(key=lambda finding: _WORST_FIRST.index(finding.severity))
    return Checkup(findings=tuple(findings), name=None if facts.model is None else facts.model.name)
