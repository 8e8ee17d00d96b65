"""Times contenders in turns, so that a busy machine slows all of them alike.

It must not know what they do.
"""

from collections.abc import Callable, Mapping


def in_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each took, round by round; every other round goes through them backwards.

    Each runs once before, which is not counted: it fills the page cache and leaves byte code.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for n in range(rounds):
        for name in contenders if n % 2 == 0 else reversed(list(contenders)):
            samples[name].append(contenders[name]())
    return samples
