"""What bounds the memories of a trial beside what is free, in words: limits, and lessons of earlier runs.

It must not know whether the trial was chosen or refused.
"""

from launcher.domain import HOST_MEMORY, Host
from launcher.planner.corrections import describe_lessons, limit_of
from launcher.planner.sizing import Trial, lessons_of
from launcher.units import format_bytes


def list_bounds(trial: Trial) -> tuple[str, ...]:
    """Return one fact per line; none where only free memory and the usual margins count."""
    host = trial.target.host
    limit = _describe_limit(host)
    lessons = (
        f"{budget.name}: {fact}"
        for budget, heeded in lessons_of(trial)
        for fact in describe_lessons(budget, heeded, limit_bytes=limit_of(budget.name, budget.total_bytes, host))
    )
    return (*(() if limit is None else (limit,)), *lessons)


def _describe_limit(host: Host) -> str | None:
    if host.limit_bytes >= host.total_bytes:
        return None
    limit, total = format_bytes(host.limit_bytes), format_bytes(host.total_bytes)
    if host.limit_bytes == host.address_space_bytes:
        return f"{HOST_MEMORY}: a process may map {limit} at most (ulimit -v, LimitAS=) of the {total} there are"
    return f"{HOST_MEMORY}: its control group is limited to {limit} of the {total} there are"
