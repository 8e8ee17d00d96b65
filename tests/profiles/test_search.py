"""Laws of finding a profile by its name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from platformdirs import user_config_path

from launcher.domain import Profile, WeightsFormat
from launcher.errors import EXIT_USAGE, ProfileError, ProfileNotFoundError
from launcher.profiles import load_all, load_profile, load_smaller
from launcher.profiles.search import shipped_directory, user_directory
from tests.profiles.conftest import WriteProfile

SHIPPED = {
    *("gemma2-9b", "gemma2-27b", "gemma3-270m", "gpt-oss-20b", "gpt-oss-120b"),
    *("llama3.1-8b", "llama3.1-70b", "llama3.1-405b", "qwen3-30b-a3b", "qwen3.6-27b"),
}


def all_without_faults() -> tuple[Profile, ...]:
    """Return all profiles, failing on the first fault."""

    def fail(fault: ProfileError) -> None:
        raise fault

    return load_all(fail)


@pytest.mark.usefixtures("user_profiles")
@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_profiles_load_by_name_and_alias(name: str) -> None:
    """Each shipped profile answers to its name and its aliases, and each GGUF artifact has its spec."""
    profile = load_profile(name)
    assert profile.name == name
    assert profile.aliases
    assert all(load_profile(alias) == profile for alias in profile.aliases)
    gguf = [artifact for artifact in profile.artifacts if artifact.format is WeightsFormat.GGUF]
    assert gguf
    assert all(artifact.spec is not None for artifact in gguf)


@pytest.mark.usefixtures("user_profiles")
def test_published_files_hold_their_specs() -> None:
    """Where a file's bytes are published, the spec's tensors fill it up to a header of at most 16 MB.

    IQ4_XS files of before 2025 are the exception: the rules changed since, by about 1 %.
    """
    n_checked = 0
    for profile in all_without_faults():
        for artifact in profile.artifacts:
            sizes = [file.size_bytes for file in artifact.files]
            known = [size for size in sizes if size is not None]
            if artifact.spec is None or not known:
                continue
            n_checked += 1
            header_bytes = sum(known) - artifact.spec.weights_bytes
            if artifact.quantization == "iq4_xs":
                assert abs(header_bytes) < 0.012 * sum(known)
            else:
                assert 0 < header_bytes < 16e6, (profile.name, artifact.quantization)
    assert n_checked >= 20


@pytest.mark.usefixtures("user_profiles")
def test_every_shipped_profile_is_listed() -> None:
    """`load_all` gives the shipped profiles, in order of name, without a fault."""
    names = [profile.name for profile in all_without_faults()]
    assert names == sorted(names)
    assert set(names) == SHIPPED


def test_the_users_profile_shadows_the_shipped_one(write_profile: WriteProfile) -> None:
    """A user's file of a shipped name, or a user's alias of it, comes first; the listing has each name once."""
    own = write_profile("gemma2-27b", "")
    write_profile("mine", 'aliases = ["gemma2-9b"]')
    assert load_profile("gemma2-27b").source == str(own)
    assert load_profile("gemma2-9b").name == "mine"
    names = [profile.name for profile in all_without_faults()]
    assert len(names) == len(set(names))
    assert names.count("gemma2-27b") == 1
    assert "gemma2-9b" not in names


def test_two_claims_in_one_directory_clash(write_profile: WriteProfile) -> None:
    """A name that two files of one directory claim is a fault that names both, by whichever way it is reached."""
    first = write_profile("first", 'aliases = ["both"]')
    second = write_profile("second", 'aliases = ["both"]')
    third = write_profile("third", 'aliases = ["first"]')
    for name, files in (("both", {first, second}), ("first", {first, third})):
        with pytest.raises(ProfileError, match=f"two profiles claim the name `{name}`") as caught:
            load_profile(name)
        assert set(caught.value.details) == {str(file) for file in files}
    told: list[ProfileError] = []
    names = {profile.name for profile in load_all(told.append)}
    assert len(told) == 2
    assert "first" in names
    assert names.isdisjoint({"second", "third"})


def test_a_broken_file_hides_no_other(write_profile: WriteProfile, user_profiles: Path) -> None:
    """Resolving a name never fails for another file's sake; the listing tells of the broken one and goes on."""
    write_profile("mine", 'aliases = ["m"]')
    (user_profiles / "broken.toml").write_text("mine m gemma2-9b = [", encoding="utf-8")
    (user_profiles / "binary.toml").write_bytes(b"\xff mine m \x00")
    (user_profiles / "folder.toml").mkdir()
    (user_profiles / "dangling.toml").symlink_to("nowhere")
    assert load_profile("mine").name == load_profile("m").name == "mine"
    assert load_profile("gemma2-9b").name == "gemma2-9b"
    told: list[ProfileError] = []
    assert {profile.name for profile in load_all(told.append)} == {"mine", *SHIPPED}
    assert len(told) == 2
    with pytest.raises(ProfileError, match="not valid TOML"):
        load_profile("broken")


