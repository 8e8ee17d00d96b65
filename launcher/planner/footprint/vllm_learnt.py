"""What runs of vLLM on this machine taught of GPUs and host, as values that its arithmetic takes into account.

It must not know how anything was learnt.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace


class GpuLearnt(Struct, frozen=True, kw_only=True):
    """Of one GPU, alone or beside others (``is_shared``).

    Its share of the memory had to hold ``within_bytes`` beyond the prediction; ``beside_bytes`` of the GPU have to stay free,
    the engine's context included.
    """

    name: str
    is_shared: bool
    within_bytes: int = 0
    beside_bytes: int = 0


class Learnt(Struct, frozen=True, kw_only=True):
    """All of it for one model in one build; ``host_bytes`` have to stay free of the host beside the margin."""

    gpus: tuple[GpuLearnt, ...] = ()
    host_bytes: int = 0

    def within(self, name: str, n_rank: int) -> int:
        """Return the bytes that a rank on this GPU takes beyond what is predicted, one of so many."""
        return max((gpu.within_bytes for gpu in self._of(name, n_rank)), default=0)

    def beside(self, name: str, n_rank: int) -> int:
        """Return the bytes of this GPU that no share may take; 0 where nothing was learnt."""
        return max((gpu.beside_bytes for gpu in self._of(name, n_rank)), default=0)

    def without_beside(self) -> "Learnt":
        """Return the same where what has to stay free of GPUs is seen to otherwise."""
        return replace(self, gpus=tuple(replace(gpu, beside_bytes=0) for gpu in self.gpus))

    def _of(self, name: str, n_rank: int) -> list[GpuLearnt]:
        return [gpu for gpu in self.gpus if gpu.name == name and gpu.is_shared == (n_rank > 1)]


NOTHING: Final = Learnt()
"""Nothing ran here yet."""
