"""A plan or a refusal as the lines that a person reads, and as JSON. Pure."""

import shlex
from typing import Any, Final

import msgspec

from launcher.domain import SCHEMA_VERSION, Budget, Outcome, Plan, Refusal
from launcher.units import GIB

_BAR_WIDTH: Final = 40


def outcome_json(outcome: Outcome) -> str:
    """Return the versioned JSON of an outcome: ``{"schema_version", "plan": {...}}`` or ``"refusal": {...}``."""
    body: dict[str, Any] = msgspec.to_builtins(outcome)
    kind = body.pop("outcome")
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION, kind: body}, order="deterministic").decode() + "\n"


def outcome_schema() -> str:
    """Return the JSON Schema of ``outcome_json``'s documents, as it is kept in ``docs/plan.schema.json``."""
    (plan, refusal), components = msgspec.json.schema_components((Plan, Refusal), ref_template="#/$defs/{name}")
    for definition in components.values():
        definition.get("properties", {}).pop("outcome", None)
        if "outcome" in definition.get("required", ()):
            definition["required"].remove("outcome")
    version = {"const": SCHEMA_VERSION}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "launch plan --json",
        "oneOf": [
            {"type": "object", "required": ["schema_version", key], "properties": {"schema_version": version, key: ref}}
            for key, ref in (("plan", plan), ("refusal", refusal))
        ],
        "$defs": components,
    }
    return msgspec.json.format(msgspec.json.encode(schema, order="deterministic"), indent=2).decode() + "\n"


def render_outcome(outcome: Outcome) -> str:
    """Return the whole text of a plan or a refusal, newline at its end."""
    match outcome:
        case Plan():
            return render_plan(outcome)
        case Refusal():
            return render_refusal(outcome)


def describe_placement(plan: Plan) -> str:
    """Say in a few words where the layers run."""
    if not plan.footprint.devices:
        return "on the CPU"
    n_all = plan.n_layer + 1
    if plan.n_gpu_layers >= n_all:
        names = _device_names(plan)
        if plan.n_cpu_moe:
            return f"all {n_all} layers on {names}, the experts of {plan.n_cpu_moe} on the CPU"
        return f"all {n_all} layers on {names}"
    return f"{plan.n_gpu_layers} of {n_all} layers on the GPU, the rest on the CPU"


def _device_names(plan: Plan) -> str:
    names = [use.name for use in plan.footprint.devices]
    return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}"  # noqa: PLR2004 - a short list


def render_plan(plan: Plan) -> str:
    """Return what was chosen, what it takes of each memory, how fast it should be, and what was given up."""
    lines = [
        f"`{plan.model}` at {plan.quantization} with {plan.engine}: {describe_placement(plan)}",
        (
            f"  context   {plan.n_ctx_per_request} tokens per request x {plan.n_parallel} parallel "
            f"= --ctx-size {plan.n_ctx}; kv cache {plan.cache_type_k}/{plan.cache_type_v}, "
            f"flash attention {'on' if plan.flash_attn else 'off'}"
        ),
        f"  batch     {plan.n_batch}, in steps of {plan.n_ubatch}; {plan.n_threads} threads",
    ]
    if plan.speed is not None:
        tps = _written(plan.speed.generation_tps)
        lines.append(f"  speed     about {tps} tokens/s for one request ({plan.speed.basis})")
    lines += ["", *_memory_table(plan)]
    if plan.given_up:
        lines += ["", *(f"  given up: {fact}" for fact in plan.given_up)]
    if plan.verdicts:
        lines += ["", *(f"  also: {verdict.text}" for verdict in plan.verdicts)]
    if plan.notes:
        lines += ["", *(f"  note: {fact}" for fact in plan.notes)]
    return "\n".join(lines) + "\n"


