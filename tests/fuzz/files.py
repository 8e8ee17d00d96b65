"""Hostile files of a user: profiles, machines, compact specs, and the state that is kept on disk.

It must not know how inputs are changed.
"""

import datetime as dt
import json
import math
import os
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from launcher.domain import Calibration, Cluster, InstanceRecord, Inventory, Plan, Request
from launcher.errors import InventoryError, NotServedError, ProfileError, StateError
from launcher.inventory.machines import load_machines, parse_machines
from launcher.planner.advice import plan
from launcher.profiles import load_profile
from launcher.profiles.document import count_profile_parameters, read_profile
from launcher.profiles.specs import SpecError, count_parameters, expand, parse_spec
from launcher.render.hardware import render_hardware
from launcher.render.instances import render_instances, render_instances_json, render_status, render_status_json
from launcher.render.profiles import render_profiles, render_profiles_json
from launcher.resources import data_dir
from launcher.store import Instance, find_instance, list_instances, read_calibration
from launcher.supervisor.breakdown import Breakdown
from tests.fuzz.target import Take, Target, WrongError, check_figures, check_printable, each_by
from tests.fuzz.trees import Tree
from tests.fuzz.weights import number, octets, to_json

# --- TOML -------------------------------------------------------------------------------------------------------


def to_toml(tree: Tree) -> bytes:
    """Write a tree as TOML, as far as it can be; what cannot is written as the nearest that can."""
    try:
        text = (
            "".join(f"{_key(key)} = {_toml(value)}\n" for key, value in tree.items()) if isinstance(tree, dict) else ""
        )
    except RecursionError:
        text = "a = " + "[" * 5000
    return text.encode("utf-8", "surrogatepass")


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _toml(value: Tree) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{_key(key)} = {_toml(part)}" for key, part in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case bool():
            return "true" if value else "false"
        case None:
            return "1979-05-27"
        case float() if math.isnan(value):
            return "nan"
        case float() | int():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case dt.date() | dt.time():
            return value.isoformat()
        case _:
            return json.dumps(octets(value).decode("latin-1"))


def patched(tree: Tree, write: Any) -> bytes:
    """Write the document of a tree, then lay its patch over the bytes."""
    document = tree.get("document") if isinstance(tree, dict) else tree
    data: bytes = write(document)
    patch = octets(tree.get("patch", b"")) if isinstance(tree, dict) else b""
    at = abs(number(tree.get("patch_at"))) % (len(data) + 1) if isinstance(tree, dict) else 0
    return data[:at] + patch + data[at:] if patch else data


def document(tree: Tree) -> Tree:
    """Return the tree of a file: what it says, and a patch that says nothing yet."""
    return {"document": tree, "patch": b"", "patch_at": 0}


_KEYS: Final = (
    *("name", "title", "aliases", "engines", "want", "limits", "pin", "serve", "fallback", "model", "artifact"),
    *("context", "parallel", "objective", "min_quantization", "min_context", "min_generation_tps", "quantization"),
    *("n_ctx", "n_ctx_per_request", "n_gpu_layers", "cache_type_k", "flash_attn", "host", "port", "ladder", "step_up"),
    *("spec", "license", "urls", "format", "repository", "files", "local_path", "package", "sha256", "size_bytes"),
    *(
        "gguf",
        "safetensors",
        "q4_k_m",
        "fp8",
        "llama-server",
        "vllm",
        "quality",
        "gemma2-9b.json",
        "../specs/gemma2-9b.json",
    ),
)


_N_ARTIFACTS: Final = 3
"""Of a seed: each is expanded tensor by tensor, which would take most of the time."""


@cache
def _profiles() -> list[Tree]:
    folder = data_dir("profiles")
    read = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.toml"))]
    return [document({**each, "artifact": each["artifact"][:_N_ARTIFACTS]}) for each in read]


