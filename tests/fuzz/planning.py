"""Hostile models and machines before the planner: whatever a reader lets through is planned, refused, or a named fault.

It must not know how inputs are changed.
"""

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from launcher.domain import (
    Artifact,
    ArtifactFile,
    CacheType,
    Calibration,
    Engine,
    Inventory,
    ModelSpec,
    Plan,
    Profile,
    Request,
    Settings,
    WeightsFormat,
)
from launcher.errors import InventoryError, MetadataError, WeightsMissingError
from launcher.inventory.machines import load_machines, parse_machines
from launcher.metadata.gguf import read_gguf
from launcher.metadata.safetensors import read_files
from launcher.planner.advice import plan
from launcher.planner.fit import list_alternatives
from launcher.profiles import name_quantization, profile_for_artifacts
from launcher.render.plan import outcome_json, plans_json, render_outcome, render_plans
from launcher.store import is_possible
from tests.fuzz.records import calibration
from tests.fuzz.target import Target, WrongError, check_figures, check_printable
from tests.fuzz.trees import Tree
from tests.fuzz.weights import (
    encode_gguf,
    encode_safetensors,
    gguf_tree,
    number,
    open_gguf,
    open_safetensors,
    safetensors_tree,
    small_specs,
    to_json,
)

_MACHINES: Final = ("rtx4090", "cpu-16g", "2xrtx3090", "rtx3060-12g", "8xh100", "t4")
_SIGNED: Final = ("headroom_bytes", "unaccounted_bytes", "shortfall_bytes", "score", "seed")
_PART: Final = struct.Struct("<I")
_RANGES: Final = {
    "n_ctx": (1, 2**31 - 1),
    "n_ctx_per_request": (1, 2**31 - 1),
    "n_parallel": (1, 65536),
    "n_batch": (1, 2**31 - 1),
    "n_ubatch": (1, 2**31 - 1),
    "n_gpu_layers": (0, 2**31 - 1),
    "n_cpu_moe": (0, 2**31 - 1),
    "n_threads": (1, 65536),
}
"""What profiles and the command line let through of a user's settings."""


@cache
def machine_tree(name: str) -> Tree:
    """Return a reference machine as a tree, as its file would have it."""
    tree: Tree = json.loads(msgspec.json.encode(load_machines(name)))
    return tree


def _seeds() -> list[Tree]:
    seeds = []
    for n, spec in enumerate(small_specs()):
        machine = machine_tree(_MACHINES[n % len(_MACHINES)])
        asked: Tree = {}
        if n % 3 == 0:
            asked = {"n_gpu_layers": 2, "n_parallel": 2, "n_ubatch": 512, "n_ctx": 4096}
        if n % 3 == 1:
            asked = {"n_ctx_per_request": 2048, "cache_type_k": "q8_0", "flash_attn": True, "n_cpu_moe": 1}
        model = _untyped(gguf_tree(spec)) if spec.format is WeightsFormat.GGUF else safetensors_tree(spec)
        known = json.loads(msgspec.json.encode(calibration())) if n % 3 == 0 else None
        seeds.append(
            {"known": known, "model": model, "asked": asked, "machine": machine, "force": n % 5 == 0, "all": n % 4 == 0}
        )
    return seeds


def _untyped(tree: Tree) -> Tree:
    """Let each value have the type that it needs: what is asked here is not how a header is written."""
    return {**tree, "pairs": [[pair[0], None, pair[-1]] for pair in tree["pairs"]]}


def _encode(tree: Tree) -> bytes:
    """Write the model, the machine and the question one behind the other, the first two as their files are."""
    tree = tree if isinstance(tree, dict) else {}
    model = tree.get("model")
    is_folder = isinstance(model, dict) and "files" in model
    parts = [
        b"folder" if is_folder else b"gguf",
        encode_safetensors(model) if is_folder else encode_gguf(model),
        to_json(tree.get("machine")),
        to_json(
            {
                "asked": tree.get("asked"),
                "known": tree.get("known"),
                "force": bool(tree.get("force")),
                "all": bool(tree.get("all")),
            }
        ),
    ]
    return b"".join(_PART.pack(len(part)) + part for part in parts)


def _parts(data: bytes) -> list[bytes]:
    parts = []
    while len(data) >= _PART.size:
        (size,) = _PART.unpack(data[: _PART.size])
        parts.append(data[_PART.size : _PART.size + size])
        data = data[_PART.size + size :]
    return parts


def _settings(asked: Tree) -> Settings:
    """Return what a user could have asked for: the borders let nothing else through."""
    asked = asked if isinstance(asked, dict) else {}
    kept: dict[str, Any] = {
        name: min(max(number(asked[name]), low), high)
        for name, (low, high) in _RANGES.items()
        if isinstance(asked.get(name), int)
    }
    if "n_ctx" in kept:
        kept.pop("n_ctx_per_request", None)
    for name in ("cache_type_k", "cache_type_v"):
        if asked.get(name) in tuple(CacheType):
            kept[name] = CacheType(asked[name])
    if isinstance(asked.get("flash_attn"), bool):
        kept["flash_attn"] = asked["flash_attn"]
    if asked.get("engine") in tuple(Engine):
        kept["engine"] = Engine(asked["engine"])
    return Settings(**kept)


