"""What an engine finds in its environment, and what of it is not for it."""

import pytest

from launcher.domain import Address, Command
from launcher.supervisor.environment import environment_of


def test_an_engine_is_given_no_key_and_no_way_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and files alike; all else is inherited, and the command's own goes before."""
    for name in ("LAUNCHER_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "sentinel")
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.setenv("BOTH", "outer")
    command = Command(
        argv=("e",), address=Address(), ready_path="/", canary_path="/", canary_body="", env={"BOTH": "inner"}
    )
    found = environment_of(command)
    assert "sentinel" not in found.values()
    assert (found["INHERITED"], found["BOTH"]) == ("yes", "inner")