def test_a_file_is_called_after_its_profile(user_profiles: Path) -> None:
    """In a directory of profiles name and file agree, or else the file says how to mend it."""
    (user_profiles / "one.toml").write_text('name = "two"\n[[artifact]]\nquantization = "q8_0"', encoding="utf-8")
    with pytest.raises(ProfileError, match="its name and its file differ") as caught:
        load_profile("one")
    assert caught.value.help == "rename the file, or set name to `one`"


def test_a_path_needs_no_directory(tmp_path: Path) -> None:
    """A path ending in .toml is that file, whatever it is called."""
    path = tmp_path / "Some File.toml"
    path.write_text('name = "anything"\n[[artifact]]\nquantization = "q8_0"', encoding="utf-8")
    assert load_profile(str(path)).name == "anything"
    with pytest.raises(ProfileNotFoundError, match="there is no profile file"):
        load_profile(str(tmp_path / "none.toml"))


@pytest.mark.usefixtures("user_profiles")
@pytest.mark.parametrize(
    ("name", "nearest"),
    [("gemma2-27", "`gemma2-27b`"), ("gema2:27b", "`gemma2:27b`"), ("LLAMA3.1-8B", "`llama3.1-8b`")],
)
def test_an_unknown_name_gets_the_nearest(name: str, nearest: str) -> None:
    """A name that nothing answers to is wrong usage, and the nearest names are proposed."""
    with pytest.raises(ProfileNotFoundError) as caught:
        load_profile(name)
    assert caught.value.exit_code == EXIT_USAGE
    assert nearest in (caught.value.help or "")


@pytest.mark.usefixtures("user_profiles")
@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "/",
        "specs/gemma2-27b",
        "a\x00b",
        "x" * 100_000,
        "\ud800",
        "é" * 300,
        "x" * 5000 + ".toml",
        "\x00.toml",
    ],
)
def test_any_name_is_found_or_not_found(name: str) -> None:
    """No name, however odd, ends in anything but a not-found fault; the message stays short."""
    with pytest.raises(ProfileNotFoundError) as caught:
        load_profile(name)
    assert len(caught.value.message) < 300


def test_without_a_users_directory_the_shipped_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's directory need not exist; by default it is XDG's."""
    monkeypatch.delenv("LAUNCHER_PROFILES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_profile("gemma2-27b").source == str(shipped_directory() / "gemma2-27b.toml")
    own = tmp_path / "launcher" / "profiles" / "gemma2-27b.toml"
    own.parent.mkdir(parents=True)
    own.write_text('name = "gemma2-27b"\n[[artifact]]\nquantization = "q8_0"', encoding="utf-8")
    assert load_profile("gemma2-27b").source == str(own)


@pytest.mark.parametrize("value", [None, "", "  ", "/somewhere", "~/there", "relative"])
def test_the_users_directory_is_platformdirs(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory that is found without platformdirs is the one that it gives."""
    monkeypatch.delenv("LAUNCHER_PROFILES", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
    assert user_directory() == user_config_path("launcher") / "profiles"


def test_an_installed_wheel_has_the_profiles(tmp_path: Path) -> None:
    """Laid out as a wheel lays it out (`launcher/_data/profiles`), every shipped profile loads from there."""
    package = Path(sys.modules["launcher"].__file__ or "").parent
    installed = tmp_path / "site" / "launcher"
    shutil.copytree(package, installed, ignore=shutil.ignore_patterns("__pycache__", "_data"))
    shutil.copytree(shipped_directory(), installed / "_data" / "profiles")
    program = (
        "from launcher.profiles import load_profile\n"
        "import sys\n"
        "for name in sys.argv[1:]: print(load_profile(name).source)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *sorted(SHIPPED)],
        env={"PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = [str(installed / "_data" / "profiles" / f"{name}.toml") for name in sorted(SHIPPED)]
    assert run.stdout.splitlines() == expected


def test_resolving_a_name_imports_little() -> None:
    """What only faults and listings need is not imported on the way to a profile: start-up time is a promise."""
    program = (
        "import sys\n"
        "from launcher.profiles import load_profile\n"
        "load_profile('gemma2:27b')\n"
        "print(*sorted({'difflib', 'platformdirs', 'typer', 'psutil'} & sys.modules.keys()))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == ""


@pytest.mark.usefixtures("user_profiles")
def test_smaller_models_are_those_of_the_listing() -> None:
    """Of each size asked for, `load_smaller` gives exactly the listed profiles below it, equal ones, largest first."""
    sizes = {
        profile.name: next(a.spec.n_parameters for a in profile.artifacts if a.spec is not None)
        for profile in all_without_faults()
    }
    by_size = sorted(all_without_faults(), key=lambda profile: (-sizes[profile.name], profile.name))
    for limit in (0, *sizes.values(), 1 << 60):
        assert list(load_smaller(limit)) == [profile for profile in by_size if sizes[profile.name] < limit]


def test_the_users_smaller_models_shadow_the_shipped_ones(write_profile: WriteProfile) -> None:
    """A shipped model whose name a user's file or alias claims is not among the smaller ones; a broken file hides none."""
    write_profile("mine", 'aliases = ["gemma2-9b"]')
    write_profile("gemma3-270m", "nonsense = 1")
    names = [profile.name for profile in load_smaller(1 << 60)]
    assert "gemma2-9b" not in names
    assert "gemma3-270m" in names
