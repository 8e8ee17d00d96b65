"""What an engine told is found again for the same command, and for no other."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from launcher.domain import Address, Command, Engine, EngineInstall, MemoryUse
from launcher.store import state_root
from launcher.supervisor.breakdown import Breakdown, DeviceRow
from launcher.supervisor.recall import Recall, forget
from launcher.units import MIB

INSTALL = EngineInstall(engine=Engine.LLAMA_SERVER, argv=("llama-server",), build="abc")
TOLD = Breakdown(
    devices=(DeviceRow(use=MemoryUse(name="CUDA0", weights_bytes=7 * MIB)),),
    hosts=(MemoryUse(name="Host", compute_bytes=MIB),),
    complete=True,
)


@pytest.fixture(name="weights")
def make_weights(tmp_path: Path) -> Path:
    """Something that has a size and a time."""
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGUF")
    return path


def command(weights: Path, *more: str, port: str = "8080", fit: str = "on", cache_ram: str = "0") -> Command:
    """A command as the launcher makes them."""
    argv = ("llama-server", "--model", str(weights), "--port", port, "--ctx-size", "2048", "--cache-ram", cache_ram)
    return Command(
        argv=(*argv, "--fit", fit, *more),
        address=Address(port=int(port)),
        ready_path="/health",
        canary_path="/",
        canary_body="{}",
    )


@pytest.mark.usefixtures("state_dir")
def test_the_same_command_is_known_on_any_port_and_with_any_room_for_prompts(weights: Path) -> None:
    """What changes from start to start and is no part of the account does not matter, nor does who asks."""
    Recall("here").keep(command(weights), INSTALL, TOLD)
    assert Recall("here").find(command(weights, port="9", fit="off", cache_ram="512"), INSTALL) == TOLD


@pytest.mark.usefixtures("state_dir")
def test_another_command_build_file_or_machine_is_not(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thing changed: it has to be told again."""
    recall = Recall("here")
    recall.keep(command(weights), INSTALL, TOLD)
    assert recall.find(command(weights, "--n-gpu-layers", "3"), INSTALL) is None
    assert recall.find(command(weights), replace(INSTALL, build="abd")) is None
    assert recall.find(command(weights), replace(INSTALL, env={"GGML_VK_VISIBLE_DEVICES": "0"})) is None
    assert Recall("there").find(command(weights), INSTALL) is None
    with monkeypatch.context() as changed:
        changed.setenv("LLAMA_ARG_MMPROJ", "/some/file")
        assert recall.find(command(weights), INSTALL) is None
    assert recall.find(command(weights), INSTALL) == TOLD
    os.utime(weights, ns=(1, 1))
    assert recall.find(command(weights), INSTALL) is None


@pytest.mark.usefixtures("state_dir")
def test_what_cannot_be_identified_is_not_kept(weights: Path) -> None:
    """No build, no weights: nothing is written."""
    Recall("here").keep(command(weights), replace(INSTALL, build=None), TOLD)
    Recall("here").keep(command(weights.with_name("gone")), INSTALL, TOLD)
    assert not list(state_root().rglob("*.json"))


@pytest.mark.usefixtures("state_dir")
@pytest.mark.parametrize("text", ["", "{", '{"told": {}}', '{"told": {"complete": true}, "schema_version": 9}'])
def test_a_damaged_account_is_told_again(weights: Path, text: str) -> None:
    """It counts as absent, and is replaced by the next one."""
    recall = Recall("here")
    recall.keep(command(weights), INSTALL, TOLD)
    (file,) = state_root().rglob("*.json")
    file.write_text(text)
    assert recall.find(command(weights), INSTALL) is None
    recall.keep(command(weights), INSTALL, TOLD)
    assert recall.find(command(weights), INSTALL) == TOLD


@pytest.mark.usefixtures("state_dir")
def test_it_can_be_forgotten(weights: Path) -> None:
    """All of one machine, and whether there was anything."""
    for machine in ("here", "there"):
        Recall(machine).keep(command(weights), INSTALL, TOLD)
    assert forget("here")
    assert not forget("here")
    assert Recall("here").find(command(weights), INSTALL) is None
    assert Recall("there").find(command(weights), INSTALL) == TOLD


@pytest.mark.usefixtures("state_dir")
def test_the_number_of_accounts_is_bounded(weights: Path) -> None:
    """The oldest go."""
    recall = Recall("here")
    for n in range(300):
        recall.keep(command(weights, "--ubatch-size", str(n)), INSTALL, TOLD)
    assert len(list(state_root().rglob("*.json"))) == 256
    assert recall.find(command(weights, "--ubatch-size", "299"), INSTALL) == TOLD


@pytest.mark.usefixtures("state_dir")
def test_a_disk_that_takes_nothing_is_no_fault(weights: Path) -> None:
    """It is told again next time, and that is all."""
    state_root().mkdir(parents=True, exist_ok=True)
    (state_root() / "accounts").write_text("in the way")
    Recall("here").keep(command(weights), INSTALL, TOLD)
    assert Recall("here").find(command(weights), INSTALL) is None
