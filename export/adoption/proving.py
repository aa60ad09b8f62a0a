"""What holds of a foreign model, shown by running it through the very engine that will serve it.

Owns the questions and what is refused. The engine and the ways to run sequences are those of the parity gate.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from export.adoption.axes import UNROLLED
from export.errors import ExportError
from export.parity import largest_error, uncalibrated
from export.trial import ALONE, Answer, Case, Plan, play
from service.artifact import Proof, Signature
from service.engine import ort
from service.engine.probe import probe, random_chunk
from service.engine.runtime import Engine, load_engine
from service.errors import ArtifactError
from service.settings import Settings
from service.state import Chunk

_ROWS, _STEPS = 12, 17
NOT_FINITE = sys.float_info.max  # a proof holds numbers only: the error of chunks that come to NaN or infinity
_LOUD = 100.0  # so much larger are the neighbours' inputs, so that a faint leak grows as much

_TOGETHER = Plan("one batch", rows=(_ROWS, _ROWS), turn=None)
_CUT = Plan("alone, in chunks", rows=(1, 1), turn=(1, 4))


def prove(path: Path, settings: Settings, told: Callable[[str], None]) -> Proof:
    """Run every question on the artifact at ``path``; ``told`` hears which one is next.

    Raises:
        ExportError: the model cannot be served as its signature says: rows leak into each other, lengths are not
            honoured, an imported state does not continue, or ordinary inputs come to NaN or infinity.
    """
    hint = ""
    try:
        engine = load_engine(path, settings)
        hint = _hint(engine.signature)
        told("from how many rows on answers are the same bits")
        probe(engine)
        return _Questions(engine, path, settings, told).proof()
    except ArtifactError as error:
        raise ExportError(f"the model cannot be served: {error.detail.removeprefix(f'{path}: ')}{hint}") from error
    except ort.ERRORS as error:
        raise ExportError(f"the model does not run: {ort.first_line(error)}{hint}") from error


def _hint(signature: Signature) -> str:
    """What is probably wrong with a graph that does not run, where it leaves the steps open and answers none."""
    opened = any(spec.time_axis is not None and spec.shape[spec.time_axis] is None for spec in signature.inputs)
    return f" ({UNROLLED})" if opened and not signature.has_time_axis else ""


class _Questions:
    def __init__(self, engine: Engine, path: Path, settings: Settings, told: Callable[[str], None]) -> None:
        self._engine, self._path, self._settings, self._told = engine, path, settings, told
        self._tolerance = uncalibrated(engine.signature)
        self._exact_from = engine.min_rows if engine.bit_exact else None
        engine.min_rows = 1  # rows are to be seen as they are, not filled up
        self._random = np.random.default_rng(0)

    def proof(self) -> Proof:
        cases = self._cases([_STEPS] * _ROWS)
        self._told("a row alone")
        alone = self._play(cases, ALONE)
        self._check_finite(alone)
        self._check_repeats(cases, alone)
        self._told("rows beside other neighbours")
        self._check_leak(cases)
        self._told("rows in a batch")
        batch_error = self._error(self._play(cases, _TOGETHER), alone)
        if not batch_error <= self._tolerance:
            raise ExportError(
                f"rows are not the same in a batch as alone: they differ by {batch_error:.1e} where "
                f"{self._tolerance:.0e} is allowed; serve the model one row per call with --unbatched"
            )
        self._told("sequences in chunks")
        chunk_error = min(self._error(self._play(cases, _CUT), alone), NOT_FINITE)
        self._check_lengths()
        self._told("an imported state")
        return Proof(
            rows_independent=True,
            batch_error=batch_error,
            bit_exact_from=self._exact_from,
            chunked=chunk_error <= self._tolerance,
            chunk_error=chunk_error,
            continues=self._continues(cases),
        )

    def _cases(self, steps: Sequence[int]) -> list[Case]:
        """Sequences of so many steps; half of them start fresh, half from states that the model reached."""
        chunks = [random_chunk(self._engine.signature, n, self._random) for n in steps]
        fresh = [Case(self._engine.initial_row, chunk) for chunk in chunks]
        reached = self._play(fresh, ALONE)
        return [case if i % 2 else Case(reached[i - 1].row, case.chunk) for i, case in enumerate(fresh)]

    def _play(self, cases: Sequence[Case], plan: Plan) -> list[Answer]:
        return play(self._engine, cases, plan, np.random.default_rng(1))

    def _error(self, have: Sequence[Answer], want: Sequence[Answer]) -> float:
        """The largest difference in units; infinity where a value is not finite."""
        pairs = [
            pair
            for a, b in zip(have, want, strict=True)
            for pair in zip(self._tensors(a), self._tensors(b), strict=True)
            if pair[0].size
        ]
        error = max((largest_error(a, b) for a, b in pairs), key=lambda e: (not np.isfinite(e), e))
        return float(error) if np.isfinite(error) else float("inf")

    def _tensors(self, answer: Answer) -> list[np.ndarray]:
        return [*answer.outputs, *self._engine.layout.unpack_one(answer.row).values()]

    def _check_finite(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if not all(np.isfinite(tensor).all() for tensor in self._tensors(answer)):
                raise ExportError(
                    "the model answers NaN or infinity for ordinary inputs (numbers around 0, or 0 and 1), "
                    "of which nothing can be shown"
                )

    def _check_repeats(self, cases: Sequence[Case], alone: Sequence[Answer]) -> None:
        """The same question, the same answer: else nothing else that is asked means anything."""
        error = self._error(self._play(cases, ALONE), alone)
        if not error <= self._tolerance:
            raise ExportError(
                f"the model answers the same question differently each time, by {error:.1e}: "
                "export it without random operators, and in evaluation mode (dropout off)"
            )

    def _check_leak(self, cases: Sequence[Case]) -> None:
        """Change what all neighbours of a row hold; the row must not notice."""
        plain = self._for_one_call(cases)
        want = self._run(plain)
        for kept in (0, _ROWS // 2, _ROWS - 1):
            others = [Case(plain[i - 1].start, _loud(plain[i - 1].chunk)) for i in range(_ROWS)]
            have = self._run([plain[i] if i == kept else other for i, other in enumerate(others)])
            error = self._error([have[kept]], [want[kept]])
            if not error <= self._tolerance / _LOUD:
                raise ExportError(
                    f"rows leak into each other: what its neighbours hold changes a row by {error:.1e} where "
                    f"{self._tolerance / _LOUD:.0e} is allowed; serve the model one row per call with --unbatched"
                )

    def _for_one_call(self, cases: Sequence[Case]) -> list[Case]:
        """The first steps of each case: as many as one call takes."""
        steps = _STEPS if self._engine.signature.has_time_axis else 1
        return [Case(c.start, tuple(a[:steps] for a in c.chunk)) for c in cases]

    def _run(self, cases: Sequence[Case], engine: Engine | None = None) -> list[Answer]:
        """All cases in one call."""
        done = (engine or self._engine).run([c.start for c in cases], [c.chunk for c in cases])
        return [Answer(tuple(o[i] for o in done.outputs.values()), row) for i, row in enumerate(done.rows)]

    def _check_lengths(self) -> None:
        """Rows of many lengths side by side, outputs and final states."""
        if self._engine.signature.lengths is None:
            return
        self._told("rows of several lengths")
        cases = self._cases([1 + i % _STEPS for i in range(_ROWS)])
        error = self._error(self._play(cases, _TOGETHER), self._play(cases, ALONE))
        if not error <= self._tolerance:
            raise ExportError(
                f"the input {self._engine.signature.lengths!r} is not honoured as the rows' lengths: a row beside "
                f"longer ones differs by {error:.1e} where {self._tolerance:.0e} is allowed; "
                "if it is something else, say --lengths none"
            )

    def _continues(self, cases: Sequence[Case]) -> bool:
        """Whether states that were taken apart and packed again go on alike in an engine that was loaded anew."""
        cases = self._for_one_call(cases)
        reached = self._run(cases)
        other = load_engine(self._path, self._settings)
        rows = [other.layout.pack_one(self._engine.layout.unpack_one(answer.row)) for answer in reached]
        here = self._run([Case(a.row, c.chunk) for a, c in zip(reached, cases, strict=True)])
        there = self._run([Case(row, c.chunk) for row, c in zip(rows, cases, strict=True)], other)
        if [_bits(a) for a in here] != [_bits(a) for a in there]:
            raise ExportError(
                "a state that was exported and imported does not continue with the same bits: "
                "the model answers the same question differently each time, or keeps something besides its states"
            )
        return True


def _bits(answer: Answer) -> tuple[bytes, ...]:
    return (*(output.tobytes() for output in answer.outputs), answer.row)


def _loud(chunk: Chunk) -> Chunk:
    """Other values of the same types: floats far larger, whole numbers and truths turned round."""
    return tuple(
        a * a.dtype.type(_LOUD) if a.dtype.kind == "f" else (1 - a.astype(np.int64)).astype(a.dtype) for a in chunk
    )
