"""A plan or a refusal as the lines that a person reads, and as JSON. Pure."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from launcher.domain import (
    SCHEMA_VERSION,
    Budget,
    Condition,
    Engine,
    Outcome,
    Plan,
    Refusal,
    RefusalCode,
    Speed,
    Verdict,
)
from launcher.render.text import wrapped
from launcher.units import GIB

_BAR_WIDTH: Final = 74
_INDENT: Final = " " * 12
_LABEL_WIDTH: Final = 6
"""Columns that the figures of a memory leave to its name; a longer one stands above them."""


def outcome_json(outcome: Outcome) -> str:
    """Return the versioned JSON of an outcome: ``{"schema_version", "plan": {...}}`` or ``"refusal": {...}``."""
    body: dict[str, Any] = msgspec.to_builtins(outcome)
    kind = body.pop("outcome")
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION, kind: body}, order="deterministic").decode() + "\n"


def outcome_schema() -> str:
    """Return the JSON Schema of ``outcome_json``'s documents, as it is kept in ``docs/plan.schema.json``."""
    (plan, refusal), components = msgspec.json.schema_components((Plan, Refusal), ref_template="#/$defs/{name}")
    kinds = {"plan": plan, "refusal": refusal, "plans": {"type": "array", "items": plan}}
    return schema_of("launch plan --json", kinds, components)


def schema_of(title: str, kinds: Mapping[str, Any], components: dict[str, Any]) -> str:
    """Return the JSON Schema of documents that hold one of several ``kinds`` of value under its name, beside the version.

    What tells a plan from a refusal within the program is left out, as in the documents: there the name tells it.
    """
    for definition in components.values():
        definition.get("properties", {}).pop("outcome", None)
        if "outcome" in definition.get("required", ()):
            definition["required"].remove("outcome")
    version = {"const": SCHEMA_VERSION}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "oneOf": [
            {"type": "object", "required": ["schema_version", key], "properties": {"schema_version": version, key: ref}}
            for key, ref in kinds.items()
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
    machines = list(dict.fromkeys(use.host for use in plan.footprint.devices))
    if machines[0] is not None:
        where = ", ".join(str(name) for name in machines) if len(machines) < 4 else f"{len(machines)} machines"  # noqa: PLR2004
        n = len(plan.footprint.devices)
        return f"{n} {'GPU' if n == 1 else 'GPUs'} of {where}"
    names = [use.name for use in plan.footprint.devices]
    return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}"  # noqa: PLR2004 - a short list


def render_plan(plan: Plan) -> str:
    """Return what was chosen, what it takes of each memory, how fast it should be, and what was given up."""
    lines = [*render_choice(plan), "", *_memory(plan)]
    blocks = (
        [line for fact in plan.given_up for line in wrapped(fact, first="  given up  ", rest=_INDENT)],
        [line for verdict in plan.verdicts for line in _verdict(verdict)],
        [line for note in plan.notes for line in wrapped(note, first="  note      ", rest=_INDENT)],
        _bases(plan),
    )
    for block in blocks:
        lines += ["", *block] if block else []
    return "\n".join(lines) + "\n"


def render_choice(plan: Plan) -> list[str]:
    """Return the lines that say what is served, where and with which settings, and how fast that should be."""
    lines = [f"`{plan.model}` at {plan.quantization} with {plan.engine}: {describe_placement(plan)}"]
    lines += [line for name, fact in _settings(plan) for line in wrapped(fact, first=f"  {name:<9} ", rest=_INDENT)]
    return lines


