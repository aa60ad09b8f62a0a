"""What a conversion costs and brings: microseconds of CPU per step, and how far answers and states stray.

Owns the way of measuring: both artifacts in one run, turn by turn, the best of several turns, since a machine has other
work to do. Decides nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.parity import largest_error
from service.engine.probe import random_chunk
from service.engine.runtime import Engine

BATCH = 64
_TURNS, _CALLS = 9, 10
ERROR_ROWS, ERROR_STEPS = 4, 1000
_CHUNK = 100


@dataclass(frozen=True)
class Errors:
    """The largest differences of outputs and states, in units (see ``export/parity.py``); NaN: not finite."""

    outputs: float
    states: float


def microseconds(before: Engine, after: Engine) -> tuple[dict[int, float], dict[int, float]]:
    """CPU time of one step of one row, for each engine, by the rows in its batch: 1 and 64."""
    random = np.random.default_rng(0)
    chunks = [random_chunk(before.signature, 1, random) for _ in range(BATCH)]
    best = {1: np.inf, BATCH: np.inf}, {1: np.inf, BATCH: np.inf}
    for _ in range(_TURNS):
        for engine, found in zip((before, after), best, strict=True):
            for rows in found:
                found[rows] = min(found[rows], _turn(engine, chunks[:rows]))
    return best


def _turn(engine: Engine, chunks: Sequence[tuple[np.ndarray, ...]]) -> float:
    rows = [engine.initial_row] * len(chunks)
    engine.run(rows, chunks)  # what the other engine has left in the caches is not counted
    start = time.process_time()
    for _ in range(_CALLS):
        engine.run(rows, chunks)
    return (time.process_time() - start) / (_CALLS * len(chunks)) * 1e6


def errors(before: Engine, after: Engine) -> Errors:
    """Random sequences of 1,000 steps through both, each carrying its own states."""
    signature, random = before.signature, np.random.default_rng(0)
    size = _CHUNK if signature.has_time_axis else 1
    rows = {engine: [engine.initial_row] * ERROR_ROWS for engine in (before, after)}
    scale = np.array(signature.scaling.scale) if signature.scaling else None
    outputs, states = [0.0], [0.0]
    for _ in range(0, ERROR_STEPS, size):
        chunks = [random_chunk(signature, size, random) for _ in range(ERROR_ROWS)]
        runs = {engine: engine.run(rows[engine], chunks) for engine in rows}
        rows = {engine: run.rows for engine, run in runs.items()}
        pairs = zip(runs[after].outputs.values(), runs[before].outputs.values(), strict=True)
        outputs += [largest_error(have, want, None if i else scale) for i, (have, want) in enumerate(pairs)]
        tensors = [engine.layout.gather(rows[engine]) for engine in (after, before)]
        states += [largest_error(tensors[0][name], tensors[1][name]) for name in tensors[0]]
    return Errors(float(np.max(outputs)), float(np.max(states)))
