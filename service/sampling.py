"""Choosing the next symbol from log-probabilities: temperature, top-k, top-p, and a seed that can be continued."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WORD = 2**64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a symbol is drawn.

    ``temperature`` divides the log-probabilities, 0 takes the most likely symbol; ``top_k`` keeps the k most likely
    (0: all), ``top_p`` the fewest whose probabilities reach p (1: all). The order is temperature, top-k, top-p.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the position.

    So a generation that broke off goes on, from its position and with its seed, as if it had not. The mixing is
    that of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
    """
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
    return ((z ^ (z >> 31)) >> 11) / 2.0**53


def sample(logprobs: np.ndarray, samplings: Sequence[Sampling], positions: Sequence[int]) -> np.ndarray:
    """One symbol per row: ``logprobs`` float [rows, symbols] -> int64 [rows]."""
    order = np.argsort(-logprobs, axis=1, kind="stable")  # [rows, symbols], the most likely first
    temperature = np.array([s.temperature for s in samplings])[:, None]
    scaled = np.take_along_axis(logprobs, order, axis=1).astype(np.float64) / np.maximum(temperature, 1e-6)
    weights = np.exp(scaled - scaled[:, :1])
    top_k = np.array([s.top_k or logprobs.shape[1] for s in samplings])[:, None]
    weights[np.arange(logprobs.shape[1])[None] >= top_k] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    before = np.cumsum(weights, axis=1) - weights  # the probability of all that are more likely
    top_p = np.array([s.top_p for s in samplings])[:, None]
    weights[(before >= top_p) & (before > 0)] = 0.0  # the most likely symbol always stays
    reach = np.cumsum(weights, axis=1)
    draw = np.array([uniform(s.seed, p) for s, p in zip(samplings, positions, strict=True)])[:, None]
    rank = (reach <= draw * reach[:, -1:]).sum(axis=1)
    rank[temperature[:, 0] == 0] = 0
    return np.take_along_axis(order, rank[:, None], axis=1)[:, 0]
