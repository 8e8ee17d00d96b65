"""The model that was asked about: its profile, what the planner says of it here, its weights. Pure."""

from collections.abc import Iterator

from launcher.doctor.commands import path_shown
from launcher.doctor.facts import Facts, Model, Told, WeightsFile
from launcher.domain import Plan, Refusal
from launcher.findings import Area, Evidence, Finding, FindingCode, Severity
from launcher.units import MIB, format_bytes


def check_profile(facts: Facts) -> Iterator[Finding]:
    """Yield profiles that cannot be read, the fault of the model that was asked about, or its refusal."""
    model = facts.model
    told = None if model is None else model.told
    for broken in facts.broken_profiles or ():
        if told is None or broken.message != told.message:
            yield _broken(broken)
    if model is None:
        return
    if told is not None:
        yield Finding(
            code=FindingCode.PROFILE_UNUSABLE,
            severity=Severity.FAULT,
            area=Area.PROFILE,
            text=told.message,
            evidence=(
                Evidence(source=model.source or f"`{model.name}`", value=f"error[{told.code}]: {told.message}"),
                *(Evidence(source=model.source or f"`{model.name}`", value=line) for line in told.details),
            ),
            help=told.help,
            command=("launch", "explain", told.code),
        )
    elif isinstance(model.outcome, Refusal):
        yield _refused(model, model.outcome)


def _broken(told: Told) -> Finding:
    return Finding(
        code=FindingCode.PROFILE_BROKEN,
        severity=Severity.WARNING,
        area=Area.PROFILE,
        text=told.message,
        evidence=tuple(Evidence(source="the profile", value=line) for line in told.details),
        help=told.help,
        command=("launch", "list"),
    )


def _refused(model: Model, refusal: Refusal) -> Finding:
    """Word the planner's no: its facts, and its first way out, which it has planned again."""
    first = refusal.advice[0] if refusal.advice else None
    return Finding(
        code=FindingCode.PLAN_REFUSED,
        severity=Severity.FAULT,
        area=Area.PROFILE,
        text=refusal.fact,
        evidence=tuple(
            Evidence(source="the planner", value=line) for line in (f"error[{refusal.code}]", *refusal.derivation)
        ),
        help=first.text if first is not None else None,
        command=first.argv if first is not None else ("launch", "plan", model.asked),
    )


def sum_up_profile(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say that the model fits, or that all profiles can be read."""
    model = facts.model
    if model is None:
        return None if facts.broken_profiles is None else ("all profiles can be read", ())
    if not isinstance(model.outcome, Plan):
        return None
    plan = model.outcome
    where = ", ".join(use.name for use in plan.footprint.devices) or "the processor"
    speed = f", about {plan.speed.generation_tps:.0f} tokens/s" if plan.speed is not None else ""
    return f"`{plan.model}` fits at {plan.quantization} with {plan.engine} on {where}{speed}", (
        Evidence(source="profile", value=model.source or model.name),
        *(
            Evidence(source=f"the planner, {budget.name}", value=f"{format_bytes(budget.free_bytes)} free")
            for budget in plan.budgets
        ),
    )


# --- Weights ----------------------------------------------------------------------------------------------------


def check_weights(facts: Facts) -> Iterator[Finding]:
    """Yield weights that are not there, cannot be read, or are not what was published or recorded."""
    model = facts.model
    if model is None or (model.told is not None and not model.files):
        return
    if not model.is_local:
        yield _absent(model)
        return
    for file in model.files:
        yield from _of_file(facts, file)


def _absent(model: Model) -> Finding:
    """Say that nothing of the model is here; with a plan, what it would take."""
    plan = model.outcome if isinstance(model.outcome, Plan) else None
    sources = [] if plan is None or plan.artifact.repository is None else [plan.artifact.repository]
    at = "" if plan is None else f" at {plan.quantization}"
    return Finding(
        code=FindingCode.WEIGHTS_ABSENT,
        severity=Severity.NOTE if model.is_obtainable else Severity.FAULT,
        area=Area.WEIGHTS,
        text=f"the weights of `{model.name}`{at} are not on this machine"
        + (": `launch serve` downloads them first" if model.is_obtainable else ""),
        evidence=(
            Evidence(source=model.source or "profile", value="no artifact has its files here"),
            *(Evidence(source="published at", value=source) for source in sources),
        ),
        help=None if model.is_obtainable else "serve a file that you have by its path: `launch serve FILE.gguf`",
        command=("launch", "pull", model.asked) if model.is_obtainable else ("launch", "plan", model.asked),
    )


def _of_file(facts: Facts, file: WeightsFile) -> Iterator[Finding]:
    if file.error is not None or file.size_bytes is None:
        why = file.error or "no such file"
        yield Finding(
            code=FindingCode.WEIGHTS_UNREADABLE,
            severity=Severity.FAULT,
            area=Area.WEIGHTS,
            text=f"{file.path} cannot be read: {why}",
            evidence=(Evidence(source=f"opening {file.path}", value=why),),
            help="correct the path or its permissions, or fetch the file again",
            command=path_shown(facts, file.path),
        )
        return
    if file.published_bytes is not None and file.published_bytes != file.size_bytes:
        yield _differs(
            file,
            f"{file.path} has {file.size_bytes} bytes; {file.published_bytes} are published",
            Evidence(source="the profile", value=f"{file.published_bytes} bytes"),
        )
    elif file.changed is not None:
        yield _differs(
            file,
            f"{file.path} was changed since its digest was found ({file.changed}); its next use reads it again",
            Evidence(source="the record of its digest", value=f"differs: {file.changed}"),
            Severity.WARNING,
        )


def _differs(file: WeightsFile, text: str, evidence: Evidence, severity: Severity = Severity.FAULT) -> Finding:
    return Finding(
        code=FindingCode.WEIGHTS_DIFFER,
        severity=severity,
        area=Area.WEIGHTS,
        text=text,
        evidence=(Evidence(source=f"stat({file.path})", value=f"{file.size_bytes} bytes"), evidence),
        help="look at the file, and fetch it again if it is damaged",
        command=("launch", "inspect", file.path),
    )


def sum_up_weights(facts: Facts) -> tuple[str, tuple[Evidence, ...]] | None:
    """Say that the weights are there; how fast they were read."""
    model = facts.model
    if model is None or not model.files:
        return None
    total = sum(file.size_bytes or 0 for file in model.files)
    evidence = []
    for file in model.files:
        value = f"{file.size_bytes} bytes"
        if file.is_recorded:
            value += ", unchanged since its digest was found"
        if file.read_bytes and file.read_s:
            value += f"; read at {file.read_bytes / file.read_s / MIB:.0f} MiB/s"
        evidence.append(Evidence(source=file.path, value=value))
    return f"{format_bytes(total)} of weights are here and can be read", tuple(evidence)
