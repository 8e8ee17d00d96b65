"""Whether an address is of this machine alone. Pure: no name is looked up."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Tell whether a host, an address without brackets or a name, is the loopback interface's; of names ``localhost`` alone is."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
