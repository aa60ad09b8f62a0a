"""The gates of an artifact's recurrent operators at given steps, computed again from its own weights.

ONNX Runtime's fused operators do not tell their gates. So the steps are run once more through the same graph with
further outputs: what goes into each operator, and its weights. The rest is NumPy (``cells.py``).
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from service.artifact import Recurrence
from service.engine import cells, onnx_file, ort
from service.engine.providers import open_session
from service.engine.runtime import Engine
from service.errors import ModelNotLoaded, UndecodableState, UnsupportedTask
from service.settings import Settings
from service.state import Chunk
from service.trace import Layer, Span, latest_spans


@dataclass(frozen=True, slots=True)
class _Opened:
    """The graph with further outputs, and the weights of its operators."""

    engine: Engine
    weights: tuple[cells.Weights, ...]


class Inspector:
    """Shows the gates of one artifact. Called from several threads; ``_opened`` is set behind the lock."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings.model_copy(update={"provider": "cpu"})  # few look inside: no memory of a GPU for that
        self._operators = engine.signature.recurrences
        self._opened: _Opened | None = None
        self._lock = threading.Lock()

    def layers(self, trace: bytes, last: int) -> list[Layer]:
        """What happened in each recurrent operator at the ``last`` steps of a trace, or at all that it holds.

        Raises:
            UndecodableState: the trace is damaged, or another model's.
            ModelNotLoaded: the artifact's file is no longer the one that was loaded.
            UnsupportedTask: the operators' tensors cannot be had from the graph.
        """
        spans = latest_spans(trace, last)
        with self._lock:
            opened = self._opened = self._opened or self._open()
        calls = list(self._calls(opened.engine, spans, last))
        found = zip(self._operators, opened.weights, strict=True)
        return [_layer(operator, weights, calls) for operator, weights in found]

    def _calls(self, engine: Engine, spans: Sequence[Span], last: int) -> Iterator[Mapping[str, np.ndarray]]:
        """The tensors that go into the operators at each of the last steps.

        Each step is a call, so that it begins at the very states that were served; what lies before them is one.
        """
        if not spans:
            return
        chunk, row = self._chunk(spans), spans[0].row
        steps = len(chunk[0])
        before = max(0, steps - last) if engine.signature.has_time_axis else 0
        fill = self._engine.min_rows  # the same bits as in a tick
        for start, end in pairwise([*([0] if before else []), *range(before, steps + 1)]):
            part = tuple(a[start:end] for a in chunk)
            fetched = engine.fetch([row] * fill, [part] * fill, [end - start] * fill, _fed(self._operators))
            (row,) = engine.layout.scatter({s.input: fetched[s.output] for s in engine.signature.states}, 1)
            if start >= steps - last:
                yield fetched

    def _chunk(self, spans: Sequence[Span]) -> Chunk:
        """The inputs of spans that follow each other, each [steps, *step shape]."""
        inputs = self._engine.signature.inputs
        steps = sum(span.steps for span in spans)
        try:
            raw = [b"".join(parts) for parts in zip(*(span.inputs for span in spans), strict=True)]
            return tuple(
                np.frombuffer(part, np.dtype(spec.dtype).newbyteorder("<"))
                .astype(spec.dtype, copy=False)
                .reshape(steps, *spec.step_shape)
                for part, spec in zip(raw, inputs, strict=True)
            )
        except ValueError as error:
            raise UndecodableState("the stored trace does not fit the inputs of the session's model") from error

    def _open(self) -> _Opened:
        """The file is read again: to keep every artifact's bytes, for the few who look inside, would cost their size.

        A file that was replaced meanwhile is told by its fingerprint.
        """
        try:
            content = self._engine.path.read_bytes()
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != self._engine.fingerprint:
            raise ModelNotLoaded(
                "the artifact's file was replaced or removed after the start: its gates cannot be shown"
            )
        own = {o.name for o in self._engine.signature.outputs} | {s.output for s in self._engine.signature.states}
        names = list(dict.fromkeys(n for n in _fed(self._operators) + _weights(self._operators) if n not in own))
        try:
            session = open_session(content + onnx_file.graph(outputs=names), self._settings)
            engine = Engine(session, self._engine.signature, self._engine.fingerprint, self._engine.path)
            step = tuple(np.zeros((1, *spec.step_shape), spec.dtype) for spec in engine.signature.inputs)
            names = _fed(self._operators) + _weights(self._operators)
            tensors = engine.fetch([engine.initial_row], [step], [1], names)
        except ort.ERRORS as error:
            raise UnsupportedTask(f"the gates of this model cannot be computed: {ort.first_line(error)}") from error
        for operator in self._operators:
            _check_fed(operator, tensors)
        return _Opened(engine, tuple(cells.Weights.of(operator, tensors) for operator in self._operators))


def _check_fed(operator: Recurrence, tensors: Mapping[str, np.ndarray]) -> None:
    """UnsupportedTask where the operator takes several steps or rows for one of the model's: frames of a chunk, say."""
    shapes = [tensors[name].shape[:2] for name in (operator.sequence, *operator.states)]
    if set(shapes) != {(1, 1)}:
        steps, rows = shapes[0]
        raise UnsupportedTask(
            f"the gates of this model cannot be told step by step: for one step of one row its operator "
            f"{operator.name!r} takes {steps} steps of {rows} rows"
        )


def _fed(operators: Sequence[Recurrence]) -> list[str]:
    """The tensors that go into the operators at each call."""
    return [name for operator in operators for name in (operator.sequence, *operator.states)]


def _weights(operators: Sequence[Recurrence]) -> list[str]:
    named = [(o.weight, o.recurrence, o.bias, o.peephole) for o in operators]
    return [name for names in named for name in names if name]


def _layer(operator: Recurrence, weights: cells.Weights, calls: Sequence[Mapping[str, np.ndarray]]) -> Layer:
    """As float32: what was served has no more digits."""
    width, hidden = weights.w.shape[1], operator.hidden
    x = np.array([tensors[operator.sequence][0, 0] for tensors in calls], np.float64).reshape(len(calls), width)
    before = [
        np.array([tensors[name][0, 0] for tensors in calls], np.float64).reshape(len(calls), hidden)
        for name in operator.states
    ]
    told = cells.step(operator, weights, x, before)
    gates, states = ({name: values.astype(np.float32) for name, values in kind.items()} for kind in told)
    return Layer(operator.name, operator.operator, hidden, gates, states)