def _known(told: Tree) -> Calibration | None:
    """Return what was measured here, as its file says; one that cannot be understood is set aside."""
    try:
        known = msgspec.convert(told, Calibration)
    except (
        msgspec.ValidationError,
        UnicodeEncodeError,
    ):  # half a pair of surrogates: no reader of JSON lets it through
        return None
    return known if is_possible(known) else None


def _profile(spec: ModelSpec, size_bytes: int) -> Profile:
    artifact = Artifact(
        format=spec.format,
        quantization=name_quantization(spec),
        files=(ArtifactFile(name="model", size_bytes=size_bytes),),
        local_path=str(Path("/nowhere/model")),
        spec=spec,
    )
    return profile_for_artifacts("model", (artifact,), asked="/nowhere/model")


def _take(data: bytes) -> str:
    kind, model, machine, question = (_parts(data) + [b""] * 4)[:4]
    if kind == b"folder":
        spec, size_bytes = read_files(open_safetensors(model)), len(model)
    else:
        stream, size_bytes = open_gguf(model)
        spec = read_gguf(stream, size_bytes).spec
    machines = parse_machines(machine, source="machine.json", is_json=True)
    try:
        asked = json.loads(question)
    except (ValueError, RecursionError):
        asked = {}
    request = Request(
        profile=_profile(spec, size_bytes), settings=_settings(asked.get("asked")), force=bool(asked.get("force"))
    )
    outcome = plan(request, machines, calibration=_known(asked.get("known")))
    check_printable(render_outcome(outcome), "the plan's text", lines=True)
    check_figures(outcome, "plan", signed=_SIGNED)
    json.loads(outcome_json(outcome))
    if asked.get("all") and isinstance(machines, Inventory):
        plans = list_alternatives(request, machines, None)
        if plans:
            check_printable(render_plans("model", plans), "the plans' text", lines=True)
            json.loads(plans_json(plans))
    if isinstance(outcome, Plan):
        _check_settings(outcome, request.settings)
        return f"planned for {outcome.engine.value}{' by force' if request.force else ''}"
    return f"refused: {outcome.code.value}"


def _check_settings(planned: Plan, settings: Settings) -> None:
    """Fault where a plan has another value than its user fixed."""
    for name in (
        "n_ctx",
        "n_parallel",
        "n_cpu_moe",
        "cache_type_k",
        "cache_type_v",
        "n_ubatch",
        "flash_attn",
        "engine",
    ):
        fixed = getattr(settings, name)
        if fixed is not None and planned.vllm is None and getattr(planned, name) != fixed:
            if name in {"n_ubatch", "n_cpu_moe"} and getattr(planned, name) < fixed:
                continue  # the engine itself lowers a step to the batch, and has only so many blocks with experts
            msg = f"{name} is {getattr(planned, name)} where {fixed} was asked for"
            raise WrongError(msg)


PLANNER: Final = Target(
    name="planner",
    modules=(
        "launcher.planner.architecture",
        "launcher.planner.fit",
        "launcher.planner.sizing",
        "launcher.planner.footprint",
        "launcher.planner.offload",
        "launcher.planner.assemble",
        "launcher.planner.advice",
        "launcher.planner.refusal",
        "launcher.planner.speed",
        "launcher.planner.vllm_fit",
        "launcher.render.plan",
    ),
    seeds=_seeds,
    encode=_encode,
    take=_take,
    refusals=(MetadataError, InventoryError, WeightsMissingError),
    words=(
        *("q8_0", "q4_0", "f32", "llama-server", "llama-cpp-python", "vllm", "f16", "gpu0", "host", "cuda", "rpc"),
        *("n_ctx", "n_parallel", "n_gpu_layers", "n_cpu_moe", "n_batch", "n_ubatch", "flash_attn", "engine"),
        *(
            "general.architecture",
            "llama",
            "gemma2",
            "gemma3n",
            "deepseek2",
            "deepseek4",
            "mamba",
            "falcon-h1",
            "rwkv7",
        ),
        *(
            "llama4",
            "t5",
            "bert",
            "qwen3next",
            "minimax-01",
            "glm-dsa",
            "nemotron_h",
            "kimi-linear",
            "lfm2",
            "nanbeige",
        ),
        *(
            "blk.0.attn_q.weight",
            "blk.1.ffn_up_exps.weight",
            "token_embd.weight",
            "output.weight",
            "blk.0.ssm_conv1d.weight",
        ),
        *("llama.block_count", "llama.expert_count", "llama.attention.head_count", "llama.attention.head_count_kv"),
        *(
            "llama.attention.sliding_window",
            "llama.rope.dimension_sections",
            "llama.context_length",
            "llama.vocab_size",
        ),
        *(512, 513, 1024, 2**16, 2**20),
    ),
    share=1,
    cpu_s=20.0,
    slack_bytes=96 << 20,
)
