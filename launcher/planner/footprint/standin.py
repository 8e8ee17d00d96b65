"""Dimensions that stand in for those in which otherwise equal graphs differ: the step and the cells of the caches.

Each is a power of two beyond any size, so the size of a tensor that is made of them can be read as a polynomial, digit by
digit, and worked out for any step and any context. It does not know graphs.
"""

from collections.abc import Sequence
from typing import Final

_BITS: Final = 64
"""Of a coefficient, its sign included: hundreds of times the largest in any known model."""
_BASE: Final = 1 << _BITS
_NEGATIVE: Final = _BASE >> 1
TOKENS: Final = _BASE
"""Tokens of one sequence in one step; they may be multiplied with each other and with cells."""
CELLS: Final = 1 << 3 * _BITS
"""Cells of one stream of a cache that sees everything, and below of one that slides: never multiplied with each other."""
SLIDING_CELLS: Final = 1 << 6 * _BITS


def powers(n_tokens: int, n_cells: int, n_cells_sliding: int) -> tuple[int, ...]:
    """Return what each digit of a size counts."""
    return tuple([cells * tokens for cells in (1, n_cells, n_cells_sliding) for tokens in (1, n_tokens, n_tokens**2)])


def work_out(size: int, counts: Sequence[int]) -> int:
    """Return a size that was made of stand-ins for what ``powers`` returned; one that was made of numbers as it is."""
    total = idx = 0
    while size:
        digit = size & (_BASE - 1)
        if digit >= _NEGATIVE:
            digit -= _BASE
        total += digit * counts[idx]
        size = (size - digit) >> _BITS
        idx += 1
    return total
