"""The short form of `make chaos`: every kind of fault once under load, over real engines."""

from typing import Any

import pytest

from benchmarks import chaos
from launcher.domain import EngineInstall

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.usefixtures("real_model")]
_SLACK_S = 60.0
"""A machine that also does other work: the bar of `make chaos` is for one that does not."""


@pytest.mark.timeout(400)
def test_every_kind_of_fault_under_load(llama_server: EngineInstall) -> None:
    """No request without an answer, no orphan, no out-of-memory twice; each fault is recovered from."""
    words = ["--faults", str(len(chaos.KINDS)), "--seed", "8", "--engines", llama_server.engine]
    args = chaos.parse([*words, "--slack", str(_SLACK_S)])
    report: Any = chaos.play(args)
    assert report["n_faults"] >= len(chaos.KINDS) - len(chaos.GROUPED), report
    assert report["answers"]["whole"], report
    assert not any(report["bars"].values()), report
