"""What `serve` downloads, and when: what is here goes first, and a plan comes before a download and after it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from launcher.cli import options as opt
from launcher.cli import pulling
from launcher.cli.pulling import Chosen, choose
from launcher.domain import (
    Artifact,
    ArtifactFile,
    Host,
    InstanceRecord,
    Inventory,
    Outcome,
    Plan,
    Profile,
    Refusal,
    RefusalCode,
    Request,
    Settings,
    State,
    WeightsFormat,
)
from launcher.errors import WeightsMissingError
from launcher.fetch.progress import Phase, Progress
from launcher.store import open_instance
from launcher.supervisor.service_manager import ServiceManager
from tests.fakes.harness import poll
from tests.fakes.manager import Manager
from tests.fakes.plans import plan_for

HERE = "q4_k_m"
NO = Refusal(code=RefusalCode.EXCEEDS_MEMORY, model="m", fact="too large")
Choose = Callable[..., Chosen]


class World:
    """A machine that is asked, a planner that says what it is told to, and downloads that are counted."""

    def __init__(self, folder: Path) -> None:
        """Have nothing here."""
        self.folder = folder
        self.asked: list[tuple[str, ...]] = []
        self.brought: list[str] = []
        self.fitting: set[str] = set()
        self.n_measured = 0

    def profile(self, *quantizations: str, here: tuple[str, ...] = (), source: bool = True) -> Profile:
        """Return a profile with these; those ``here`` have a file."""
        for name in here:
            (self.folder / name).write_bytes(b"GGUF")
        artifacts = tuple(
            Artifact(
                format=WeightsFormat.GGUF,
                quantization=name,
                repository="o/m" if source else None,
                local_path=str(self.folder / name) if name in here else None,
            )
            for name in quantizations
        )
        return Profile(name="m", artifacts=artifacts)

    def measure(self) -> Inventory:
        """Look at the machine."""
        self.n_measured += 1
        return Inventory(name="here", host=Host(total_bytes=1, available_bytes=1), devices=(), engines=())

    def decide(self, request: Request, _: Inventory) -> Outcome:
        """Take the first artifact that fits."""
        names = tuple(artifact.quantization for artifact in request.profile.artifacts)
        self.asked.append(names)
        fitting = [artifact for artifact in request.profile.artifacts if artifact.quantization in self.fitting]
        if not fitting:
            return NO
        return replace(plan_for(), quantization=fitting[0].quantization, artifact=fitting[0])

    def bring(self, plan: Plan) -> Artifact:
        """Download what was chosen."""
        self.brought.append(plan.quantization)
        path = self.folder / plan.quantization
        path.write_bytes(b"GGUF")
        return replace(plan.artifact, local_path=str(path))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Nothing but what the test puts there: other programs' stores are not looked into."""
    monkeypatch.setattr(opt, "find_weights", lambda profile: profile)
    for name in ("HOME", "HF_HOME", "OLLAMA_MODELS"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    folder = tmp_path / "weights"
    folder.mkdir()
    return World(folder)


def run(world: World, profile: Profile, *, pull: bool = True, **settings: str) -> Chosen:
    """Choose as `serve` does."""
    return choose(
        profile,
        Settings(**settings),  # type: ignore[arg-type]  # the texts that the tests give are of text fields
        force=False,
        measure=world.measure,
        decide=world.decide,
        bring=world.bring if pull else None,
    )


def test_what_is_here_goes_first(world: World) -> None:
    """A better one that would have to come is not waited for."""
    world.fitting = {"q8_0", HERE}
    chosen = run(world, world.profile("q8_0", HERE, here=(HERE,)))
    assert isinstance(chosen.outcome, Plan)
    assert (chosen.outcome.quantization, world.brought, world.asked) == (HERE, [], [(HERE,)])


def test_what_is_missing_is_planned_for_then_brought(world: World) -> None:
    """Exactly that; afterwards the machine is measured and planned for anew, with what is here alone."""
    world.fitting = {"q8_0", HERE}
    chosen = run(world, world.profile("q8_0", HERE))
    assert isinstance(chosen.outcome, Plan)
    assert chosen.outcome.artifact.local_path == str(world.folder / "q8_0")
    assert (world.brought, world.asked, world.n_measured) == (["q8_0"], [("q8_0", HERE), ("q8_0",)], 2)
    assert chosen.is_told
    assert [artifact.quantization for artifact in chosen.request.profile.artifacts] == ["q8_0"]


def test_what_is_here_and_does_not_fit_is_replaced(world: World) -> None:
    """A smaller one is brought instead, and the ladder may use both."""
    world.fitting = {"q2_k"}
    chosen = run(world, world.profile(HERE, "q2_k", here=(HERE,)))
    assert world.brought == ["q2_k"]
    assert isinstance(chosen.outcome, Plan)
    assert [artifact.quantization for artifact in chosen.request.profile.artifacts] == [HERE, "q2_k"]


def test_a_quantization_that_is_ordered_is_brought(world: World) -> None:
    """Though another one is here."""
    world.fitting = {"q8_0", HERE}
    assert run(world, world.profile("q8_0", HERE, here=(HERE,)), quantization="q8_0").is_told
    assert world.brought == ["q8_0"]


@pytest.mark.parametrize("here", [(), (HERE,)])
def test_what_does_not_fit_is_not_brought(world: World, here: tuple[str, ...]) -> None:
    """The refusal is of all that there is."""
    chosen = run(world, world.profile("q8_0", HERE, here=here))
    assert chosen.outcome is NO
    assert world.brought == []
    assert world.asked[-1] == ("q8_0", HERE)


def test_memory_that_went_meanwhile_is_told(world: World) -> None:
    """What was planned before the download need not fit after it."""
    world.fitting = {"q8_0"}
    profile = world.profile("q8_0")

    def bring(plan: Plan) -> Artifact:
        world.fitting = set()
        return world.bring(plan)

    chosen = choose(profile, Settings(), force=False, measure=world.measure, decide=world.decide, bring=bring)
    assert chosen.outcome is NO
    assert not chosen.is_told


def test_nothing_is_brought_where_that_is_forbidden(world: World) -> None:
    """What is here is served or refused; where nothing is, that is said with the command that brings it."""
    world.fitting = {"q8_0"}
    assert run(world, world.profile("q8_0", HERE, here=(HERE,)), pull=False).outcome is NO
    with pytest.raises(WeightsMissingError) as caught:
        run(world, world.profile("q8_0", HERE), pull=False)
    assert "launch pull m" in (caught.value.help or "")
    assert world.brought == []


def test_what_nobody_publishes_is_not_planned_for(world: World) -> None:
    """Weights without a source are missing, not refused."""
    with pytest.raises(WeightsMissingError):
        run(world, world.profile(HERE, source=False))
    assert world.asked == []


class Record:
    """What is written down of an instance."""

    def __init__(self) -> None:
        """Know of nothing."""
        self.said: list[str] = []

    def update(self, **changes: object) -> None:
        """Take note."""
        self.said.append(str(changes["fetching"]))


def test_progress_is_written_down_and_told_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see how far it is; the manager is asked for time while something moves or is waited for, and not otherwise."""
    monkeypatch.setattr(pulling, "_RECORD_S", 0.0)
    record, shown = Record(), list[Progress]()
    manager = Manager(tmp_path / "notify")
    service_manager = ServiceManager(manager.address)
    try:
        tell = pulling._recording(shown.append, record, service_manager)  # type: ignore[arg-type]  # of its update
        for phase, n_bytes, why in [
            (Phase.DOWNLOADING, 10, ""),
            (Phase.DOWNLOADING, 20, ""),
            (Phase.RETRYING, 20, "hub answered 429"),
            (Phase.SHARING, 20, ""),
            (Phase.SHARING, 20, ""),
        ]:
            tell(Progress(phase=phase, file="f.gguf", n_bytes=n_bytes, total_bytes=40, why=why))
        poll(lambda: len(manager.messages) == 3)
    finally:
        service_manager.close()
        manager.close()
    assert record.said == [
        "downloading f.gguf: 10 B of 40 B (25 %)",
        "downloading f.gguf: 20 B of 40 B (50 %)",
        "waiting for f.gguf: 20 B of 40 B (50 %), hub answered 429",
        "another process downloads f.gguf: 20 B of 40 B (50 %)",
        "another process downloads f.gguf: 20 B of 40 B (50 %)",
    ]
    assert manager.values("STATUS") == [f"starting: {words}" for words in record.said[:3]]
    assert set(manager.values("EXTEND_TIMEOUT_USEC")) == {"600000000"}
    assert len(shown) == 5


def test_weights_are_compared_before_they_are_served_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says what is done meanwhile; what is known is not told again; what is wrong is the instance's failure."""
    monkeypatch.setenv("LAUNCHER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("LAUNCHER_CACHE_DIR", str(tmp_path / "cache"))
    weights = tmp_path / "w.gguf"
    weights.write_bytes(b"w" * 1000)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()

    def check(sha256: str, path: Path) -> tuple[list[str], InstanceRecord | None]:
        artifact = replace(
            plan_for().artifact, files=(ArtifactFile(name="w.gguf", sha256=sha256),), local_path=str(path)
        )
        told: list[str] = []
        with open_instance("m") as instance:
            try:
                plan = replace(plan_for(), artifact=artifact)
                pulling.check_recorded(plan, instance, lambda notice: told.append(notice.text), ServiceManager())
            except WeightsMissingError as error:
                told.append(error.message)
            return told, instance.read()

    assert check(sha256, tmp_path / "none") == ([], None)
    told, record = check(sha256, weights)
    assert told == ["checking the sha256 of w.gguf once: 1000 B"]
    assert record is not None
    assert (record.state, record.fetching) == (State.STARTING, None)
    assert check(sha256, weights) == ([], record)
    told, record = check("0" * 64, weights)
    assert record is not None
    assert (record.state, record.reason) == (State.FAILED, told[1])
    assert "does not have the sha256 that it should" in told[1]


def test_a_journal_gets_faults_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Each once; how far it is stands in the status."""
    with pulling.shown(has_status=True) as tell:
        for why in ("", "cut", "cut", "", "busy"):
            tell(Progress(phase=Phase.RETRYING, file="f.gguf", n_bytes=1, total_bytes=None, why=why))
    said = capsys.readouterr().err.splitlines()
    assert said == ["waiting for f.gguf: 1 B, cut", "waiting for f.gguf: 1 B, busy"]
