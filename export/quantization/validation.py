"""Validation data for an artifact, and the loss of an engine on it.

Owns reading, encoding and the losses, which are those that training reports: nats per symbol for text, squared error of
the next row, in units of each feature's scale, for tables. Runs the engine that serves, states carried.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.errors import ExportError
from service.artifact import Signature
from service.engine.runtime import Engine

_STREAMS = 16  # of a text, side by side, as training measures; each reads its first symbols without a context
_CHUNK = 256  # steps of one call; it bounds memory


def read_data(path: Path, signature: Signature) -> np.ndarray:
    """A text as streams of tokens [streams, length], a CSV as rows of features [1, length, features].

    Raises:
        ExportError, ModelError: in one sentence, what is wrong with the file, or that the task takes none.
    """
    if signature.task == "language":
        return _tokens(path, signature.vocabulary or ())
    if signature.task == "forecast":
        return _rows(path, signature.features or ())
    raise ExportError("--data is for language and forecast artifacts: of a generic one no loss is known")


def _tokens(path: Path, vocabulary: tuple[str, ...]) -> np.ndarray:
    from model.text import read_text  # needs torch

    text, _ = read_text(path)
    numbers = {symbol: i for i, symbol in enumerate(vocabulary)}
    unknown = next(((i, symbol) for i, symbol in enumerate(text) if symbol not in numbers), None)
    if unknown is not None:
        raise ExportError(f"{path} holds {unknown[1]!r} at character {unknown[0]}, which is not in the vocabulary")
    if len(text) < 2 * _STREAMS:
        raise ExportError(f"{path} has {len(text)} characters, and at least {2 * _STREAMS} are needed")
    length = len(text) // _STREAMS
    return np.array([numbers[symbol] for symbol in text[: _STREAMS * length]]).reshape(_STREAMS, length)


def _rows(path: Path, features: tuple[str, ...]) -> np.ndarray:
    from model.table import read_table

    rows = read_table(path, features[0], features[1:], None).rows
    if len(rows) < 2:
        raise ExportError(f"{path} has {len(rows)} row, and at least 2 are needed")
    return np.array([rows])


def loss(engine: Engine, data: np.ndarray) -> float:
    """The mean loss of predicting each step from those before it."""
    spec, scaling = engine.signature.inputs[0], engine.signature.scaling
    scale = np.array(scaling.scale) if scaling else 1.0
    sequences, total, count = data.astype(spec.dtype), 0.0, 0
    for start, answers in _answers(engine, sequences):
        targets = sequences[:, start + 1 : start + 1 + answers.shape[1]]
        if engine.signature.task == "language":
            errors = -np.take_along_axis(answers.astype(np.float64), targets[..., None], axis=2)
        else:
            errors = ((answers.astype(np.float64) - targets) / scale) ** 2
        total, count = total + float(errors.sum()), count + errors.size
    return total / count


def _answers(engine: Engine, sequences: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The first output for every step but the last, chunk by chunk, with the step at which each begins."""
    rows = [engine.initial_row] * len(sequences)
    size = _CHUNK if engine.signature.has_time_axis else 1
    for start in range(0, sequences.shape[1] - 1, size):
        steps = sequences[:, start : min(start + size, sequences.shape[1] - 1)]
        done = engine.run(rows, [(row,) for row in steps])
        rows = done.rows
        yield start, done.outputs[engine.signature.outputs[0].name]
