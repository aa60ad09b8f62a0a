"""The gate: an artifact answers like the network it was made from, and always the same.

Owns the comparisons and the tolerance. PyTorch comes in as functions (``export/network.py`` has them), so that an
artifact can be verified where there is no PyTorch. The engine is the very one that serves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.errors import ExportError
from export.trial import ALONE, SHARED, Answer, Case, draw_cases, play, states_of
from service.artifact import Signature
from service.engine.runtime import Engine
from service.state import Chunk

# Differences are told in units: for a value of a forecast its feature's scale, for any other value 1, or the value
# itself where that is larger. A small network's float32 agrees between two libraries to about 1e-6; what a wrong
# gate, weight or scaling does begins at 1e-2.
TOLERANCE = 1e-5
# A trained network may amplify rounding (2e-5 and more over 80 steps were seen), and PyTorch's own float32 then
# strays from float64 as far. So many times that much is allowed.
AMPLIFICATION = 10.0
# Where there is no PyTorch to tell how much a network amplifies rounding; the second for half precision.
UNCALIBRATED, UNCALIBRATED_HALF = 1e-3, 1e-2

# One row's states by name, and its chunk -> the first output [steps, *step shape], and the states after the chunk.
Run = Callable[[Mapping[str, np.ndarray], Chunk], tuple[np.ndarray, Mapping[str, np.ndarray]]]


@dataclass(frozen=True)
class Reference:
    """The network in PyTorch, in the precision of the artifact and in a higher one that tells the former's rounding."""

    float32: Run
    float64: Run


@dataclass(frozen=True)
class Difference:
    """The largest differences from a reference, in units; NaN where something was not finite."""

    outputs: float
    states: float


@dataclass(frozen=True)
class Comparison:
    """One way of running the cases: against PyTorch, and against the artifact's own rows run alone and whole."""

    way: str
    pytorch: Difference | None
    alone: Difference
    identical: bool


@dataclass(frozen=True)
class Report:
    """What the gate found; ``bit_exact`` and ``min_rows`` are what the engine's own probe says."""

    comparisons: tuple[Comparison, ...]
    sequences: int
    steps: int
    finite: bool
    bit_exact: bool
    min_rows: int
    tolerance: float

    def require(self) -> None:
        """ExportError with the first thing that is wrong, in one sentence."""
        if not self.finite:
            raise ExportError("the artifact fails: it answers NaN or infinity for ordinary inputs")
        for comparison in self.comparisons:
            self._require_small(comparison.way, comparison.pytorch, "PyTorch")
            self._require_small(comparison.way, comparison.alone, "the same row run alone and whole")
            if self.bit_exact and not comparison.identical:
                raise ExportError(
                    f"the artifact fails: run as {comparison.way}, the last bits differ from the same row run alone, "
                    "although the engine takes them for bit-exact"
                )

    def _require_small(self, way: str, found: Difference | None, reference: str) -> None:
        for what, error in (("outputs", found.outputs), ("states", found.states)) if found else ():
            if not error <= self.tolerance:  # written so that NaN fails, too
                raise ExportError(
                    f"the artifact fails: run as {way}, its {what} differ from {reference} by {error:.1e} "
                    f"where {self.tolerance:.0e} is allowed"
                )


def check(engine: Engine, reference: Reference | None = None, seed: int = 0) -> Report:
    """Run random sequences in every way and compare; the engine must have been probed.

    A model that was adopted as one whose sequences must not be cut is not run in chunks. The same seed asks the same
    questions. Raises ExportError when an output has another number of steps than its input.
    """
    random = np.random.default_rng(seed)
    cases = draw_cases(engine, random)
    expected = _expected(engine, cases, reference.float32) if reference else None
    exact = _expected(engine, cases, reference.float64) if reference else None
    alone = play(engine, cases, ALONE, random)
    comparisons = [_compare(engine, ALONE.name, alone, alone, expected)]
    proof = engine.signature.proof
    for plan in SHARED if proof is None or proof.chunked else [plan for plan in SHARED if plan.turn is None]:
        comparisons.append(_compare(engine, plan.name, play(engine, cases, plan, random), alone, expected))
    return Report(
        comparisons=tuple(comparisons),
        sequences=len(cases),
        steps=sum(case.steps for case in cases),
        finite=all(np.isfinite(a).all() for answer in alone for a in (*answer.outputs, *_states(engine, answer))),
        bit_exact=engine.bit_exact,
        min_rows=engine.min_rows,
        tolerance=_tolerance(engine, expected, exact),
    )


def largest_error(have: np.ndarray, want: np.ndarray, scale: np.ndarray | None = None) -> float:
    """The largest difference in units (see ``TOLERANCE``); NaN where one of the two is not finite.

    A value may be so large beside its ``scale`` that its type cannot resolve ``TOLERANCE`` of it: the unit then
    grows with the value, such that the tolerance stands for two of its last digits.
    """
    exact = want.astype(np.float64)
    if scale is None:
        unit = np.maximum(1.0, np.abs(exact))
    else:
        unit = np.maximum(scale, np.abs(exact) * (2 * np.finfo(have.dtype).eps / TOLERANCE))
    with np.errstate(invalid="ignore"):  # infinity less infinity: NaN is the answer that is wanted
        return float(np.max(np.abs(have.astype(np.float64) - exact) / unit))


def uncalibrated(signature: Signature) -> float:
    """The difference, in units, that passes for rounding where no PyTorch tells how much of it there is."""
    types = [tensor.dtype for tensor in signature.inputs + signature.outputs]
    types += [state.dtype for state in signature.states]
    return UNCALIBRATED_HALF if "float16" in types else UNCALIBRATED


def _expected(engine: Engine, cases: Sequence[Case], run: Run) -> list[Answer]:
    answers = []
    for case in cases:
        output, states = run(states_of(engine, case.start), case.chunk)
        answers.append(Answer((output,), engine.layout.pack_one(states)))
    return answers


def _tolerance(engine: Engine, expected: Sequence[Answer] | None, exact: Sequence[Answer] | None) -> float:
    if expected is None or exact is None:
        return uncalibrated(engine.signature)
    own = _difference(engine, expected, exact)
    return max(TOLERANCE, AMPLIFICATION * max(own.outputs, own.states))


def _compare(
    engine: Engine, way: str, answers: Sequence[Answer], alone: Sequence[Answer], expected: Sequence[Answer] | None
) -> Comparison:
    return Comparison(
        way=way,
        pytorch=_difference(engine, answers, expected) if expected else None,
        alone=_difference(engine, answers, alone),
        identical=all(_bits(a) == _bits(b) for a, b in zip(answers, alone, strict=True)),
    )


def _difference(engine: Engine, answers: Sequence[Answer], references: Sequence[Answer]) -> Difference:
    scaling = engine.signature.scaling
    scale = np.array(scaling.scale) if scaling is not None else None
    outputs, states = [], []
    for have, want in zip(answers, references, strict=True):
        outputs.append(largest_error(have.outputs[0], want.outputs[0], scale))
        # PyTorch answers the first output only.
        outputs += [largest_error(a, b) for a, b in zip(have.outputs[1:], want.outputs[1:], strict=False)]
        states += [largest_error(a, b) for a, b in zip(_states(engine, have), _states(engine, want), strict=True)]
    return Difference(float(np.max(outputs)), float(np.max(states)))


def _states(engine: Engine, answer: Answer) -> list[np.ndarray]:
    return list(states_of(engine, answer.row).values())


def _bits(answer: Answer) -> tuple[bytes, ...]:
    return (*(output.tobytes() for output in answer.outputs), answer.row)
