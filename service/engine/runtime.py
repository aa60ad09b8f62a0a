"""The engine: one artifact in ONNX Runtime, running a batch of rows.

Owns the way from rows and chunks to the graph's tensors and back. Knows nothing of sessions, queues or stores.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from service.artifact import SIGNATURE_KEY, Signature, TensorSpec, parse_signature
from service.engine import ort
from service.engine.providers import open_session, running_provider
from service.errors import ArtifactError
from service.settings import Settings
from service.state import Chunk, RowLayout, Tensors, axes_moved

_HALF_EXPONENT = np.uint16(0x7C00)
_all = np.logical_and.reduce  # an array's own method takes a detour through Python

_ORT_TYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class Run(NamedTuple):
    """What a batch came to: each output as [rows, longest, *step shape], and the new rows.

    Steps beyond a row's own length hold nothing of meaning. ``finite`` tells for each row whether its outputs and
    its new state are free of NaN and infinity; ``padding`` counts the cells (row x step) that were computed in vain.
    """

    outputs: Tensors
    rows: list[bytes]
    finite: list[bool]
    padding: int


class Engine:
    """One loaded artifact. ``begin`` is called from one thread at a time, and what it answered from another."""

    def __init__(self, session: ort.InferenceSession, signature: Signature, fingerprint: str, path: Path) -> None:
        self.signature = signature
        self.path = path
        self.fingerprint = fingerprint
        self.provider = running_provider(session)
        self.layout = RowLayout([(s.input, s.dtype, s.row_shape, s.batch_axis) for s in signature.states])
        self.initial_row = self.layout.pack_one(
            {s.input: s.initial.array() if s.initial else np.zeros(s.row_shape, s.dtype) for s in signature.states}
        )
        self.min_rows = 1  # what the probe found; see service/engine/probe.py
        self.bit_exact = True
        self._session = session
        self._counts = _counts_dtype(session, signature)
        self._constants = {name: tensor.array() for name, tensor in signature.constants.items()}
        self._inputs = [_Port(spec) for spec in signature.inputs]
        self._outputs = [_Port(spec) for spec in signature.outputs]
        self._fetch = [o.name for o in signature.outputs] + [s.output for s in signature.states]

    @property
    def ragged(self) -> bool:
        """Whether rows of different lengths can share a tick."""
        return self.signature.lengths is not None or not self.signature.batched

    def run(self, rows: Sequence[bytes], chunks: Sequence[Chunk]) -> Run:
        """Run each chunk (of one step or more) from its row: together, or one after the other where the graph takes
        one row at a time."""
        return self.begin(rows, chunks)()

    def begin(self, rows: Sequence[bytes], chunks: Sequence[Chunk]) -> Callable[[], Run]:
        """Compute what ``run`` does; the function brings it in, once, while the next batch may be computed already."""
        if self.signature.batched:
            return self._run_together(rows, chunks)
        done = _stacked([self._run_together([row], [chunk])() for row, chunk in zip(rows, chunks, strict=True)])
        return lambda: done

    def _run_together(self, rows: Sequence[bytes], chunks: Sequence[Chunk]) -> Callable[[], Run]:
        """One call of the graph.

        Batches below ``min_rows`` are filled up with copies of the last row, so that a row's bits do not depend on
        how many others there are.
        """
        lengths, fill = [len(chunk[0]) for chunk in chunks], self._fill(len(rows))
        if fill:
            rows, chunks = [*rows, *[rows[-1]] * fill], [*chunks, *[chunks[-1]] * fill]
        fetched = self.fetch(rows, chunks, lengths + lengths[-1:] * fill)
        return lambda: self._came_to(fetched, lengths, fill)

    def _fill(self, rows: int) -> int:
        """So many copies of the last row a batch needs."""
        return max(0, self.min_rows - rows)

    def _came_to(self, fetched: Tensors, lengths: Sequence[int], fill: int, packed: list[bytes] | None = None) -> Run:
        """What the graph's tensors say of rows of these lengths, before ``fill`` copies.

        ``packed``: the new rows, where they are there already.
        """
        count = len(lengths)
        outputs = {port.name: port.to_rows(fetched[port.name])[:count] for port in self._outputs}
        return Run(
            outputs=outputs,
            rows=packed or self.layout.scatter({s.input: fetched[s.output] for s in self.signature.states}, count),
            finite=self._finite(fetched, outputs, lengths),
            padding=(count + fill) * max(lengths) - sum(lengths),
        )

    def fetch(
        self, rows: Sequence[bytes], chunks: Sequence[Chunk], lengths: Sequence[int], further: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """The graph's own outputs and new states, by name, in the graph's axes, for exactly these rows.

        One call: of an artifact that is not batched, one row. ``further`` names outputs that the signature does not.
        """
        names = [*self._fetch, *further]
        feed = {**self._states(rows), **self._sent(chunks, lengths)}
        return dict(zip(names, self._session.run(names, feed), strict=True))

    def _states(self, rows: Sequence[bytes]) -> dict[str, np.ndarray]:
        """What the graph takes of the rows."""
        return self.layout.gather(rows)

    def _sent(self, chunks: Sequence[Chunk], lengths: Sequence[int]) -> dict[str, np.ndarray]:
        """What the graph takes besides states."""
        feed = dict(self._constants)
        for i, port in enumerate(self._inputs):
            feed[port.name] = port.to_graph([chunk[i] for chunk in chunks], max(lengths))
        if self.signature.lengths is not None:
            feed[self.signature.lengths] = np.array(lengths, self._counts)  # [rows]
        return feed

    def _finite(self, fetched: Tensors, outputs: Tensors, lengths: Sequence[int]) -> list[bool]:
        """For each row, whether what it answers and what it would keep are numbers."""
        count = len(lengths)
        if all(map(_is_finite, fetched.values())):
            return [True] * count  # the ordinary case, decided at once
        good = np.ones(count, bool)
        for state in self.signature.states:
            tensor, axis = fetched[state.output], state.batch_axis
            rows = tensor[None] if axis is None else np.moveaxis(tensor, axis, 0)[:count]
            good &= np.isfinite(rows).reshape(count, -1).all(axis=1)
        for tensor in outputs.values():
            good &= [bool(np.isfinite(row[:steps]).all()) for row, steps in zip(tensor, lengths, strict=True)]
        return good.tolist()


def _is_finite(tensor: np.ndarray) -> bool:
    """Whether a tensor is free of NaN and infinity. NumPy is slow with float16: there, all bits of the exponent are set
    in those only."""
    if tensor.dtype == np.float16:
        return not (tensor.view(np.uint16) & _HALF_EXPONENT == _HALF_EXPONENT).any()
    return bool(_all(np.isfinite(tensor), None))


def _stacked(runs: Sequence[Run]) -> Run:
    """What rows that ran alone came to, as one batch."""
    outputs: dict[str, np.ndarray] = {}
    for name, first in runs[0].outputs.items():
        alone = [run.outputs[name] for run in runs]  # each [1, steps, *step shape]
        outputs[name] = np.zeros((len(runs), max(a.shape[1] for a in alone), *first.shape[2:]), first.dtype)
        for filled, (row,) in zip(outputs[name], alone, strict=True):
            filled[: len(row)] = row
    return Run(outputs, [run.rows[0] for run in runs], [run.finite[0] for run in runs], padding=0)


class _Port:
    """The way between rows [steps, *step shape] and the axes of one input or output of the graph."""

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self._dtype, self._step_shape = spec.dtype, spec.step_shape
        axes = (spec.batch_axis, spec.time_axis)
        # Of an axis that the graph does not have there is one entry: taken out on the way in, put back on the way out.
        self._complete = None not in axes
        self._taken = (*(0 if axis is None else slice(None) for axis in axes), ...)
        self._put = (*(None if axis is None else slice(None) for axis in axes), ...)
        graph = tuple(axis for axis in axes if axis is not None)
        rows = tuple(range(len(graph)))
        rank = len(spec.shape)
        self._to_graph = axes_moved(rank, rows, graph)
        self._to_rows = axes_moved(rank, graph, rows)

    def to_graph(self, rows: list[np.ndarray], longest: int) -> np.ndarray:
        """Rows as one tensor of the graph; shorter rows are filled up with zeros."""
        if sum(map(len, rows)) == longest * len(rows):
            batch = np.concatenate(rows).reshape(len(rows), longest, *self._step_shape)
        else:
            batch = np.zeros((len(rows), longest, *self._step_shape), self._dtype)
            for filled, row in zip(batch, rows, strict=True):
                filled[: len(row)] = row
        return (batch if self._complete else batch[self._taken]).transpose(self._to_graph)

    def to_rows(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor of the graph as [rows, steps, *step shape]."""
        rows = tensor.transpose(self._to_rows)
        return rows if self._complete else rows[self._put]