def _settings(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.install is not None:
        yield "engine", f"{' '.join(plan.install.argv)} {plan.install.version or '(version unknown)'}"
    if plan.artifact.store is not None:
        yield "weights", f"from {plan.artifact.store}, used in place"
    yield from _vllm_settings(plan) if plan.engine is Engine.VLLM else _llama_settings(plan)
    if plan.speed is not None:
        yield "speed", f"about {_written(plan.speed.generation_tps)} tokens/s for one request ({plan.speed.basis})"
        yield "prompts", _prompts(plan, plan.speed)


def _llama_settings(plan: Plan) -> Iterator[tuple[str, str]]:
    per_request = f"{plan.n_ctx_per_request} tokens per request x {plan.n_parallel} parallel"
    yield "context", f"{per_request} = --ctx-size {plan.n_ctx}"
    flash = "on" if plan.flash_attn else "off"
    yield "kv cache", f"{plan.cache_type_k}/{plan.cache_type_v}, flash attention {flash}"
    threads = f"{plan.n_threads} threads"
    if plan.n_threads_batch != plan.n_threads:
        threads += f", {plan.n_threads_batch} for prompts"
    yield "batch", f"{plan.n_batch}, in steps of {plan.n_ubatch}; {threads}"
    if plan.tensor_split:
        shares = zip(plan.footprint.devices, plan.tensor_split, strict=True)
        yield "split", ", ".join(f"{use.name} {share:g}" for use, share in shares) + " layers"


def _vllm_settings(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield what vLLM is told, by its own options' names."""
    yield "context", f"{plan.n_ctx_per_request} tokens per request: --max-model-len {plan.n_ctx_per_request}"
    yield "parallel", f"--max-num-seqs {plan.n_parallel}, --max-num-batched-tokens {plan.n_batch}"
    eager = "" if plan.cuda_graphs else ", --enforce-eager"
    kv_bytes = plan.vllm.kv_cache_memory_bytes if plan.vllm is not None else None
    share = f"--gpu-memory-utilization {plan.memory_utilization or 0:g}"
    size = share if kv_bytes is None else f"--kv-cache-memory-bytes {kv_bytes}"
    yield "memory", f"{size}, --kv-cache-dtype {plan.kv_cache_dtype}{eager}"
    if len(plan.footprint.devices) > 1:
        sizes = f"--tensor-parallel-size {plan.tensor_parallel}, --pipeline-parallel-size {plan.pipeline_parallel}"
        yield "split", sizes
    if plan.footprint.host.host is not None:
        yield "replicas", "1: no room for a second copy" if plan.replicas == 1 else _replicas(plan)


def _prompts(plan: Plan, speed: Speed) -> str:
    if speed.prompt_tps is None:
        return "unknown: nobody measured the arithmetic of a memory that takes part"
    known = {basis.figure: basis.provenance for basis in plan.basis}
    basis = known.get("prompts", speed.basis)
    return f"about {_written(speed.prompt_tps)} tokens/s are read ({basis})"


def _verdict(verdict: Verdict) -> list[str]:
    head = "now" if verdict.condition is Condition.NOW else "else"
    return wrapped(verdict.text, first=f"  {head:<9} ", rest=_INDENT)


def _bases(plan: Plan) -> list[str]:
    """Return which figure is measured, read, published, derived or assumed."""
    return [
        line
        for basis in plan.basis
        for line in wrapped(f"{basis.provenance}: {basis.text}", first=f"  {basis.figure:<18} ", rest=" " * 21)
    ]


def _replicas(plan: Plan) -> str:
    return f"{plan.replicas} whole copies find room, each as fast; the first is shown"


_COLUMNS: Final = (
    ("weights", "w"),
    ("kv cache", "k"),
    ("compute", "c"),
    ("other", "o"),
    ("margin", "m"),
    ("free", "."),
    ("taken", "x"),
)
"""The parts of a memory, which add up to its total, and the letter of each in the bar."""


def _memory(plan: Plan) -> list[str]:
    """Return a row of figures and a bar for each memory; they fit 80 columns and need no colour.

    Neighbours of which all that is shown is equal share a row: sixteen equal GPUs are no sixteen bars.
    """
    heads = "".join(f"{name:>9}" for name, _ in _COLUMNS)
    lines = [f"  {'GiB':<{_LABEL_WIDTH}}{heads}{'total':>8}"]
    for names, figures, bar in _merged(_rows(plan)):
        label = _span(names)
        if len(label) > _LABEL_WIDTH:
            lines.append(f"  {label}")
            label = ""
        lines += [f"  {label:<{_LABEL_WIDTH}}{figures}", f"  [{bar}]"]
    lines.append("  w weights, k kv cache, c compute, o prompt cache and checkpoints, m margin,")
    lines.append("  . free, x taken by others")
    return lines


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Yield each memory's name, its figures and its bar: of each machine its devices, then its host."""
    uses: list[tuple[int, int, int, int]] = [
        (use.weights_bytes, use.kv_cache_bytes, use.compute_bytes, 0) for use in plan.footprint.devices
    ]
    for host in plan.footprint.hosts:
        extras = host.prompt_cache_bytes + host.checkpoints_bytes
        uses.append((host.weights_bytes, host.kv_cache_bytes, host.compute_bytes, extras))
    order = {host.host: idx for idx, host in enumerate(plan.footprint.hosts)}
    pairs = sorted(zip(plan.budgets, uses, strict=True), key=lambda pair: order[pair[0].host])
    for budget, use in pairs:
        parts = _parts(use, budget)
        cells = "".join(f"{n_bytes / GIB:>9.1f}" for n_bytes in parts)
        yield budget.name, f"{cells}{budget.total_bytes / GIB:>8.1f}", _bar(parts)


def _merged(rows: Iterator[tuple[str, str, str]]) -> list[tuple[list[str], str, str]]:
    """Join neighbours of one machine that differ in nothing but their names."""
    merged: list[tuple[list[str], str, str]] = []
    for name, figures, bar in rows:
        if merged and merged[-1][1:] == (figures, bar) and _machine(merged[-1][0][0]) == _machine(name):
            merged[-1][0].append(name)
        else:
            merged.append(([name], figures, bar))
    return merged


def _span(names: Sequence[str]) -> str:
    """Write the names of equal memories: the only one, or the first and the last and that each is as shown."""
    return names[0] if len(names) == 1 else f"{names[0]}-{names[-1].removeprefix(_machine(names[0]))}, each"


def _machine(memory: str) -> str:
    """Return what a memory's name begins with in a plan for several machines: ``node0/``."""
    return memory[: memory.rfind("/") + 1]


def _parts(use: tuple[int, int, int, int], budget: Budget) -> tuple[int, ...]:
    """Return the bytes of each column: what is used, what stays free on purpose and by itself, what others have."""
    kept = budget.margin_bytes + budget.residual_bytes
    free = max(0, budget.free_bytes - sum(use) - kept)
    return (*use, kept, free, max(0, budget.total_bytes - budget.free_bytes))


def _bar(parts: tuple[int, ...]) -> str:
    """Draw a memory as a bar: at least one letter for each part that is there."""
    total = max(1, sum(parts))
    cells = [max(1, round(n_bytes / total * _BAR_WIDTH)) if n_bytes else 0 for n_bytes in parts]
    cells[cells.index(max(cells))] += _BAR_WIDTH - sum(cells)
    return "".join(letter * n for (_, letter), n in zip(_COLUMNS, cells, strict=True))


def plans_json(plans: tuple[Plan, ...]) -> str:
    """Return the versioned JSON of alternatives: ``{"schema_version", "plans": [{...}]}``, best quality first."""
    bodies: list[dict[str, Any]] = [msgspec.to_builtins(plan) for plan in plans]
    for body in bodies:
        del body["outcome"]
    document = {"schema_version": SCHEMA_VERSION, "plans": bodies}
    return msgspec.json.encode(document, order="deterministic").decode() + "\n"


def render_plans(model: str, plans: tuple[Plan, ...]) -> str:
    """Return a table of alternatives, best quality first: each is slower than the next one.

    The engine stands above, or behind the lines that are another's.
    """
    usual = next((plan.engine for plan in plans if plan.engine is not Engine.VLLM), plans[0].engine)
    rows = [f"`{model}` with {usual}: each line is better than the next and slower"]
    rows.append(
        f"  {'quant':<10} {'cache':<10}{'layers':<18}{'tokens/s':>9}{'prompts':>8}{'GPU GiB':>8}{'host GiB':>9}"
    )
    for plan in plans:
        on_devices = sum(use.total_bytes for use in plan.footprint.devices) / GIB
        tps, prompts = "?", "?"
        if plan.speed is not None:
            tps = _written(plan.speed.generation_tps)
            prompts = "?" if plan.speed.prompt_tps is None else _written(plan.speed.prompt_tps)
        cache = f"{plan.cache_type_k}/{plan.cache_type_v}"
        host = plan.footprint.host.engine_bytes / GIB
        engine = "" if plan.engine is usual else f" {plan.engine}"
        rows.append(
            f"  {plan.quantization:<10} {cache:<10}{_layers(plan):<18}"
            f"{tps:>9}{prompts:>8}{on_devices:>8.1f}{host:>9.1f}{engine}"
        )
    return "\n".join(rows) + "\n"


def _layers(plan: Plan) -> str:
    """Say in a column's width where the layers run."""
    n_all = plan.n_layer + 1
    if not plan.footprint.devices:
        return "on the CPU"
    if plan.n_gpu_layers < n_all:
        return f"{plan.n_gpu_layers} of {n_all} on GPU"
    return f"experts of {plan.n_cpu_moe} CPU" if plan.n_cpu_moe else "all on GPU"


def _written(tps: float) -> str:
    return f"{tps:.0f}" if tps >= 10 else f"{tps:.1f}"  # noqa: PLR2004


def render_refusal(refusal: Refusal) -> str:
    """Return the facts first and each piece of advice last, as a ``help:`` line with its command."""
    lines = [f"error[{refusal.code}]: {refusal.fact}"]
    lines += [f"  {line}" for line in refusal.derivation]
    lines += [
        f"  but {verdict.text}" for verdict in refusal.verdicts if verdict.fits and not _is_advised(verdict, refusal)
    ]
    for advice in refusal.advice:
        commands = [argv for argv in (advice.argv, advice.export_argv) if argv]
        lines += [f"help: {advice.text}", *(f"    {shlex.join(argv)}" for argv in commands)]
    if not refusal.advice:
        lines.append(f"help: {_where_to_look(refusal)}")
    return "\n".join(lines) + "\n"


def _where_to_look(refusal: Refusal) -> str:
    """Say where to look when nothing that could be checked helps."""
    if refusal.code in {RefusalCode.NO_ENGINE, RefusalCode.ENGINE_TOO_OLD}:
        return "`launch hardware` lists the engines found; README.md says how to get one"
    return "`launch list` shows the models known, `launch hardware` what this machine has"


def _is_advised(verdict: Verdict, refusal: Refusal) -> bool:
    """Whether a verdict's machine is in a piece of advice anyway."""
    return any(verdict.machine in advice.argv for advice in refusal.advice)
