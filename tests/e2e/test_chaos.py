"""The short form of `make chaos`: eight kinds of fault under load, over the real engine."""

from typing import Any

import pytest

from benchmarks import chaos
from launcher.domain import EngineInstall

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.usefixtures("real_model")]
_SLACK_S = 60.0
"""A machine that also does other work: the bar of `make chaos` is for one that does not."""


@pytest.mark.timeout(400)
def test_eight_faults_under_load(llama_server: EngineInstall) -> None:
    """No request without an answer, no orphan, no out-of-memory twice; each fault is recovered from."""
    kinds = [kind for kind in chaos.KINDS if kind != "hog-at-start"]
    words = ["--faults", str(len(kinds)), "--kinds", ",".join(kinds), "--seed", "8", "--clients", "4"]
    args = chaos.parse([*words, "--engines", llama_server.engine, "--slack", str(_SLACK_S)])
    report: Any = chaos.play(args)
    assert report["n_faults"] == len(kinds), report
    assert report["answers"]["whole"], report
    assert not any(report["bars"].values()), report
