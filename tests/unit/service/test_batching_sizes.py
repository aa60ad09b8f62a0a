"""Which sizes may share a tick."""

from hypothesis import given
from hypothesis import strategies as st

from service.sizes import like_length, same_length

SIZES = st.integers(1, 100_000)


@given(SIZES)
def test_padding_wastes_less_than_a_fifth(size: int) -> None:
    """A class is named for its longest size; the shortest is filled up by less than a fifth of that."""
    longest = like_length(size)
    assert like_length(longest) == longest
    assert 0 <= (longest - size) * 5 < longest


@given(SIZES, SIZES)
def test_a_larger_size_is_in_no_smaller_class(one: int, other: int) -> None:
    """Classes are ranges: what lies between two sizes of a class belongs to it."""
    small, large = sorted((one, other))
    assert small <= like_length(small) <= like_length(large)


def test_there_are_few_classes() -> None:
    """Up to the longest segment that the settings allow, all lengths fall into a few dozen classes."""
    assert len({like_length(size) for size in range(1, 4097)}) < 50


@given(SIZES, SIZES)
def test_without_lengths_only_equal_sizes_share(one: int, other: int) -> None:
    """An artifact without the input ``lengths`` is batched by equal length."""
    assert (same_length(one) == same_length(other)) == (one == other)
