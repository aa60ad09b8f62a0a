"""Sequences run through the engine in the ways in which the service may come to run them.

Owns the choice of cases and of ticks. Knows nothing of PyTorch or of what the answers should be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.engine.probe import random_chunk
from service.engine.runtime import Engine
from service.state import Chunk

CASES, LONGEST = 96, 40


@dataclass(frozen=True)
class Case:
    """One sequence, and the row (a session's packed state) that it starts from."""

    start: bytes
    chunk: Chunk

    @property
    def steps(self) -> int:
        """The length of the sequence."""
        return len(self.chunk[0])


@dataclass(frozen=True)
class Answer:
    """What a case came to: each output as [steps, *step shape], and the row after the last step."""

    outputs: tuple[np.ndarray, ...]
    row: bytes


@dataclass(frozen=True)
class Plan:
    """How cases share ticks: the fewest and the most rows of a tick, and steps of a row's turn (None: all of them)."""

    name: str
    rows: tuple[int, int]
    turn: tuple[int, int] | None


ALONE = Plan("one row alone, whole", rows=(1, 1), turn=None)
SHARED = (
    Plan("ragged batches, whole", rows=(2, 32), turn=None),
    Plan("ragged, chunks of 1-8", rows=(1, 32), turn=(1, 8)),
    Plan("batches, step by step", rows=(1, 32), turn=(1, 1)),
    Plan(f"one batch of {CASES}", rows=(CASES, CASES), turn=None),
)


def draw_cases(engine: Engine, random: np.random.Generator) -> list[Case]:
    """Random sequences of 1 to ``LONGEST`` steps; half of them start fresh, half from states that the model reached."""
    lengths = [1, LONGEST, *random.integers(1, LONGEST + 1, CASES - 2)]
    chunks = [random_chunk(engine.signature, int(steps), random) for steps in lengths]
    fresh = [Case(engine.initial_row, chunk) for chunk in chunks]
    reached = play(engine, fresh, ALONE, random)
    return [case if i % 2 else Case(reached[i - 1].row, case.chunk) for i, case in enumerate(fresh)]


def play(engine: Engine, cases: Sequence[Case], plan: Plan, random: np.random.Generator) -> list[Answer]:
    """Run every case to its end, each in its own order, in ticks of randomly chosen cases."""
    rows, done = [case.start for case in cases], [0] * len(cases)
    parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in cases]
    while waiting := [i for i, case in enumerate(cases) if done[i] < case.steps]:
        left = {i: cases[i].steps - done[i] for i in waiting}
        turns = _next_tick(engine, left, plan, random)
        chunks = [tuple(a[done[i] : done[i] + steps] for a in cases[i].chunk) for i, steps in turns.items()]
        run = engine.run([rows[i] for i in turns], chunks)
        for k, (i, steps) in enumerate(turns.items()):
            rows[i], done[i] = run.rows[k], done[i] + steps
            parts[i].append(tuple(output[k, :steps] for output in run.outputs.values()))
    joined = [tuple(np.concatenate(output) for output in zip(*turns, strict=True)) for turns in parts]
    return [Answer(outputs, row) for outputs, row in zip(joined, rows, strict=True)]


def states_of(engine: Engine, row: bytes) -> dict[str, np.ndarray]:
    """The state tensors of one row, by the name of their inputs, without a batch axis."""
    return engine.layout.unpack_one(row)


def _next_tick(engine: Engine, left: Mapping[int, int], plan: Plan, random: np.random.Generator) -> dict[int, int]:
    """Which cases run next, and how many of the steps they have left each of them takes."""
    count = min(len(left), int(random.integers(plan.rows[0], plan.rows[1] + 1)))
    chosen = random.choice(list(left), count, replace=False).tolist()
    low, high = plan.turn or (LONGEST, LONGEST)
    if not engine.signature.has_time_axis:
        low, high = 1, 1
    turns = {i: min(left[i], int(random.integers(low, high + 1))) for i in chosen}
    if engine.ragged:
        return turns
    return {i: steps for i, steps in turns.items() if steps == turns[chosen[0]]}
