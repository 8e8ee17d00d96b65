"""The JSON of ``launch plan``, and the schema that is promised for it."""

import json
import os
from pathlib import Path

import jsonschema
import pytest

from launcher.domain import Request
from launcher.inventory import load_inventory
from launcher.planner.advice import plan
from launcher.profiles import load_profile
from launcher.render.plan import outcome_json, outcome_schema

_SCHEMA = Path(__file__).parents[2] / "docs" / "plan.schema.json"


def test_the_schema_file_is_the_code_s() -> None:
    """``docs/plan.schema.json`` is what the nouns say; ``make golden`` rewrites it."""
    if os.environ.get("LAUNCHER_GOLDEN"):
        _SCHEMA.write_text(outcome_schema())
    assert _SCHEMA.read_text() == outcome_schema()


@pytest.mark.parametrize(("model", "kind"), [("gemma2-27b", "plan"), ("llama3.1-405b", "refusal")])
def test_documents_keep_to_the_schema(model: str, kind: str) -> None:
    """A plan and a refusal are both valid, and neither is valid as the other."""
    document = json.loads(outcome_json(plan(Request(profile=load_profile(model)), load_inventory("rtx4090"))))
    jsonschema.validate(document, json.loads(outcome_schema()))
    assert set(document) == {"schema_version", kind}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema_version": 1, kind: {}}, json.loads(outcome_schema()))
