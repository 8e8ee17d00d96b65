"""Whatever a model is called and wherever it lies, each file says the same arguments again, and nothing more."""

import re
import shlex
from typing import Any, Final

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ruamel.yaml import YAML

from launcher.domain import Address, Machines, Plan
from launcher.errors import UsageError
from launcher.export import Target, export
from launcher.export.handover import Handover, Surroundings, hand_over
from launcher.export.yaml_text import Block, to_yaml
from tests.fakes.exports import planned, split_exec

_LLAMA: Final = planned("gemma2-27b", "rtx4090")
_VLLM: Final = planned("llama3.1-405b", "8xh100")
_SEVERAL: Final = planned("llama3.1-405b", "2x8xa100-80g")
_AT: Final = Address(port=8080)

_NASTY: Final = (
    "a b",
    "a'b",
    'a"b',
    "$HOME",
    "${X:-y}",
    "$$",
    "%h",
    "%%",
    "a\nb",
    "a\\nb",
    "#x",
    "1e3",
    "0o17",
    "no",
    "-",
    "é",
)
_NASTY_TOO: Final = (
    "`id`",
    "$(id)",
    "a: b",
    "{{.x}}",
    "~",
    "*",
    "!",
    "x;y",
    "a\tb",
    "\x01",
    "\u2028",
    "\x85",
    "\ufeff",
    "a#b ",
)
_TEXT: Final = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=12)
_NAMES: Final = st.one_of(st.sampled_from((*_NASTY, *_NASTY_TOO)), _TEXT)


_SOME: Final = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])


def _named(found: tuple[Plan, Machines], name: str) -> tuple[Plan, Machines]:
    return replace(found[0], model=name), found[1]


def _handed(plan: Plan, machines: Machines, weights: str | None, *, contained: bool = True) -> Handover:
    around = Surroundings(has_own_gpus=True, has_mounts=True, is_container=contained)
    return hand_over(plan, machines, weights=weights, address=_AT, around=around)


def _load(text: str) -> Any:
    """Read YAML by the rules of 1.1 and of 1.2, which must agree: readers follow either."""
    old, new = yaml.safe_load(text), YAML(typ="safe", pure=True).load(text)
    assert old == new
    return old


def _interpolated(text: str) -> str:
    """Read a text as Compose does where no variable is meant."""
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


@_SOME
@given(_NAMES, _NAMES)
def test_compose_says_the_same_arguments(name: str, file: str) -> None:
    """After YAML and Compose's own variables; nothing that a name says becomes a key or a comment's end."""
    plan, machines = _named(_LLAMA, name)
    weights = f"/srv/{name.replace('/', '')}/{file}"
    node = _handed(plan, machines, weights).nodes[0]
    document = _load(export(plan, machines, Target.COMPOSE, weights=weights, address=_AT))
    engine = document["services"]["engine"]
    assert set(document) == {"name", "services", "volumes"}
    assert [_interpolated(word) for word in (*engine["entrypoint"], *engine["command"])] == list(node.argv)
    mount = engine["volumes"][0]
    assert (_interpolated(mount["source"]), mount["read_only"]) == (weights.rpartition("/")[0], True)


@_SOME
@given(_NAMES, _NAMES)
def test_quadlet_says_the_same_arguments(name: str, file: str) -> None:
    """After Podman's words and systemd's specifiers and variables; else it is refused."""
    plan, machines = _named(_LLAMA, name)
    weights = f"/srv/models/{file}"
    node = _handed(plan, machines, weights).nodes[0]
    try:
        text = export(plan, machines, Target.QUADLET, weights=weights, address=_AT)
    except UsageError:
        assert re.search(r"[^\x00-\x7f]", name + file)
        return
    lines = text.split("\n")
    (line,) = [line for line in lines if line.startswith("Exec=")]
    assert split_exec(line.removeprefix("Exec=")) == list(node.argv[1:])
    assert [line for line in lines if line.startswith("[")] == ["[Unit]", "[Container]", "[Service]", "[Install]"]
    keys = {line.partition("=")[0] for line in lines if line and line[0] not in "#["}
    assert {"Image", "Exec"} < keys
    assert all(re.fullmatch("[A-Z][A-Za-z]+", key) for key in keys)


@_SOME
@given(_NAMES, _NAMES)
def test_the_shell_gets_the_same_arguments(name: str, folder: str) -> None:
    """Of SkyPilot's task for one machine, after YAML and the shell's own words."""
    plan, machines = _named(_VLLM, name)
    node = _handed(plan, machines, f"/srv/{folder}", contained=False).nodes[0]
    task = _load(export(plan, machines, Target.SKYPILOT, weights=f"/srv/{folder}", address=_AT))
    run = task["run"].partition("exec env ")[2]
    words = shlex.split(run)
    assert words[len(node.env) :] == list(node.argv)
    assert dict(word.split("=", 1) for word in words[: len(node.env)]) == node.env
    assert task["file_mounts"] == {"/models": f"/srv/{folder}"}


@_SOME
@given(_NAMES)
def test_kuberay_serves_the_model_under_its_name(name: str) -> None:
    """The application inside of the manifest, YAML in YAML, is the one that was made."""
    plan, machines = _named(_SEVERAL, name)
    manifest = _load(export(plan, machines, Target.KUBERAY, address=_AT))
    (application,) = _load(manifest["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["llm_configs"][0]["model_loading_config"]["model_id"] == name
    assert re.fullmatch("[a-z]([a-z0-9-]{0,38}[a-z0-9])?", manifest["metadata"]["name"])


@_SOME
@given(
    st.recursive(
        st.one_of(_NAMES, st.integers(), st.booleans(), st.none()),
        lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner),
    )
)
def test_values_come_back_from_yaml(value: object) -> None:
    """By the rules of 1.1 and of 1.2 alike."""
    assert _load(to_yaml(value)) == value


@_SOME
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_blocks_come_back_from_yaml(text: str) -> None:
    """A text of several lines is the same text, whether it can stand as one or not."""
    assert _load(to_yaml({"run": Block(text)})) == {"run": text}


@_SOME
@given(st.text(min_size=1, max_size=20))
def test_comments_end_where_they_end(name: str) -> None:
    """A name in a comment cannot begin a line of its own."""
    plan, machines = _named(_LLAMA, name)
    try:
        text = export(plan, machines, Target.COMPOSE, address=_AT)
    except UsageError:
        return
    head = text.split("\nname: ")[0].splitlines()
    assert all(line.startswith("# ") for line in head)
