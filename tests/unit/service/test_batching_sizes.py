"""Which sizes may share a tick."""

from hypothesis import given
from hypothesis import strategies as st

from service.batching import like_length, same_length

SIZES = st.integers(1, 100_000)


@given(SIZES, SIZES)
def test_padding_wastes_less_than_a_fifth(one: int, other: int) -> None:
    """Of two sizes that share a tick, the shorter is filled up by less than a fifth of the longer."""
    if like_length(one) == like_length(other):
        assert abs(one - other) * 5 < max(one, other)


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
