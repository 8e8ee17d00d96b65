"""Puts our application on a Ray cluster and takes it off again, with whatever else runs there left as it is.

Ray cannot be told "only if nothing has changed": between the look and the ``PUT`` somebody else may deploy. What that cost is
found by looking again, and said. It must not know what is in the application.
"""

import time
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from launcher.backends.ray_serve import Value
from launcher.cluster.applications import Proxies, find_lost, merge, without
from launcher.cluster.dashboard import Dashboard
from launcher.cluster.serve_details import APPLICATIONS, ServeDetails, parse_details
from launcher.errors import ClusterError

_POLL_S: Final = 0.5


class Sent(Struct, frozen=True):
    """What came of a ``PUT``: ``lost`` are those whose applications it cost."""

    was_started: bool
    """Whether Serve ran before."""
    was_there: bool
    """Whether there was an application of that name."""
    was_other: bool = False
    """Whether it was declared otherwise: its replicas may answer until they are replaced."""
    lost: tuple[str, ...] = ()


def read_serve(dashboard: Dashboard) -> ServeDetails:
    """Return what runs.

    Raises:
        ClusterError: it cannot be had.
    """
    return parse_details(dashboard.get(APPLICATIONS), dashboard.url)


def submit(dashboard: Dashboard, ours: Value, proxies: Proxies) -> Sent:
    """Have Ray Serve run our application beside all others; one of the same name and mark is replaced.

    Raises:
        ForeignApplicationError: somebody else's has its name or its route; nothing was sent.
        ClusterError: what runs could not be sent again, in which case nothing was, or the dashboard does not answer.
    """
    name = str(ours["name"])
    before = read_serve(dashboard)
    _put(dashboard, merge(before, ours, proxies))
    after = read_serve(dashboard)
    if name not in after.applications:
        message = f"Ray Serve at {dashboard.url} took the application `{name}` and does not list it"
        raise ClusterError(message, help="the log of Serve's controller may tell more")
    return Sent(
        was_started=before.is_started,
        was_there=name in before.applications,
        was_other=name in before.applications and before.applications[name].deployed_app_config != ours,
        lost=find_lost(before, after, name),
    )


def remove(
    dashboard: Dashboard,
    name: str,
    *,
    timeout_s: float,
    is_forced: Callable[[], bool] = lambda: False,
) -> Sent:
    """Take our application off, and wait until its replicas are gone, or until it ``is_forced``.

    Serve itself stays, empty or not: what would end it (``DELETE``) ends every application of whoever deploys meanwhile.

    Raises:
        ForeignApplicationError: it is somebody else's.
        ClusterError: it could not be taken off, or is not gone in time.
    """
    before = read_serve(dashboard)
    body = without(before, name)
    if body is not None:
        _put(dashboard, body)
    deadline_s = time.monotonic() + timeout_s
    first = after = read_serve(dashboard)
    while name in after.applications and not is_forced():
        if time.monotonic() > deadline_s:
            message = f"Ray is still removing the application `{name}` after {timeout_s:g} s"
            raise ClusterError(message, help="its replicas may take their time to end; Ray goes on by itself")
        time.sleep(_POLL_S)
        after = read_serve(dashboard)
    return Sent(
        was_started=before.is_started,
        was_there=name in before.applications,
        lost=find_lost(before, first, name) if body is not None else (),
    )


def _put(dashboard: Dashboard, body: Value) -> None:
    dashboard.put(APPLICATIONS, msgspec.json.encode(body))
