"""Engines with published faults are neither planned for nor started, whichever engine it is."""

from typing import Final

import pytest
from msgspec.structs import replace

from launcher.backends import build_command
from launcher.domain import Address, Engine, EngineInstall, Plan, Refusal, RefusalCode, Request
from launcher.errors import EngineTooOldError
from launcher.inventory import load_inventory
from launcher.inventory.llama_holes import find_build_holes, find_python_holes
from launcher.planner.fit import decide
from launcher.profiles import load_profile
from launcher.render.plan import render_outcome

_REQUEST: Final = Request(profile=load_profile("gemma2-9b"))
_MACHINE: Final = load_inventory("cpu-64g")
_OLD: Final = EngineInstall(
    engine=Engine.LLAMA_SERVER,
    argv=("/usr/bin/llama-server",),
    version="8000 (abc1234)",
    holes=find_build_holes("8000 (abc1234)"),
)
_OLD_PYTHON: Final = EngineInstall(
    engine=Engine.LLAMA_CPP_PYTHON,
    argv=("/usr/bin/python3", "-m", "llama_cpp.server"),
    version="0.2.71",
    holes=find_python_holes("0.2.71"),
)
_NEW: Final = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/opt/llama-server",), version="11434 (abc1234)")


def test_where_all_have_faults_it_is_refused_with_their_ids() -> None:
    """The refusal names each, its faults and the version without them; options are not said to be what it lacks."""
    outcome = decide(_REQUEST, replace(_MACHINE, engines=(_OLD, _OLD_PYTHON)))
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.ENGINE_TOO_OLD
    text = render_outcome(outcome)
    for words in ("may be used", "8000 (abc1234)", "CVE-2026-21869", "mended in 8940", "0.2.71", "CVE-2024-34359"):
        assert words in text
    assert "options" not in text.partition("help:")[0]


def test_a_sound_engine_is_taken_before_one_with_faults() -> None:
    """Wherever it stands in the order; the plan says that the other was passed over."""
    outcome = decide(_REQUEST, replace(_MACHINE, engines=(_OLD, _OLD_PYTHON, _NEW)))
    assert isinstance(outcome, Plan)
    assert outcome.install == _NEW
    assert sum("is passed over" in note for note in outcome.notes) == 2


@pytest.mark.parametrize("install", [_OLD, _OLD_PYTHON])
def test_no_plan_starts_an_engine_with_faults(install: EngineInstall) -> None:
    """Not even one that was made otherwise."""
    outcome = decide(_REQUEST, replace(_MACHINE, engines=(_NEW,)))
    assert isinstance(outcome, Plan)
    plan = replace(outcome, engine=install.engine, install=install)
    with pytest.raises(EngineTooOldError, match=r"is not started: .*CVE-"):
        build_command(plan, weights_path="/m.gguf", address=Address(port=1), alias="m")
