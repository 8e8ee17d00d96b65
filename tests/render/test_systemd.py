"""Units of systemd, read by systemd itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.domain import (
    HOST_MEMORY,
    SCHEMA_VERSION,
    Address,
    Budget,
    DeviceKind,
    Footprint,
    HostUse,
    MemoryUse,
    Plan,
    Request,
)
from launcher.errors import UsageError
from launcher.inventory import load_inventory
from launcher.planner.fit import decide
from launcher.profiles import load_profile
from launcher.render.systemd import (
    TEMPLATE_NAME,
    Scope,
    Surroundings,
    Units,
    is_unchanged,
    mark,
    memory_limits,
    next_commands,
    render_json,
    render_units,
    unit_name,
)
from launcher.resources import data_dir
from launcher.units import GIB, MIB
from tests.fakes.plans import plan_for
from tests.fakes.systemd_reader import ANALYZE, PROGRAM, place, read_unit, verify, words_of

needs_systemd = pytest.mark.skipif(PROGRAM is None, reason="needs systemd's program")
needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
MAX_EXPOSURE = 2.5
_NASTY = (
    "plain",
    "a b",
    "100%",
    "%i",
    "$HOME",
    "${HOME}",
    ";",
    'quo"te',
    "apo'strophe",
    "back\\slash",
    "\\x41",
    "é漢",
    "tab\there",
    "line\nbreak",
    "\x01\x7f",
    "#comment",
    "-dash",
    "@at",
    "",
    "*",
    " ",
    "end\\",
)


_HARD = "\\\"'$%{};#: \t\n@-+!|<>i\x7f"


def _plan(**changes: Any) -> Plan:
    budget = Budget(
        name=HOST_MEMORY, total_bytes=32 * GIB, free_bytes=30 * GIB, margin_bytes=GIB, residual_bytes=256 * MIB
    )
    return replace(plan_for(), budgets=(budget,), **changes)


def _units(
    around: Surroundings | None = None,
    plan: Plan | None = None,
    *,
    scope: Scope = Scope.SYSTEM,
    kinds: frozenset[DeviceKind] = frozenset(),
) -> Units:
    folder = data_dir("systemd") / ("user" if scope is Scope.USER else "")
    around = around or Surroundings(program=(sys.executable,), words=("fake",))
    return render_units(
        (folder / TEMPLATE_NAME).read_text(), "fake", (plan or _plan(),), around, scope=scope, kinds=kinds
    )


def _files(units: Units) -> dict[str, str]:
    return {file.name: file.text for file in units.files}


_FULL = Surroundings(
    program=(sys.executable, "-m", "launcher"),
    words=("/srv/a b/100%.gguf", "--port", "80"),
    environment=(("PATH", "/opt/my engine:/usr/bin"), ("LAUNCHER_LLAMA_SERVER", "/opt/100%/llama-server")),
    key_file="/etc/launcher/my-keys;%",
    token_file="/etc/launcher/token",  # noqa: S106 - a path
    bound_paths=("/home/u/a:b", "/tmp/w %i"),  # noqa: S108 - named, not used
    groups=("nogroup",),
    gpu_groups=("video", "render"),
)


@needs_analyze
@pytest.mark.parametrize("name", [unit_name("fake"), TEMPLATE_NAME])
@pytest.mark.parametrize("around", [None, _FULL], ids=["plain", "full"])
@pytest.mark.parametrize("scope", Scope)
def test_systemd_analyze_has_nothing_to_say(
    tmp_path: Path, scope: Scope, around: Surroundings | None, name: str
) -> None:
    """A unit with all that may be in it is read without a word; the exit code alone would say nothing."""
    units = _units(around, scope=scope, kinds=frozenset(DeviceKind))
    place(_files(units), tmp_path)
    assert verify(tmp_path, name, user=scope is Scope.USER) == ""


@needs_analyze
def test_the_check_would_find_a_mistake(tmp_path: Path) -> None:
    """A key that systemd does not know makes the check above speak."""
    files = _files(_units())
    place({**files, "launch@fake.service.d/90-x.conf": "[Service]\nRestartSpets=3\n"}, tmp_path)
    assert "RestartSpets" in verify(tmp_path, unit_name("fake"))


@needs_analyze
@pytest.mark.parametrize("kinds", [frozenset(), frozenset({DeviceKind.CUDA}), frozenset(DeviceKind)])
def test_the_system_unit_is_exposed_little(tmp_path: Path, kinds: frozenset[DeviceKind]) -> None:
    """By systemd's own score, also with a GPU, keys and a port below 1024."""
    place(_files(_units(_FULL, _plan(address=Address(port=80)), kinds=kinds)), tmp_path)
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--threshold=25", "--no-pager", str(tmp_path / unit_name("fake"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = done.stdout.splitlines()[-1]
    assert "Overall exposure level" in last, done.stdout + done.stderr
    assert float(last.split(": ")[1].split()[0]) <= MAX_EXPOSURE, last
    assert done.returncode == 0


