"""What `docs/openapi.json` says of the gateway, and whether that is so."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from launcher.domain import State
from launcher.gateway.health import Health, PlanSummary, Report, Status, describe_health, describe_models
from launcher.gateway.policy import Door
from tests.fakes.gateway import serving
from tests.fakes.plans import plan_for
from tests.fuzz.described import DESCRIPTION, check

_DESCRIBED: dict[str, Any] = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
_SCHEMAS: dict[str, Any] = _DESCRIBED["components"]["schemas"]


@pytest.mark.parametrize("keys", [False, True])
async def test_schemathesis_finds_nothing(keys: bool) -> None:  # noqa: FBT001 - a case
    """Status codes, types, fields and bodies are as declared, whatever is asked, in order or not."""
    assert await check(n_examples=10, seed=1, keys=keys) == 0


def test_the_nouns_are_described() -> None:
    """Each field and each word, and none that is not there."""
    assert set(_SCHEMAS["Health"]["properties"]) == set(Report.__struct_fields__)
    assert set(_SCHEMAS["PlanSummary"]["properties"]) == set(PlanSummary.__struct_fields__)
    assert _SCHEMAS["Health"]["properties"]["status"]["enum"] == [word.value for word in Health]
    assert _SCHEMAS["Health"]["properties"]["state"]["enum"] == [state.value for state in State]


def test_the_errors_are_described() -> None:
    """Every code that the gateway's source names, in alphabetical order."""
    folder = Path(__file__).parents[2] / "launcher/gateway"
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    named = re.findall(r'(?:HttpError\(\s*\w+,|RefusedError\(|_send_away\(ticket,)\s*"([a-z-]+)"', source)
    named += ["bad-request"] if 'HttpError(status, "bad-request"' in source else []
    assert _SCHEMAS["Error"]["properties"]["error"]["properties"]["code"]["enum"] == sorted(set(named))


@pytest.mark.parametrize("in_full", [False, True])
@pytest.mark.parametrize("plan", [None, plan_for()], ids=["no plan", "a plan"])
def test_every_answer_keeps_to_its_schema(plan: Any, in_full: bool) -> None:  # noqa: FBT001 - a case
    """Also of an instance that has no plan yet."""
    _, health = describe_health(Door.OPEN, "x", Status(plan=plan), n_running=1, n_waiting=0, in_full=in_full)
    for name, answer in (("Health", health), ("Models", describe_models("tiny", plan, 1))):
        schema = {"$ref": f"#/components/schemas/{name}", "components": _DESCRIBED["components"]}
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/health", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("TRACE", "/x", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
    ],
)
async def test_a_refused_method_is_told_those_that_are_not(method: str, path: str, allowed: str) -> None:
    """RFC 9110, section 15.5.6, wants ``Allow`` with a 405 (found by schemathesis)."""
    async with serving() as served:
        ask = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        said = (await served.raw(ask.encode())).decode()
    assert said.startswith("HTTP/1.1 405 ")
    assert f"\r\nAllow: {allowed}\r\n" in said
