"""Every target by its name."""

from typing import Final

from tests.fuzz.answers import ENDPOINT, HUB, PROBES, RAY
from tests.fuzz.files import MACHINES, PROFILES, SPECS, STATE
from tests.fuzz.http_traffic import CLIENTS, ENGINES
from tests.fuzz.planning import PLANNER
from tests.fuzz.printed import LISTINGS, LOGS
from tests.fuzz.stores import STORES
from tests.fuzz.target import Target
from tests.fuzz.weights import GGUF, SAFETENSORS

TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for target in (
        GGUF,
        SAFETENSORS,
        PLANNER,
        PROFILES,
        MACHINES,
        SPECS,
        STATE,
        STORES,
        LOGS,
        LISTINGS,
        HUB,
        RAY,
        PROBES,
        ENDPOINT,
        CLIENTS,
        ENGINES,
    )
}
