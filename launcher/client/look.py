"""Ask an endpoint for its figures, once. It must not know what they are shown as, nor what they were before."""

from typing import Final

from launcher.client.endpoint import FAULTS, Endpoint, UnreachedError, call
from launcher.client.metrics_text import parse_figures
from launcher.errors import EndpointError
from launcher.figures import Figures
from launcher.units import MIB

_PATH: Final = "/metrics"
_SILENCE_S: Final = 2.0  # a gateway answers this by itself, whatever its engine does
_MAX_BYTES: Final = 4 * MIB
_SILENT: Final = "its endpoint does not answer"
_OK: Final = 200
_UNAUTHORIZED: Final = 401


def look_at(endpoint: Endpoint) -> Figures | str:
    """Return the figures that an endpoint tells now, or in words why there are none."""
    try:
        with call(endpoint, "GET", _PATH, silence_s=_SILENCE_S) as response:
            if response.status == _UNAUTHORIZED:
                return "it wants an API key" if endpoint.api_key is None else "it does not take this API key"
            if response.status != _OK:
                return f"its endpoint answered with status {response.status}"
            body = response.read(_MAX_BYTES)
            if response.length:  # it said that there is more
                return _SILENT
            return parse_figures(body.decode("utf-8", "replace"))
    except UnreachedError:
        return "it does not listen"
    except (EndpointError, *FAULTS):
        return _SILENT
