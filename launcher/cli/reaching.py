"""Where a served instance answers, and the key that is sent there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launcher.client.endpoint import Endpoint
    from launcher.domain import InstanceView

ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file", help="File of the API keys that it is served with; $LAUNCHER_API_KEY holds one as well."
    ),
]


def read_key(file: Path | None) -> str | None:
    """Return the key to send, if there is one: of several, any opens an endpoint.

    Raises:
        ApiKeyError: as for `launch serve`.
    """
    import os

    from launcher.gateway.keys import read_secrets

    return next(iter(read_secrets(os.environ, file)), None)


def profile_name(name: str) -> str:
    """Return the name of the profile that a name or an alias means, itself where it means none."""
    from launcher.errors import LauncherError
    from launcher.profiles import load_profile

    try:
        return load_profile(name).name
    except LauncherError:
        return name


def find_named(name: str) -> "InstanceView":
    """Return the instance of that name, or of the profile that the name is an alias of.

    Raises:
        NotServedError: neither was ever served here.
    """
    from launcher.errors import NotServedError
    from launcher.store import find_instance

    try:
        return find_instance(name)
    except NotServedError:
        full_name = profile_name(name)
        if full_name == name:
            raise
        return find_instance(full_name)


def require_served(name: str) -> "InstanceView":
    """Return the instance of that name, which is served now.

    Raises:
        NotServedError: it is not, or answers no requests.
    """
    from launcher.errors import NotServedError

    try:
        view = find_named(name)
    except NotServedError as error:
        raise NotServedError(error.message, help=_how_to_serve(name)) from None
    if not view.supervisor_alive:
        why = f" ({view.reason})" if view.reason else ""
        message = f"`{view.name}` is not served: it is {view.state}{why}"
        raise NotServedError(message, help=_how_to_serve(name))
    if view.record is None or view.record.plan is None:
        what = f"is {view.state}: {view.reason}" if view.reason else "serves no model"
        message = f"`{view.name}` {what}"
        raise NotServedError(message, help="`launch ps` shows what is served")
    return view


def _how_to_serve(name: str) -> str:
    return f"start it with `launch serve {name}`; `launch ps` shows what is served"


def endpoint_of(view: "InstanceView", key: str | None) -> "Endpoint | None":
    """Return where an instance answers, ``None`` while it does not listen yet.

    Raises:
        EndpointAccessError: there is a key, and somebody else listens at its address.
    """
    from launcher.client.endpoint import Endpoint
    from launcher.inventory.addresses import reached_at

    record = view.record
    if record is None or record.plan is None or record.address.port is None:
        return None
    if key is not None and not _is_supervisors(view, record.address.port, record.supervisor.pid):
        return None
    return Endpoint(
        name=view.name,
        host=reached_at(record.address.host),
        port=record.address.port,
        model=record.plan.model,
        api_key=key,
    )


def _is_supervisors(view: "InstanceView", port: int, pid: int) -> bool:
    """Whether the instance's own supervisor listens: a key is for nobody else who took the port meanwhile.

    Raises:
        EndpointAccessError: another process listens.
    """
    from launcher.errors import EndpointAccessError
    from launcher.supervisor.processes import probe_listeners, socket_owners

    listening = probe_listeners(port)
    owners, is_sure = socket_owners(listening, (pid,))
    if listening and is_sure and pid not in owners:
        message = f"another process than that of `{view.name}` listens on port {port}: no key is sent there"
        raise EndpointAccessError(message, help=f"`launch status {view.name}` says how it is")
    return bool(listening)