@contextmanager
def _open_profiles() -> Iterator[Take]:
    """Give what reads profiles, from a folder that is gone afterwards."""
    specs = data_dir("profiles")
    machine = load_machines("rtx4090")
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        path = Path(folder) / "hostile.toml"

        def take(data: bytes) -> str:
            path.write_bytes(data)
            count_profile_parameters(path)
            profile = read_profile(path, fallback_specs=specs)
            check_printable(render_profiles([profile], ()), "list", lines=True)
            json.loads(render_profiles_json([profile], ()))
            for artifact in profile.artifacts:
                _check_inside(artifact.local_path)
            if len(data) % 16:
                return "accepted"
            outcome = plan(Request(profile=profile), machine)
            return "accepted and planned" if isinstance(outcome, Plan) else "accepted and refused by the planner"

        yield each_by(take)


def memory_folder() -> str | None:
    """Return a folder that is no disk, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a folder of our own in it


def _check_inside(path: str | None) -> None:
    if path is not None and ("\0" in path or not path.isprintable()):
        msg = f"the path {path!r} came through"
        raise WrongError(msg)


PROFILES: Final = Target(
    name="profiles",
    modules=("launcher.profiles.document", "launcher.profiles.checks", "launcher.render.profiles"),
    seeds=_profiles,
    encode=lambda tree: patched(tree, to_toml),
    open=_open_profiles,
    refusals=(ProfileError,),
    words=_KEYS,
    share=1.5,
    cpu_s=5.0,
    slack_bytes=96 << 20,
)


# --- Machines ---------------------------------------------------------------------------------------------------


@cache
def _machine_seeds() -> list[Tree]:
    folder = data_dir("profiles") / "machines"
    paths = [path for path in sorted(folder.glob("*.toml")) if not path.name.startswith(("4x", "8x"))]
    seeds = [document(tomllib.loads(path.read_text(encoding="utf-8"))) for path in paths]
    seeds += [document(json.loads(msgspec.json.encode(load_machines(name)))) for name in ("2xh100", "2x2xh100", "t4")]
    return seeds


def _encode_machine(tree: Tree) -> bytes:
    """Write a machine as JSON where the tree says so by its patch's place, else as TOML."""
    as_json = isinstance(tree, dict) and number(tree.get("patch_at")) % 2 == 1
    return patched(tree, to_json if as_json else to_toml)


def _take_machine(data: bytes) -> str:
    machines = parse_machines(data, source="machine", is_json=data.lstrip().startswith(b"{"))
    check_printable(render_hardware(machines), "hardware", lines=True)
    check_figures(machines, "machine")
    return "accepted: cluster" if isinstance(machines, Cluster) else "accepted: machine"


MACHINES: Final = Target(
    name="machines",
    modules=("launcher.inventory.machines", "launcher.render.hardware"),
    seeds=_machine_seeds,
    encode=_encode_machine,
    take=_take_machine,
    refusals=(InventoryError,),
    words=(
        *(field for noun in (Inventory, Cluster) for field in noun.__struct_fields__),
        "cuda",
        "gpu0",
        "total_bytes",
    ),
    share=9,
)


# --- Compact specs ----------------------------------------------------------------------------------------------


@cache
def _spec_seeds() -> list[Tree]:
    paths = sorted((data_dir("profiles") / "specs").glob("*.json"))
    return [document(_cut(json.loads(path.read_text(encoding="utf-8")))) for path in paths]


def _cut(spec: Tree) -> Tree:
    kept = dict(list(spec["quantizations"].items())[:_N_ARTIFACTS])
    layouts = dict(list(spec.get("safetensors", {}).items())[:1])
    return {**spec, "quantizations": kept, "safetensors": layouts}


def _take_spec(data: bytes) -> str:
    try:
        spec = parse_spec(data)
        wanted = [(kind, name) for kind in _FORMATS for name in (*spec.quantizations, *spec.safetensors)][:6]
        counts = [count_parameters(spec, key) for key in wanted]
        for each in expand(spec, wanted).values():
            check_figures([each.weights_bytes, each.n_parameters], "spec")
    except SpecError as error:
        check_printable(str(error)[:0], "spec")
        return "refused: SpecError"
    check_figures([count for count in counts if count is not None], "parameters")
    return "accepted"