def load_engine(path: Path, settings: Settings) -> Engine:
    """The engine of an artifact file; ArtifactError says in one sentence why a file cannot be served."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    try:
        session = open_session(content, settings)
    except ort.ERRORS as error:
        raise ArtifactError(
            f"{path} is not an ONNX model that ONNX Runtime can load: {ort.first_line(error)}"
        ) from error
    document = session.get_modelmeta().custom_metadata_map.get(SIGNATURE_KEY)
    if document is None:
        raise ArtifactError(f"{path} carries no {SIGNATURE_KEY}: it was not exported or adopted by lstm-serve")
    try:
        signature = parse_signature(document)
        _check_graph(session, signature)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.detail}") from error
    return Engine(session, signature, hashlib.sha256(content).hexdigest(), path)


def _check_graph(session: ort.InferenceSession, signature: Signature) -> None:
    """Hold the signature against the graph's own inputs and outputs."""
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = {o.name: o for o in session.get_outputs()}
    for tensor in signature.inputs:
        _check_tensor(inputs, tensor.name, tensor.dtype, tensor.shape, "input")
    for tensor in signature.outputs:
        _check_tensor(outputs, tensor.name, tensor.dtype, tensor.shape, "output")
    for state in signature.states:
        _check_tensor(inputs, state.input, state.dtype, state.shape, "input")
        _check_tensor(outputs, state.output, state.dtype, state.shape, "output")
    for name, constant in signature.constants.items():
        _check_tensor(inputs, name, constant.dtype, constant.shape, "input")
    if signature.lengths is not None:
        _check_tensor(inputs, signature.lengths, _counts_dtype(session, signature), (None,), "input")
    named = {t.name for t in signature.inputs} | {s.input for s in signature.states} | set(signature.constants)
    missing = set(inputs) - named - {signature.lengths}
    if missing:
        raise ArtifactError(f"the graph has an input {sorted(missing)[0]!r} that the signature does not name")


def _counts_dtype(session: ort.InferenceSession, signature: Signature) -> str:
    """The type in which the graph takes ``lengths``: int64 where it says so, else int32."""
    types = {i.name: _ORT_TYPES.get(i.type) for i in session.get_inputs()}
    return "int64" if signature.lengths is not None and types.get(signature.lengths) == "int64" else "int32"


def _check_tensor(
    nodes: Mapping[str, ort.NodeArg], name: str, dtype: str, shape: tuple[int | None, ...], kind: str
) -> None:
    if name not in nodes:
        raise ArtifactError(f"the signature names an {kind} {name!r} that the graph does not have")
    node = nodes[name]
    if _ORT_TYPES.get(node.type) != dtype:
        raise ArtifactError(f"{kind} {name!r} is {node.type} in the graph and {dtype} in the signature")
    if len(node.shape) != len(shape):
        raise ArtifactError(f"{kind} {name!r} has {len(node.shape)} axes in the graph, {len(shape)} in the signature")
    for axis, (have, said) in enumerate(zip(node.shape, shape, strict=True)):
        if isinstance(have, int) and have != said:
            raise ArtifactError(f"axis {axis} of {kind} {name!r} is {have} in the graph and {said} in the signature")
