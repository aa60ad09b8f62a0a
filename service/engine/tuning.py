"""Choose, by measuring this machine and this model for a moment, how its ticks run best.

A model's usual tick has 64 rows (fewer, where those take longer than a tenth of a second). Where it is long, 2 ms and
more, it is threads that matter; where it is short, nobody waits for it, and the other cores have requests to read, but
what a call costs by itself matters. So what is chosen is, each only where the operator has not said it,

- of long ticks ``threads`` of ONNX Runtime: twice the number, and twice again, as long as each doubling takes a quarter
  off the wall time of a tick for a quarter more CPU time at most, answers a row alone no later, and changes no bit;
  one core is left to the event loop, which serves meanwhile, unless that is little beside the computing;
- of short ticks ``max_batch``: twice the limit, or half of it, as long as a row of a full tick then costs a tenth less,
- and their padding, ``min_rows`` of the engine: more rows than the probe asks for, where they cost a tenth less.

Another way takes turns with the usual one, and has to stay within these bounds every time, in CPU as in wall time: what
disturbs one disturbs the other, and where noise could decide, the usual way stays.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from service.engine import ort
from service.engine.probe import probe, random_chunk
from service.engine.runtime import Engine, Run
from service.errors import ArtifactError
from service.settings import Settings

_ROWS, _GROWTH, _MEASURABLE_S, _LONG_S = 64, 4, 0.1, 0.002
_ROUNDS = 3
_PADDINGS = (2, 3, 4, 8)
_HEAVY_S = 0.0002  # of computing a row: two to four times of what it takes to serve one

FAILURES: tuple[type[Exception], ...] = (ArtifactError, *ort.ERRORS)  # of other threads, or of larger ticks

Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Choice:
    """How a model runs. The padding is the engine's own ``min_rows``."""

    threads: int
    max_batch: int

    @classmethod
    def fixed(cls, settings: Settings) -> "Choice":
        """What the settings say, without measuring."""
        return cls(settings.threads, settings.max_batch)


@dataclass(frozen=True, slots=True)
class Cost:
    """Wall and CPU time: in seconds, or in units of another cost."""

    wall: float
    cpu: float


Bounds = Cost  # what another way may take of the usual one
_MORE_THREADS, _NO_LATER, _CHEAPER = Bounds(0.75, 1.25), Bounds(1.1, 2.0), Bounds(0.9, 0.9)


def spent() -> Cost:
    """What this process has spent so far, all its threads together, in seconds."""
    return Cost(time.perf_counter(), time.process_time())


class Tuner:
    """Measures one model that was probed. ``engine`` and ``choice`` are the best known so far."""

    def __init__(self, engine: Engine, settings: Settings, spent: Callable[[], Cost] = spent) -> None:
        self.engine = engine
        self.choice = Choice.fixed(settings)
        self._given, self._most_rows = settings.model_fields_set, settings.max_cells
        self._spent = spent
        random = np.random.default_rng(0)
        self._chunks = [random_chunk(engine.signature, 1, random) for _ in range(_ROWS)]
        self._rows = list[bytes]()

    def tune(self, cores: int, reopen: Callable[[int], Engine]) -> None:
        """Choose; ``reopen`` opens the same artifact with another number of threads.

        Where it raises one of ``FAILURES``, ``engine`` and ``choice`` are good all the same.
        """
        if not self.engine.signature.batched:  # rows run one after the other, however many share a tick
            return
        rows, tick_s = self._usual_tick()
        if tick_s < _LONG_S:
            self._choose_padding()
            self._choose_limit()
        elif self.engine.provider == "cpu":
            self._choose_threads(rows, cores if self._is_heavy(rows) else cores - 1, reopen)

    def _usual_tick(self) -> tuple[int, float]:
        """How many rows it has, and the seconds that it takes."""
        rows = 1
        while (tick_s := self._cost(self._tick(self.engine, rows)).wall) * _GROWTH < _MEASURABLE_S and rows < _ROWS:
            rows *= _GROWTH
        return rows, tick_s

    def _is_heavy(self, rows: int) -> bool:
        """Whether serving a row is little beside computing it, each time that it is measured."""
        tick = self._tick(self.engine, rows)
        return all(self._cost(tick).wall >= rows * _HEAVY_S for _ in range(_ROUNDS))

    def _choose_threads(self, rows: int, cores: int, reopen: Callable[[int], Engine]) -> None:
        while "threads" not in self._given and (threads := 2 * self.choice.threads) <= cores:
            other = reopen(threads)
            if not self._faster(other, rows):
                return
            probe(other)
            if not self._as_exact(other, rows):
                return
            self.engine, self.choice = other, replace(self.choice, threads=threads)

    def _choose_limit(self) -> None:
        for factor in () if "max_batch" in self._given else (2, 0.5):
            while _ROWS <= (rows := int(self.choice.max_batch * factor)) <= self._most_rows:
                bounds = Bounds(_CHEAPER.wall * factor, _CHEAPER.cpu * factor)
                if not self._within(bounds, *(self._tick(self.engine, n) for n in (self.choice.max_batch, rows))):
                    break
                self.choice = replace(self.choice, max_batch=rows)

    def _choose_padding(self) -> None:
        engine, best = self.engine, self.engine.min_rows

        def filled(rows: int) -> None:
            engine.min_rows = rows
            engine.run(self._rows[:1], self._chunks[:1])

        try:
            for rows in _PADDINGS:
                if rows > best and self._within(_CHEAPER, partial(filled, best), partial(filled, rows)):
                    best = rows
        finally:
            engine.min_rows = best

    def _as_exact(self, other: Engine, rows: int) -> bool:
        """Whether the other engine is of the same file, keeps the same promises, and answers with the same bits."""
        one, two = ((e.fingerprint, e.bit_exact, e.min_rows) for e in (self.engine, other))
        ticks = [(self._tick(self.engine, n)(), self._tick(other, n)()) for n in (rows, 1)]
        return one == two and all(_bits(usual) == _bits(another) for usual, another in ticks)

    def _faster(self, other: Engine, rows: int) -> bool:
        """Whether a usual tick pays for the threads, and a row alone does not suffer from them."""
        tests = ((rows, _MORE_THREADS), (1, _NO_LATER))
        return all(self._within(bounds, self._tick(self.engine, n), self._tick(other, n)) for n, bounds in tests)

    def _tick(self, engine: Engine, rows: int) -> Callable[[], Run]:
        """A tick of so many rows, each in a place of its own in memory, as in service."""
        self._rows += [bytes(bytearray(engine.initial_row)) for _ in range(rows - len(self._rows))]
        chunks = self._chunks * (-(-rows // _ROWS))
        return partial(engine.run, self._rows[:rows], chunks[:rows])

    def _within(self, bounds: Bounds, usual: Way, other: Way) -> bool:
        """Whether the other way stays within the bounds in each round of the two, after one that does not count."""
        usual(), other()
        for _ in range(_ROUNDS):
            one, two = self._cost(usual), self._cost(other)
            if two.wall > bounds.wall * one.wall or two.cpu > bounds.cpu * one.cpu:
                return False
        return True

    def _cost(self, way: Way) -> Cost:
        before = self._spent()
        way()
        after = self._spent()
        return Cost(after.wall - before.wall, after.cpu - before.cpu)


def _bits(run: Run) -> list[bytes]:
    return [*run.rows, *(output.tobytes() for output in run.outputs.values())]