def _memory_table(plan: Plan) -> list[str]:
    rows = [f"  {'GiB':<6}{'weights':>9}{'kv cache':>10}{'compute':>9}{'other':>8}{'margin':>8}{'of free':>9}"]
    host = plan.footprint.host
    uses = [(use.weights_bytes, use.kv_cache_bytes, use.compute_bytes, 0) for use in plan.footprint.devices]
    extras = host.prompt_cache_bytes + host.checkpoints_bytes
    uses.append((host.weights_bytes, host.kv_cache_bytes, host.compute_bytes, extras))
    for budget, parts in zip(plan.budgets, uses, strict=True):
        kept = budget.margin_bytes + budget.residual_bytes
        cells = [f"{n_bytes / GIB:.1f}" for n_bytes in (*parts, kept, budget.free_bytes)]
        widths = (9, 10, 9, 8, 8, 9)
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        rows.append(f"  {budget.name:<6}{row}  {_bar(parts, budget)}")
    rows.append("        w weights, k kv cache, c compute, o prompt cache and checkpoints, m margin, . free")
    return rows


def _bar(parts: tuple[int, int, int, int], budget: Budget) -> str:
    """Draw a memory's free bytes as a bar: a letter per part, margin at the right end."""
    free = max(1, budget.free_bytes)
    letters, drawn, used = "", 0, 0
    for letter, n_bytes in zip("wkco", parts, strict=True):
        used += n_bytes
        upto = min(_BAR_WIDTH, round(used / free * _BAR_WIDTH))
        letters += letter * (upto - drawn)
        drawn = max(drawn, upto)
    margin = min(_BAR_WIDTH - drawn, round((budget.margin_bytes + budget.residual_bytes) / free * _BAR_WIDTH))
    return "[" + letters + "." * (_BAR_WIDTH - drawn - margin) + "m" * margin + "]"


def plans_json(plans: tuple[Plan, ...]) -> str:
    """Return the versioned JSON of alternatives: ``{"schema_version", "plans": [{...}]}``, best quality first."""
    bodies: list[dict[str, Any]] = [msgspec.to_builtins(plan) for plan in plans]
    for body in bodies:
        del body["outcome"]
    document = {"schema_version": SCHEMA_VERSION, "plans": bodies}
    return msgspec.json.encode(document, order="deterministic").decode() + "\n"


def render_plans(model: str, plans: tuple[Plan, ...]) -> str:
    """Return a table of alternatives, best quality first: each is slower than the next one."""
    if not plans:
        return f"no form of `{model}` fits here; `launch plan {model}` says why\n"
    rows = [f"`{model}`: each line is better than the next and slower"]
    rows.append(f"  {'quant':<10}{'cache':<12}{'placement':<44}{'tokens/s':>9}{'GPU GiB':>9}{'host GiB':>10}")
    for plan in plans:
        on_devices = sum(use.total_bytes for use in plan.footprint.devices) / GIB
        tps = _written(plan.speed.generation_tps) if plan.speed else "?"
        cache = f"{plan.cache_type_k}/{plan.cache_type_v}"
        host = plan.footprint.host.engine_bytes / GIB
        rows.append(
            f"  {plan.quantization:<10}{cache:<12}{describe_placement(plan):<44}{tps:>9}{on_devices:>9.1f}{host:>10.1f}"
        )
    return "\n".join(rows) + "\n"


def _written(tps: float) -> str:
    return f"{tps:.0f}" if tps >= 10 else f"{tps:.1f}"  # noqa: PLR2004


def render_refusal(refusal: Refusal) -> str:
    """Return the facts first and each piece of advice last, as a ``help:`` line with its command."""
    lines = [f"error[{refusal.code}]: {refusal.fact}"]
    lines += [f"  {line}" for line in refusal.derivation]
    lines += [f"  but {verdict.text}" for verdict in refusal.verdicts]
    for advice in refusal.advice:
        lines += [f"help: {advice.text}", f"    {shlex.join(advice.argv)}"]
    if not refusal.advice:
        lines.append("help: `launch list` shows the models known, `launch hardware` what this machine has")
    return "\n".join(lines) + "\n"
