"""The laws of a shortened sequence: what remains stands in the same surroundings, and nothing new was left out."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.planner.footprint.walk import shorten

_SEQUENCES = st.lists(st.sampled_from("abc"), max_size=40) | st.tuples(
    st.text("abc", max_size=4), st.text("abc", min_size=1, max_size=4), st.integers(0, 8), st.text("cde", max_size=6)
).map(lambda parts: [*parts[0], *parts[1] * parts[2], *parts[3]])


def _around(kinds: list[str], idx: int) -> tuple[object, ...]:
    """The member, its neighbours, which kinds came before, and in which order others come after the next."""
    later = tuple(dict.fromkeys(kinds[idx + 2 :]))
    return kinds[idx], kinds[max(0, idx - 1) : idx], kinds[idx + 1 : idx + 2], set(kinds[:idx]), later


@given(kinds=_SEQUENCES)
def test_each_member_has_its_like_in_what_remains(kinds: list[str]) -> None:
    """With the same neighbours and the same kinds before and after it, in the shorter sequence itself."""
    walk = shorten(kinds)
    remaining = [kinds[idx] for idx in walk.kept]
    assert [_around(remaining, step) for step in walk.steps] == [_around(kinds, idx) for idx in range(len(kinds))]


@given(kinds=_SEQUENCES)
def test_what_remains_is_in_order_and_needs_no_second_look(kinds: list[str]) -> None:
    """Shortening again leaves all of it."""
    walk = shorten(kinds)
    assert list(walk.kept) == sorted(set(walk.kept))
    assert len(shorten([kinds[idx] for idx in walk.kept]).kept) == len(walk.kept)


def test_a_pattern_is_kept_a_few_times_however_often_it_repeats() -> None:
    """The length of what remains does not depend on the number of repetitions, one kind or several."""
    for pattern in ("a", "ab", "aaab"):
        lengths = {len(shorten([*"x", *pattern * n, *"y" * n, *"z"]).kept) for n in (5, 20, 40)}
        assert len(lengths) == 1
        assert lengths.pop() <= 4 * len(pattern) + 8
