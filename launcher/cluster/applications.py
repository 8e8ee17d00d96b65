"""The whole of what Ray Serve is to run, with one application of ours added or taken away.

Ray's API knows only the whole: ``PUT`` deletes every declared application that it does not list, within seconds. So what
others declared is sent again word for word, and where that is not possible nothing is sent. It must not know how it is sent.

What Serve does not tell (``logging_config``, ``tracing_config``, ``controller_options``) stays as it is when it is left out; what
it tells of its proxies is ignored while it runs, and sent again for the case that it does not any more; ``target_capacity``
would be reset (``ServeController.apply_config``, Ray 2.60.0).
"""

from typing import Any, Final

from msgspec import Struct

from launcher.backends.ray_serve import Value, marked_model
from launcher.cluster.serve_details import DECLARATIVE, Application, ServeDetails
from launcher.errors import ClusterError, ForeignApplicationError
from launcher.inventory.text import printable

_REDACTED: Final = "<redacted>"
"""What Ray shows in place of a value, in the environment of applications, to those whom it takes for a browser."""
_REFUSED_FIELDS: Final = ("host", "port")
"""Of an application's own; Ray takes them from its older API and refuses them in this one."""
_PORT: Final = 8000
"""Ray Serve's own."""
_DELETING: Final = "DELETING"


class Proxies(Struct, frozen=True):
    """Where Serve's proxies are to listen, if it has to be started. They ask for no key."""

    host: str
    port: int
    location: str
    """``HeadOnly``, or ``EveryNode``: the head and each node with a replica."""


def choose_proxies(*, is_here: bool) -> Proxies:
    """Return where Serve's proxies are to listen if nobody has started it: on loopback alone where its head is this machine."""
    if is_here:
        return Proxies(host="127.0.0.1", port=_PORT, location="HeadOnly")
    return Proxies(host="0.0.0.0", port=_PORT, location="EveryNode")  # noqa: S104 - Ray's own default; said when it is done


def merge(current: ServeDetails, ours: Value, proxies: Proxies) -> Value:
    """Return the body of a ``PUT`` after which ours runs, and whatever ran.

    Raises:
        ForeignApplicationError: somebody else's has its name or its route.
        ClusterError: something that runs could not be sent again as it is.
    """
    name, route = str(ours["name"]), ours["route_prefix"]
    if name in current.applications:
        check_ours(name, current.applications[name])
    for other, application in current.applications.items():
        if other != name and application.status != _DELETING and _route(application) == route:
            message = f"the route {route} is taken by the application `{printable(other)}`, which is not ours"
            raise ForeignApplicationError(
                message, help="remove that application, or serve the model under another profile's name"
            )
    return _whole(current, [*_others(current, name), ours], proxies)


def without(current: ServeDetails, name: str) -> Value | None:
    """Return the body of a ``PUT`` after which our application is gone and whatever else ran runs; ``None``: it is gone.

    Raises:
        ForeignApplicationError: that application is somebody else's.
        ClusterError: something that runs could not be sent again as it is.
    """
    application = current.applications.get(name)
    if application is None or application.status == _DELETING:
        return None
    check_ours(name, application)
    return _whole(current, _others(current, name), None)


def find_lost(before: ServeDetails, after: ServeDetails, name: str) -> tuple[str, ...]:
    """Return the applications other than ``name`` that a ``PUT`` between the two took away, or declared otherwise.

    One that is being deleted and was not seen before came in between: Ray has no way to say "only if nothing has changed".
    """
    kept = {other: app for other, app in before.applications.items() if other != name and app.status != _DELETING}
    lost = [
        other
        for other, application in kept.items()
        if (now := after.applications.get(other)) is None
        or now.status == _DELETING
        or now.deployed_app_config != application.deployed_app_config
    ]
    lost += [
        other
        for other, application in after.applications.items()
        if other != name and other not in before.applications and application.status == _DELETING
    ]
    return tuple(printable(other) for other in lost)


def check_ours(name: str, application: Application) -> None:
    """Make sure that an application is ours.

    Raises:
        ForeignApplicationError: it does not bear our mark.
    """
    if application.status == _DELETING:
        return
    if application.deployed_app_config is None or marked_model(application.deployed_app_config) is None:
        message = f"there is an application `{printable(name)}` that was not put there by the launcher"
        raise ForeignApplicationError(message, help="it is left alone; remove it by the means it was deployed with")


def _whole(current: ServeDetails, applications: list[Value], proxies: Proxies | None) -> Value:
    if not current.is_started and proxies is not None:
        options: Value = {
            "proxy_location": proxies.location,
            "http_options": {"host": proxies.host, "port": proxies.port},
        }
    else:
        told = {
            "proxy_location": current.proxy_location,
            "http_options": current.http_options,
            "grpc_options": current.grpc_options,
            "target_capacity": current.target_capacity,
        }
        options = {key: value for key, value in told.items() if value is not None}
    return {**options, "applications": applications}


def _others(current: ServeDetails, name: str) -> list[Value]:
    """Return what others declared; those who used Serve's own calls instead are not touched by a ``PUT``."""
    return [
        _declared(other, application)
        for other, application in current.applications.items()
        if other != name and application.source == DECLARATIVE and application.status != _DELETING
    ]


def _declared(name: str, application: Application) -> Value:
    config = application.deployed_app_config
    fault = None
    if config is None:
        fault = "Ray does not tell how it was declared"
    elif _is_redacted(config):
        fault = "Ray hides values of its environment"
    elif any(field in config for field in _REFUSED_FIELDS):
        fault = "it was declared by Ray's older API"
    if config is None or fault is not None:
        message = f"the application `{printable(name)}` could not be sent again as it is: {fault}"
        raise ClusterError(
            message,
            help="nothing was changed: whatever is left out would be deleted; try again, or deploy that one anew",
        )
    return config


def _route(application: Application) -> object:
    """Return an application's route; one that is still built has it only in what was declared, ``/`` where nothing is said."""
    config: dict[str, Any] | None = application.deployed_app_config
    return application.route_prefix or (config.get("route_prefix", "/") if config is not None else None)


def _is_redacted(value: object) -> bool:
    match value:
        case str():
            return value == _REDACTED
        case dict():
            return any(_is_redacted(each) for each in value.values())
        case list():
            return any(_is_redacted(each) for each in value)
        case _:
            return False
