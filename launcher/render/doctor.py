"""What `launch doctor` found, as text and as JSON with its schema. Pure; it must not know how it was found."""

import shlex
from collections.abc import Iterator

import msgspec

from launcher.domain import SCHEMA_VERSION
from launcher.findings import Checkup, Finding, Severity
from launcher.render.text import encodable, wrapped

_INDENT = "  "
_MAX_NAME = 60


def render_checkup(checkup: Checkup) -> str:
    """Return what was found, worst first: each with what was read where, and a command to paste; then what is in order."""
    lines: list[str] = []
    for finding in checkup.findings:
        if finding.severity is not Severity.OK:
            lines += [*_finding(finding), ""]
    lines += _in_order(checkup)
    lines += [_head(checkup)]
    return "".join(f"{_printable(line)}\n" for line in lines)


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def _head(checkup: Checkup) -> str:
    whom = f"`{_short(checkup.name)}` on this machine" if checkup.name is not None else "this machine"
    counted = [
        f"{n} {severity}{'s' if n > 1 else ''}"
        for severity in (Severity.FAULT, Severity.WARNING, Severity.NOTE)
        if (n := checkup.count(severity))
    ]
    return f"{whom}: {', '.join(counted) or 'nothing is wrong'}"


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..."


def _finding(finding: Finding) -> Iterator[str]:
    yield from wrapped(f"{finding.severity}[{finding.code}]: {finding.text}", first="", rest=_INDENT)
    for evidence in finding.evidence:
        yield from wrapped(f"{evidence.source}: {evidence.value}", first=f"{_INDENT}read ", rest=f"{_INDENT}     ")
    if finding.help is not None:
        yield from wrapped(finding.help, first="help: ", rest=_INDENT)
    if finding.command:
        yield f"    {shlex.join(finding.command)}"


def _in_order(checkup: Checkup) -> Iterator[str]:
    found = [finding for finding in checkup.findings if finding.severity is Severity.OK]
    for finding in found:
        yield from wrapped(f"{finding.area}: {finding.text}", first="ok ", rest="     ")
    if found:
        yield ""


def checkup_json(checkup: Checkup) -> str:
    """Return the same as one JSON object, with the evidence of what is in order as well."""
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION, "checkup": encodable(_body(checkup))}).decode() + "\n"


def _body(checkup: Checkup) -> dict[str, object]:
    return {
        "name": checkup.name,
        "counts": {severity.value: checkup.count(severity) for severity in Severity},
        "findings": checkup.findings,
    }


def checkup_schema() -> str:
    """Return the JSON Schema of ``checkup_json``'s documents, as it is kept in ``docs/doctor.schema.json``."""
    (finding,), components = msgspec.json.schema_components((Finding,), ref_template="#/$defs/{name}")
    counts = {severity.value: {"type": "integer", "minimum": 0} for severity in Severity}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "launch doctor --json",
        "type": "object",
        "additionalProperties": False,
        "required": ["schema_version", "checkup"],
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION},
            "checkup": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "counts", "findings"],
                "properties": {
                    "name": {"type": ["string", "null"]},
                    "counts": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": list(counts),
                        "properties": counts,
                    },
                    "findings": {"type": "array", "items": finding},
                },
            },
        },
        "$defs": components,
    }
    return msgspec.json.format(msgspec.json.encode(schema, order="deterministic"), indent=2).decode() + "\n"
