"""Drawing symbols: the right distribution, cut off in the right places, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sampling import Sampling, sample, uniform

PROBABILITIES = np.array([0.05, 0.4, 0.2, 0.3, 0.05])
LOGPROBS = np.log(PROBABILITIES).astype(np.float32)
DRAWS = 20_000


def draws(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 3) -> np.ndarray:
    """How often each symbol is drawn, over many positions: [symbols], adding up to 1."""
    samplings = [Sampling(temperature, top_k, top_p, seed)] * DRAWS
    tokens = sample(np.tile(LOGPROBS, (DRAWS, 1)), samplings, range(DRAWS))
    return np.bincount(tokens, minlength=5) / DRAWS


def test_symbols_are_drawn_by_their_probabilities() -> None:
    """At temperature 1 the shares are the model's probabilities."""
    np.testing.assert_allclose(draws(), PROBABILITIES, atol=0.015)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature: float) -> None:
    """Log-probabilities are divided by the temperature."""
    expected = PROBABILITIES ** (1 / temperature)
    np.testing.assert_allclose(draws(temperature), expected / expected.sum(), atol=0.015)


def test_temperature_0_takes_the_most_likely() -> None:
    """No chance is left; of equal symbols the first is taken, as in a plain argmax."""
    assert draws(0.0)[1] == 1
    equal = np.log(np.full((1, 4), 0.25, np.float32))
    assert sample(equal, [Sampling(0.0, 0, 1.0, 9)], [5]).tolist() == [0]


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_the_most_likely(top_k: int, kept: list[int]) -> None:
    """Beyond the k most likely nothing is drawn; the others keep their proportions."""
    shares = draws(top_k=top_k)
    expected = np.where(np.isin(range(5), kept), PROBABILITIES, 0)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.015)
    assert np.flatnonzero(shares).tolist() == kept


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, [1]), (0.39, [1]), (0.45, [1, 3]), (0.75, [1, 2, 3]), (0.99, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    """The most likely symbol always stays; the last one kept is the one that reaches p."""
    assert np.flatnonzero(draws(top_p=top_p)).tolist() == kept


def test_top_p_is_of_what_temperature_and_top_k_left() -> None:
    """The order is temperature, top-k, top-p: 0.4 of 0.4 + 0.3 reaches one half by itself."""
    assert np.flatnonzero(draws(top_p=0.5)).tolist() == [1, 3]
    assert np.flatnonzero(draws(top_k=2, top_p=0.5)).tolist() == [1]
    assert np.flatnonzero(draws(temperature=0.1, top_p=0.5)).tolist() == [1]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 5), st.floats(0.1, 1))
def test_a_draw_depends_on_its_own_row_only(seed: int, position: int, top_k: int, top_p: float) -> None:
    """Whoever else is in the batch, with whatever settings, a row draws what it draws alone."""
    mine = Sampling(0.7, top_k, top_p, seed)
    random = np.random.default_rng(position)
    rows = np.log(random.dirichlet(np.ones(6), 3)).astype(np.float32)
    others = [Sampling(0.0, 1, 0.5, 1), mine, Sampling(3.0, 0, 1.0, 2)]
    together = sample(rows, others, [7, position, 8])
    assert together[1] == sample(rows[1:2], [mine], [position])[0]


def test_impossible_symbols_are_never_drawn() -> None:
    """A log-probability of minus infinity is a probability of zero."""
    with np.errstate(divide="ignore"):
        rows = np.tile(np.log(np.array([0.0, 0.5, 0.0, 0.5])), (1000, 1))
    assert set(sample(rows, [Sampling(1.0, 0, 1.0, 0)] * 1000, range(1000)).tolist()) == {1, 3}


def test_uniform_numbers_are_uniform_and_unlike_for_neighbours() -> None:
    """Over positions and over seeds the numbers fill [0, 1) evenly and do not follow each other."""
    for numbers in (uniform([1] * DRAWS, range(DRAWS)), uniform(range(DRAWS), [1] * DRAWS)):
        assert 0 <= numbers.min() < numbers.max() < 1
        np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0] / DRAWS, 0.1, atol=0.01)
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03


def test_a_seed_means_the_same_in_every_release() -> None:
    """A generation that is continued after an update draws what it would have drawn before.

    The words are the published ones of SplitMix64 for the seed 0; 53 bits of each are used.
    """
    words = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    assert uniform([0, 0, 0], range(3)).tolist() == [(word >> 11) / 2**53 for word in words]


def test_draws_mean_the_same_in_every_release() -> None:
    """So do the symbols: a change of these lists breaks generations that are continued after an update."""
    for sampling, expected in (
        (Sampling(1.0, 0, 1.0, 0), [3, 1, 0, 4, 1, 1, 1, 3, 1, 4, 1, 3, 2, 2, 3, 2]),
        (Sampling(0.7, 3, 0.8, 0), [3, 1, 1, 3, 1, 1, 1, 3, 1, 3, 1, 3, 1, 1, 3, 1]),
    ):
        assert sample(np.tile(LOGPROBS, (16, 1)), [sampling] * 16, range(16)).tolist() == expected


def test_half_precision_is_drawn_as_precisely() -> None:
    """Log-probabilities in float16 are scaled and added up in more than that: rare symbols keep their share."""
    numbers = 3 * DRAWS
    rows = np.tile(np.log(np.array([0.999, 0.001])).astype(np.float16), (numbers, 1))
    drawn = sample(rows, [Sampling(1.0, 0, 1.0, 5)] * numbers, range(numbers))
    assert drawn.mean() == pytest.approx(0.001, rel=0.3)
