"""What a request means in exact figures: the context in cells, and the floors that hold.

It must not know models or machines beyond the context that a model was trained for.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import Address, Objective, Request, Settings
from launcher.planner.footprint.llama_cpp import CELL_PADDING
from launcher.units import pad

DEFAULT_MIN_TPS: Final = 2.0


class Ask(Struct, frozen=True, kw_only=True):
    """A request with its wishes resolved: what to plan for, and which of it the user fixed."""

    model: str
    settings: Settings
    n_parallel: int
    n_ctx: int
    n_ctx_per_request: int
    objective: Objective
    min_quantization: str | None
    floor_tps: float
    """The slowest generation that is wanted."""
    min_n_ctx_per_request: int | None
    force: bool
    address: Address

    @property
    def min_tps(self) -> float:
        """The slowest generation that is accepted: any, where the floor is overridden."""
        return 0.0 if self.force else self.floor_tps


def merge_settings(pins: Settings, settings: Settings) -> Settings:
    """Lay what the command line fixes over what the profile pins."""
    fixed = {name: value for name in settings.__struct_fields__ if (value := getattr(settings, name)) is not None}
    if "n_ctx" in fixed or "n_ctx_per_request" in fixed:
        pins = replace(pins, n_ctx=None, n_ctx_per_request=None)
    return replace(pins, **fixed)


def resolve_ask(request: Request) -> Ask:
    """Turn a request into exact figures: a context total over all slots, and the floors that hold."""
    profile = request.profile
    settings = merge_settings(profile.pins, request.settings)
    n_parallel = settings.n_parallel or profile.wishes.n_parallel
    floor = profile.limits.min_generation_tps
    if settings.n_ctx is not None:
        n_ctx, n_ctx_per_request = settings.n_ctx, settings.n_ctx // n_parallel
    else:
        n_ctx_per_request = settings.n_ctx_per_request or profile.wishes.n_ctx_per_request
        n_ctx = pad(n_ctx_per_request, CELL_PADDING) * n_parallel
    return Ask(
        model=profile.name,
        settings=settings,
        n_parallel=n_parallel,
        n_ctx=n_ctx,
        n_ctx_per_request=n_ctx_per_request,
        objective=profile.wishes.objective,
        min_quantization=profile.limits.min_quantization,
        floor_tps=DEFAULT_MIN_TPS if floor is None else floor,
        min_n_ctx_per_request=profile.limits.min_n_ctx_per_request,
        force=request.force,
        address=profile.address,
    )


def with_context(ask: Ask, n_ctx_per_request: int) -> Ask:
    """Return the ask with another context for each request."""
    n_ctx = pad(n_ctx_per_request, CELL_PADDING) * ask.n_parallel
    return replace(ask, n_ctx_per_request=n_ctx_per_request, n_ctx=n_ctx)