_FORMATS: Final = tuple(load_profile("gemma2-9b").artifacts[0].format.__class__)

SPECS: Final = Target(
    name="specs",
    modules=("launcher.profiles.specs",),
    seeds=_spec_seeds,
    encode=lambda tree: patched(tree, to_json),
    take=_take_spec,
    words=(
        "{i}",
        "0-3",
        "0-4095",
        "0-99999999",
        "F16",
        "Q4_K",
        "F32*3 F16*2",
        "blocks",
        "type",
        "shape",
        "name",
        2**47,
        2**48,
    ),
    share=5,
)


# --- State ------------------------------------------------------------------------------------------------------


@cache
def _state_seeds() -> list[Tree]:
    """Return records as they are written: of instances with a plan, of guards, and of what was measured."""
    from tests.fuzz.records import records  # noqa: PLC0415 - it plans

    return [{"kind": kind, **document(json.loads(data))} for kind, data in records()]


_KINDS: Final = ("instance", "guard", "calibration", "told")
_TOKEN: Final = "0123456789abcdef" * 2


@contextmanager
def _open_state() -> Iterator[Take]:
    """Give what reads state, from a state directory of its own."""
    before = os.environ.get("LAUNCHER_STATE_DIR")
    with tempfile.TemporaryDirectory(dir=memory_folder()) as root:
        os.environ["LAUNCHER_STATE_DIR"] = root
        folder = Path(root) / "instances" / "tiny"
        for each in (folder, Path(root) / "calibrations"):
            each.mkdir(parents=True, mode=0o700)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        instance = Instance("tiny", folder, directory)
        try:
            yield each_by(lambda data: _take_state(Path(root), instance, data))
        finally:
            os.close(directory)
            if before is None:
                os.environ.pop("LAUNCHER_STATE_DIR", None)
            else:
                os.environ["LAUNCHER_STATE_DIR"] = before


def _take_state(root: Path, instance: Instance, data: bytes) -> str:
    kind, data = _KINDS[data[0] % len(_KINDS)] if data else "instance", data[1:]
    match kind:
        case "instance":
            (instance.path / "instance.json").write_bytes(data)
            views = list_instances()
            check_printable(render_instances(views, now=1e9), "ps", lines=True)
            json.loads(render_instances_json(views))
            view = find_instance("tiny")
            check_printable(render_status(view, now=1e9), "status", lines=True)
            json.loads(render_status_json(view))
            read = instance.read()
            return "instance: read" if read is not None else "instance: set aside"
        case "guard":
            path = instance.guard_path(_TOKEN)
            path.write_bytes(data)
            (guard,) = instance.read_guards()
            path.unlink(missing_ok=True)
            return "guard: read" if guard.engine is not None else "guard: its token alone is known"
        case "calibration":
            (root / "calibrations" / "here.json").write_bytes(data)
            found, warning = read_calibration("here")
            if warning:
                check_printable(warning, "warning")
            return "calibration: set aside" if found is None else "calibration: read"
        case _:
            try:
                told = msgspec.json.decode(data, type=Breakdown)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return "told: set aside"
            return f"told: {'complete' if told.complete else 'read'}"


def _encode_state(tree: Tree) -> bytes:
    kind = tree.get("kind") if isinstance(tree, dict) else None
    return bytes([_KINDS.index(kind) if kind in _KINDS else number(kind) % 256]) + patched(tree, to_json)


STATE: Final = Target(
    name="state",
    modules=("launcher.store", "launcher.render.instances"),
    seeds=_state_seeds,
    encode=_encode_state,
    open=_open_state,
    refusals=(StateError, NotServedError),
    words=(
        *InstanceRecord.__struct_fields__,
        *Calibration.__struct_fields__,
        "ready",
        "failed",
        1,
        2,
        3,
        2**31,
        "here",
    ),
    share=9,
    cpu_s=5.0,
)
