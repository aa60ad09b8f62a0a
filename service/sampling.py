"""Choosing the next symbol from log-probabilities: temperature, top-k, top-p, and a seed that can be continued."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_COLDEST = 1e-6  # a temperature of 0 is looked at apart
_ONE, _GAMMA = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


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


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """For each seed and position a number in [0, 1), float64, that depends on nothing else.

    So a generation that broke off goes on, from its position and with its seed, as if it had not. The mixing is
    that of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
    """
    z = np.array(seeds, np.uint64) + (np.array(positions, np.uint64) + _ONE) * _GAMMA  # all modulo 2**64
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    numbers: np.ndarray = ((z ^ (z >> 31)) >> 11) / 2.0**53
    return numbers


def sample(logprobs: np.ndarray, samplings: Sequence[Sampling], positions: Sequence[int]) -> np.ndarray:
    """One symbol per row: ``logprobs`` float [rows, symbols] -> int64 [rows]."""
    scaled = logprobs.astype(np.promote_types(logprobs.dtype, np.float32))  # [rows, symbols]
    temperature = np.array([s.temperature for s in samplings], scaled.dtype)[:, None]
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled /= np.maximum(temperature, _COLDEST)
    weights = np.exp(scaled, out=scaled)
    narrowed = [i for i, s in enumerate(samplings) if s.top_k or s.top_p < 1]
    if narrowed:
        weights[narrowed] = _narrowed(weights[narrowed], [samplings[i] for i in narrowed])
    reach = np.cumsum(weights, axis=1, dtype=np.float64)
    draw = uniform([s.seed for s in samplings], positions)[:, None]
    drawn: np.ndarray = (reach > draw * reach[:, -1:]).argmax(axis=1)
    certain = temperature[:, 0] == 0
    if certain.any():
        drawn[certain] = logprobs[certain].argmax(axis=1)
    return drawn


def _narrowed(weights: np.ndarray, samplings: Sequence[Sampling]) -> np.ndarray:
    """``weights`` [rows, symbols], 0 for the symbols that top-k, and after it top-p, leave out."""
    order = np.argsort(-weights, axis=1, kind="stable")  # the most likely first, of equal ones the first
    falling = np.take_along_axis(weights, order, axis=1).astype(np.float64)
    top_k = np.array([s.top_k or weights.shape[1] for s in samplings])[:, None]
    falling[np.arange(weights.shape[1])[None] >= top_k] = 0.0
    falling /= falling.sum(axis=1, keepdims=True)
    before = np.cumsum(falling, axis=1) - falling  # the probability of all that are more likely
    top_p = np.array([s.top_p for s in samplings])[:, None]
    falling[(before >= top_p) & (before > 0)] = 0.0  # the most likely symbol always stays
    narrowed = np.empty_like(falling)
    np.put_along_axis(narrowed, order, falling, axis=1)
    return narrowed
