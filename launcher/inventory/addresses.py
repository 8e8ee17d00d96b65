"""What an address says: whether it is of this machine alone, and how this machine reaches it. Pure: no name is looked up."""

from ipaddress import ip_address
from typing import Final

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


def reached_at(host: str) -> str:
    """Return the host under which this machine reaches what listens on ``host``: a wildcard is reached over loopback."""
    return _WILDCARDS.get(host, host)


def is_loopback(host: str) -> bool:
    """Tell whether a host, an address without brackets or a name, is the loopback interface's; of names ``localhost`` alone is."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
