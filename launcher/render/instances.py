"""Write instances as the table of ``launch ps``, the page of ``launch status``, or JSON. Pure."""

import msgspec

from launcher.domain import SCHEMA_VERSION, InstanceRecord, InstanceView
from launcher.render.plan import describe_placement
from launcher.render.text import shown

_HEADINGS = ("NAME", "STATE", "ADDRESS", "MODEL", "UP", "RESTARTS")
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86400


def render_instances(views: tuple[InstanceView, ...], *, now: float) -> str:
    """Return a table, one instance a line; ``now`` in seconds since 1970."""
    if not views:
        return "nothing is served\n"
    rows = [_HEADINGS, *(tuple(map(shown, _row(view, now))) for view in views)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _row(view: InstanceView, now: float) -> tuple[str, ...]:
    record = view.record
    if record is None:
        return (view.name, view.state, "-", "-", "-", "-")
    up = render_duration(now - record.started_at) if view.supervisor_alive else "-"
    model = f"{record.plan.model} {record.plan.quantization}" if record.plan else "-"
    return (view.name, view.state, _address(record), model, up, str(record.n_restarts))


def _address(record: InstanceRecord) -> str:
    host = f"[{record.address.host}]" if ":" in record.address.host else record.address.host
    return f"{host}:{record.address.port or '-'}"  # one that the system is to choose is not known before the start


def render_duration(seconds: float) -> str:
    """Return a span in its two largest units: ``42 s``, ``5 min 3 s``, ``2 h 10 min``, ``3 d 4 h``."""
    whole = max(0, int(seconds))
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def render_status(view: InstanceView, *, now: float) -> str:
    """Return all that is known of one instance, a fact a line."""
    facts = [("state", view.state.value)]
    if view.reason:
        facts.append(("reason", view.reason))
    record = view.record
    if record is not None:
        facts += [("", detail) for detail in record.details]
        if record.plan is None:  # a worker, which speaks no HTTP
            facts.append(("address", _address(record)))
        else:
            plan = record.plan
            facts.append(("endpoint", f"http://{_address(record)}"))
            facts.append(("model", f"{plan.model} {plan.quantization} on {plan.engine}"))
            facts.append(("context", f"{plan.n_ctx_per_request} tokens per request, {plan.n_parallel} at once"))
            facts.append(("placement", describe_placement(plan)))
        if record.application is not None:
            facts.append(("application", f"{record.application.name} on the Ray cluster at {record.application.url}"))
        facts += _fallback_facts(record)
        facts += _process_facts(view, record, now)
        if record.fetching is not None and view.supervisor_alive:
            facts.append(("weights", record.fetching))
    facts.append(("log", view.log_path))
    width = max(len(name) for name, _ in facts)
    lines = [shown(view.name), *(f"  {name.ljust(width)}  {shown(value)}" for name, value in facts)]
    return "\n".join(lines) + "\n"


def _fallback_facts(record: InstanceRecord) -> list[tuple[str, str]]:
    """Tell how the instance came to serve less than was planned, and what it could give by now."""
    facts = []
    if record.n_ladder_steps:
        steps = "1 step" if record.n_ladder_steps == 1 else f"{record.n_ladder_steps} steps"
        facts.append(("degraded", f"{steps} below what was planned first"))
        facts += [("", line) for line in record.story]
    if record.slow is not None:
        facts.append(("degraded", record.slow))
    if record.offer is not None:
        facts.append(("offer", f"{record.offer}; `launch stop` and serve it again to have it"))
    return facts


def _process_facts(view: InstanceView, record: InstanceRecord, now: float) -> list[tuple[str, str]]:
    facts = []
    if view.supervisor_alive:
        facts.append(("up", render_duration(now - record.started_at)))
        if record.ready_at is not None:
            facts.append(("ready for", render_duration(now - record.ready_at)))
        pids = {"supervisor": record.supervisor, "guard": record.guard, "engine": record.engine}
        facts.append(("processes", ", ".join(f"{name} {process.pid}" for name, process in pids.items() if process)))
    facts.append(("restarts", str(record.n_restarts)))
    if record.last_exit is not None:
        facts.append(("last exit", record.last_exit))
    return facts


def render_instances_json(views: tuple[InstanceView, ...]) -> str:
    """Return ``{"schema_version", "instances": [...]}``."""
    return _json({"schema_version": SCHEMA_VERSION, "instances": views})


def render_status_json(view: InstanceView) -> str:
    """Return one instance with its record and plan."""
    return _json(view)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
