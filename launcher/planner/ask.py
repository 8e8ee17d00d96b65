"""What a request means in exact figures: the context in cells, and the floors that hold.

It must not know models or machines beyond the context that a model was trained for.
"""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import Address, Objective, Request, Settings
from launcher.planner.footprint.llama_cpp import CELL_PADDING
from launcher.planner.quality import meets_floor
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

    def admits(self, quantization: str, n_active: float) -> bool:
        """Tell whether a quantization is the one that the user named or, where none was, no worse than the floor.

        ``n_active`` are the parameters that a token passes through.
        """
        if self.settings.quantization is not None:
            return quantization == self.settings.quantization
        return meets_floor(quantization, self.min_quantization, n_active)


def merge_settings(pins: Settings, settings: Settings) -> Settings:
    """Lay what the command line fixes over what the profile pins."""
    fixed = {name: value for name in settings.__struct_fields__ if (value := getattr(settings, name)) is not None}
    if settings.fix_context:
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


def hold_context(ask: Ask, n_ctx_train: int) -> Ask | None:
    """Return the ask with no more context than the model was trained for (0: unknown), where that is allowed.

    A wish is lowered as far as the profile's limit; an order is not, and ``None`` is returned.
    """
    if not n_ctx_train or ask.n_ctx_per_request <= n_ctx_train:
        return ask
    if ask.settings.fix_context or n_ctx_train < (ask.min_n_ctx_per_request or 0):
        return None
    return with_context(ask, n_ctx_train)


def with_less_context(ask: Ask) -> Iterator[Ask]:
    """Yield the ask with ever less context than was wished for, in powers of two down to the profile's limit.

    Nothing is yielded where the user fixed the context or the profile has no limit.
    """
    least, n_ctx = ask.min_n_ctx_per_request, ask.n_ctx_per_request
    if least is None or ask.settings.fix_context:
        return
    while n_ctx > least:
        n_ctx = max(least, 1 << (n_ctx - 1).bit_length() - 1)
        yield with_context(ask, n_ctx)


def with_halved_context(ask: Ask, least: int) -> Iterator[Ask]:
    """Yield the ask with ever half the context of each request, down to ``least`` tokens.

    Nothing is yielded where the user fixed the context.
    """
    n_ctx = ask.n_ctx_per_request
    while n_ctx > least and not ask.settings.fix_context:
        n_ctx = max(least, n_ctx // 2)
        yield with_context(ask, n_ctx)


def with_fewer_requests(ask: Ask) -> Iterator[Ask]:
    """Yield the ask for ever half as many requests of the same context, down to one.

    Nothing is yielded where the user fixed how many there are, or the tokens that they share.
    """
    if ask.settings.n_parallel is not None or ask.settings.n_ctx is not None:
        return
    n_parallel = ask.n_parallel // 2
    while n_parallel >= 1:
        yield with_context(replace(ask, n_parallel=n_parallel), ask.n_ctx_per_request)
        n_parallel //= 2


def with_more_context(ask: Ask, n_ctx_train: int) -> Iterator[Ask]:
    """For the objective ``context``, yield the ask with ever more of it, in powers of two, as far as the model was trained."""
    if ask.objective is not Objective.CONTEXT or ask.settings.fix_context:
        return
    n_ctx = ask.n_ctx_per_request * 2
    while n_ctx <= n_ctx_train:
        yield with_context(ask, n_ctx)
        n_ctx *= 2


def note_lowered(wished: Ask, given: Ask, why: str) -> tuple[str, ...]:
    """Say that a request is given less context than was wished for; nothing where it is not."""
    if given.n_ctx_per_request == wished.n_ctx_per_request:
        return ()
    return (f"context lowered from {wished.n_ctx_per_request} to {given.n_ctx_per_request}: {why}",)