@needs_systemd
def test_systemd_reads_every_word_as_it_was_meant() -> None:
    """Blanks, quotes, per cent and dollar signs, control characters: the program gets what the user typed."""
    program = "/opt/a b/$x/100%/launch"
    units = _units(Surroundings(program=(program,), words=_NASTY))
    found = read_unit(_files(units), units.unit)
    assert words_of(found["Command Line"][0]) == [program, "serve", *_NASTY]


_NO_CHARACTERS = [
    "\0",
    *map(chr, range(0xFDD0, 0xFDF0)),
    *(chr(n << 16 | 0xFFFE | m) for n in range(17) for m in (0, 1)),
]


@pytest.mark.slow
@needs_systemd
@given(st.lists(st.text(st.sampled_from(_HARD) | st.characters(exclude_categories=["Cs"], exclude_characters=_NO_CHARACTERS), max_size=12), min_size=50, max_size=80))  # fmt: skip
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_systemd_reads_any_words_as_they_were_meant(words: list[str]) -> None:
    """Drawn from what quoting is about; some fifty in each unit, for each is read by the real program."""
    units = _units(Surroundings(program=("/opt/l",), words=tuple(words)))
    found = read_unit(_files(units), units.unit)
    assert words_of(found["Command Line"][0]) == ["/opt/l", "serve", *words]


@needs_systemd
def test_systemd_reads_paths_and_variables_as_they_were_meant() -> None:
    """Each setting has rules of its own: colons divide bound paths, and only some read escapes."""
    words = [word for word in _NASTY if word.strip() and not {'"', "'"} & set(word)]
    paths = tuple(f"/home/{word}" for word in words if not any(ord(char) < ord(" ") for char in word))
    environment = tuple((f"V{idx}", word) for idx, word in enumerate(_NASTY) if word.isprintable())
    units = _units(Surroundings(program=("/bin/x",), words=("fake",), bound_paths=paths, environment=environment))
    found = read_unit(_files(units), units.unit)
    assert found["BindReadOnlyPaths"] == [f"{path}:{path}:rbind" for path in paths]
    assert set(found["Environment"]) >= {f"{name}={value}" for name, value in environment}


@needs_systemd
def test_an_instance_with_no_options_is_what_the_template_says() -> None:
    """Then the drop-in has no command of its own, and the instance's name is the profile's."""
    units = _units()
    assert "ExecStart" not in _files(units)["launch@fake.service.d/50-launcher.conf"]
    found = read_unit(_files(units), units.unit)
    assert words_of(found["Command Line"][0]) == [sys.executable, "serve", "fake"]


@needs_systemd
def test_a_program_that_is_bound_stays_the_instances_own() -> None:
    """Another launcher that installs another instance replaces the template, and its program is not bound for this one."""
    old, new = (
        _files(
            _units(Surroundings(program=(f"/home/{name}/bin/launch",), words=("fake",), bound_paths=(f"/home/{name}",)))
        )
        for name in ("old", "new")
    )
    found = read_unit({**old, "launch@.service": new["launch@.service"]}, "launch@fake.service")
    assert words_of(found["Command Line"][0]) == ["/home/old/bin/launch", "serve", "fake"]
    assert found["BindReadOnlyPaths"] == ["/home/old:/home/old:rbind"]
    assert found["Type"] == ["notify"]
    assert found["NotifyAccess"] == ["main"]
    assert found["MemoryMax"] != found["MemoryHigh"]


@pytest.mark.parametrize("field", ["key_file", "bound_paths"])
@pytest.mark.parametrize("path", ["/a\nb", "/a\udcff", "/a\ufdd0", "/a\U0001ffff"])
def test_a_path_that_no_unit_can_hold_is_refused(field: str, path: str) -> None:
    """Better no unit than one that means another file."""
    around = replace(
        Surroundings(program=("/x",), words=("fake",)), **{field: path if field == "key_file" else (path,)}
    )
    with pytest.raises(UsageError):
        _units(around)


@pytest.mark.parametrize("field", ["key_file", "token_file"])
@pytest.mark.parametrize("path", ["/my keys", "/keys ", "/keys\\"])
def test_a_credential_that_some_systemd_cannot_read_is_refused(field: str, path: str) -> None:
    """A space is lost between systemd 255 and its executor: the service would not start."""
    with pytest.raises(UsageError, match="cannot read this path"):
        _units(replace(Surroundings(program=("/x",), words=("fake",)), **{field: path}))


@pytest.mark.parametrize("path", ["/it's", '/a"b'])
def test_a_bound_path_that_some_systemd_cannot_read_is_refused(path: str) -> None:
    """Quotes are lost between systemd 255 and its executor: another file would be looked for."""
    with pytest.raises(UsageError, match="cannot read this path"):
        _units(Surroundings(program=("/x",), words=("fake",), bound_paths=(path,)))


