"""The proof: the engine answers like the module itself in PyTorch, outputs and states.

Exporters have got modules silently wrong; so every artifact is run beside its module, whole, in chunks, step by step
and in batches, before anybody sees it. Knows nothing of exporters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from export.errors import ExportError
from export.modules.axes import NOT_FINITE, Axes, draw
from export.modules.calling import Call, Named, next_of
from export.parity import largest_error
from export.trial import ALONE, SHARED, Answer, Case, play, states_of
from service.engine.runtime import Engine

SEQUENCES, LONGEST = 10, 24


@dataclass(frozen=True)
class Parity:
    """The largest differences of outputs and of states, in units of 1 or of the value where that is larger."""

    outputs: float
    states: float
    tolerance: float
    sequences: int
    steps: int


@dataclass(frozen=True)
class _Sequence:
    """What goes into the engine, and what the module makes of it: outputs [steps, *step shape], states without rows."""

    case: Case
    outputs: dict[str, np.ndarray]
    states: dict[str, np.ndarray]


def usual_tolerance(call: Call) -> float:
    """The square root of the resolution of the coarsest float that takes part: 3e-4 for float32, 3e-2 for float16.

    Rounding grows from step to step, in PyTorch as well; what a wrong gate, weight or order of axes does begins at
    1e-2 of such units in float32.
    """
    tensors = (*call.module.parameters(), *call.module.buffers(), *call.sequences.values(), *call.carried.values())
    return float(max((torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point()), default=0.0) ** 0.5)


def prove(engine: Engine, call: Call, axes: Axes, tolerance: float) -> Parity:
    """Run random sequences through both; ExportError says in which way of running the engine differs."""
    sequences = _sequences(engine, call, axes)
    random, errors = np.random.default_rng(0), {"outputs": 0.0, "states": 0.0}
    for plan in (ALONE, *SHARED):
        answers = play(engine, [sequence.case for sequence in sequences], plan, random)
        for what, error in _errors(engine, answers, sequences).items():
            if not error <= tolerance:  # written so that NaN fails, too
                raise ExportError(
                    f"run as {plan.name}, its {what} differ from the module's own by {error:.1e} "
                    f"where {tolerance:.0e} is allowed"
                )
            errors[what] = max(errors[what], error)
    steps = sum(sequence.case.steps for sequence in sequences)
    return Parity(**errors, tolerance=tolerance, sequences=len(sequences), steps=steps)


def _sequences(engine: Engine, call: Call, axes: Axes) -> list[_Sequence]:
    """Sequences of 1 to ``LONGEST`` steps from the initial state, each run alone in PyTorch, whole if it can be."""
    lengths = [1, LONGEST, *np.random.default_rng(0).integers(2, LONGEST, SEQUENCES - 2).tolist()]
    return [_sequence(engine, call, axes, steps, seed) for seed, steps in enumerate(lengths)]


def _sequence(engine: Engine, call: Call, axes: Axes, steps: int, seed: int) -> _Sequence:
    sizes = [steps] if axes.cut else [1] * steps
    parts = [draw(call, axes, 1, size, seed=seed * LONGEST + k) for k, size in enumerate(sizes)]
    answers: list[Named] = []
    for part in parts:
        answers.append(call({**part, **{name: (answers or [part])[-1][name] for name in call.carried}}))
    chunk = tuple(_steps(parts, spec.name, axes) for spec in engine.signature.inputs)
    outputs = {name: _steps(answers, name, axes) for name in call.outputs}
    outputs |= {next_of(name): _steps(answers, name, axes) for name in call.carried if not call.outputs}
    states = {name: _steps(answers[-1:], name, axes)[0] for name in call.carried}
    if not all(np.isfinite(array).all() for array in (*outputs.values(), *states.values())):
        raise ExportError(NOT_FINITE)
    return _Sequence(Case(engine.initial_row, chunk), outputs, states)


def _steps(parts: Sequence[Mapping[str, Tensor]], name: str, axes: Axes) -> np.ndarray:
    """One tensor of a single row as [steps, *step shape]."""
    batch, time = axes.batch[name], axes.time.get(name)
    arrays = [part[name].numpy() for part in parts]
    if time is not None:
        arrays = [np.moveaxis(array, time, 0) for array in arrays]
        batch = batch + 1 if batch is not None and batch < time else batch
    else:
        arrays = [array[None] for array in arrays]
        batch = batch + 1 if batch is not None else None
    joined = np.concatenate(arrays)
    return joined if batch is None else joined.take(0, batch)


def _errors(engine: Engine, answers: Sequence[Answer], sequences: Sequence[_Sequence]) -> dict[str, float]:
    """The largest difference of outputs and of states; NaN where the engine's are not finite."""
    outputs, states = [0.0], [0.0]
    for answer, sequence in zip(answers, sequences, strict=True):
        named = zip(engine.signature.outputs, answer.outputs, strict=True)
        outputs += [largest_error(array, sequence.outputs[spec.name]) for spec, array in named]
        kept = states_of(engine, answer.row)
        states += [largest_error(kept[name], array) for name, array in sequence.states.items()]
    return {"outputs": float(np.max(outputs)), "states": float(np.max(states))}