def test_gpus_are_opened_only_where_the_plan_uses_one() -> None:
    """The template closes all devices; a drop-in of its own opens those that are needed, for a system unit."""
    gpu = "launch@fake.service.d/60-gpu.conf"
    assert gpu not in _files(_units())
    assert gpu not in _files(_units(scope=Scope.USER, kinds=frozenset({DeviceKind.CUDA})))
    nvidia = _files(_units(_FULL, kinds=frozenset({DeviceKind.CUDA})))[gpu]
    assert "DeviceAllow=char-nvidia* rw" in nvidia
    assert "kfd" not in nvidia
    assert "SupplementaryGroups=video render" in nvidia
    amd = _files(_units(kinds=frozenset({DeviceKind.ROCM})))[gpu]
    assert "DeviceAllow=char-kfd rw\nDeviceAllow=char-drm rw" in amd
    assert "nvidia" not in amd


def test_a_user_unit_has_nothing_that_only_root_can_give() -> None:
    """No user of its own, no namespaces, no credentials, no port below 1024."""
    text = "".join(_files(_units(_FULL, _plan(address=Address(port=80)), scope=Scope.USER)).values())
    for word in ("DynamicUser", "User=", "Protect", "Private", "LoadCredential", "Capabilit", "Bind", "Supplementary"):
        assert word not in text.replace("launch systemd", ""), word


def test_a_file_is_known_again_until_a_person_changes_it() -> None:
    """Any change below the first line, or to it, makes it a person's."""
    text = mark("[Service]\nA=b\n")
    assert is_unchanged(text)
    assert not is_unchanged(text + "C=d\n")
    assert not is_unchanged(text.replace("A=b", "A=c"))
    assert not is_unchanged(text.partition("\n")[2])
    assert not is_unchanged("")


@pytest.mark.parametrize("model", ["gemma2-27b", "llama3.1-8b", "gemma3-270m", "llama3.1-70b"])
def test_under_the_units_limit_the_launcher_plans_the_same(model: str) -> None:
    """The service sees a machine as large as its limit, with what the launcher has by then in use: it must not step down."""
    machine = load_inventory("rtx4090")
    request = Request(profile=load_profile(model))
    plan = decide(request, machine)
    assert isinstance(plan, Plan)
    need_bytes, high_bytes, max_bytes = memory_limits(plan)
    assert plan.footprint.host.total_bytes == need_bytes < high_bytes < max_bytes
    host = replace(machine.host, cgroup_limit_bytes=high_bytes, cgroup_used_bytes=200 * MIB)
    inside = decide(request, replace(machine, host=host))
    assert isinstance(inside, Plan)
    assert inside.footprint.devices == plan.footprint.devices
    assert inside.footprint.host.engine_bytes == plan.footprint.host.engine_bytes
    assert (inside.quantization, inside.n_ctx, inside.n_parallel) == (plan.quantization, plan.n_ctx, plan.n_parallel)
    # A prompt cache gets a quarter of what nothing else needs, which is less below a limit that counts in no more.
    assert 0 < inside.footprint.host.prompt_cache_bytes <= plan.footprint.host.prompt_cache_bytes


def test_the_limits_are_of_the_plan_that_takes_most() -> None:
    """What the next start may plan on an emptier machine must fit, too."""
    small, large = (_plan(footprint=Footprint(devices=(), host=HostUse(weights_bytes=n * GIB))) for n in (1, 9))
    folder = data_dir("systemd")
    around = Surroundings(program=("/x",), words=("fake",))
    text = (folder / TEMPLATE_NAME).read_text()
    for plans in ((small, large), (large, small)):
        units = render_units(text, "fake", plans, around, scope=Scope.SYSTEM, kinds=frozenset())
        assert f"MemoryMax={memory_limits(large)[2] // MIB}M" in units.files[1].text


def test_a_gpu_that_may_be_part_of_the_processor_counts_as_host_memory() -> None:
    """What a driver takes for it there is charged to the service; a card's own memory is not."""
    use = MemoryUse(name="gpu0", weights_bytes=5 * GIB)
    plan = _plan(footprint=Footprint(devices=(use,), host=HostUse(weights_bytes=GIB)))
    name = "launch@fake.service.d/50-launcher.conf"
    for kind, is_shared in ((DeviceKind.CUDA, False), (DeviceKind.ROCM, False), (DeviceKind.VULKAN, True)):
        text = _files(_units(plan=plan, kinds=frozenset({kind})))[name]
        assert f"MemoryMax={memory_limits(plan, is_shared=is_shared)[2] // MIB}M" in text
    assert memory_limits(plan, is_shared=True)[0] == 6 * GIB


def test_json_says_what_text_says() -> None:
    """Files by name and text, where they go, and what to type next."""
    units = _units()
    value = msgspec.json.decode(render_json(units, "/etc/systemd/system"))
    assert value["unit"] == "launch@fake.service"
    assert value["folder"] == "/etc/systemd/system"
    assert {file["name"]: file["text"] for file in value["files"]} == _files(units)
    assert tuple(value["next"]) == next_commands(units)
    assert value["schema_version"] == SCHEMA_VERSION
