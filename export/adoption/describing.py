"""The signature of a foreign graph, and what its user should know about it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto
from pydantic import ValidationError

from export.adoption.axes import HOW, UNROLLED, Layout, find_layout
from export.adoption.loading import check_survives
from export.adoption.parts import Parts, State, parts_of
from export.adoption.ports import Dim, Port, ports_of
from export.adoption.recurrences import find_recurrences
from export.adoption.wishes import ALL, Wishes
from export.errors import ExportError
from service.artifact import Shape, Signature, StateSpec, Tensor, TensorSpec
from service.engine import ort
from service.engine.providers import open_session
from service.settings import load_settings

_LARGEST_ROW = 64_000_000  # bytes: proofs hold dozens of rows at a time, and servers thousands


def describe(model: ModelProto, wishes: Wishes, made: Mapping[str, Any]) -> tuple[Signature, list[str]]:
    """The signature, still without a proof, and a sentence for each thing to warn of."""
    parts = parts_of(ports_of(model, wishes), wishes)
    layout = find_layout(parts, wishes, _Runner(model, parts, wishes.provider))
    if parts.lengths is not None and wishes.unbatched:
        raise ExportError(
            f"a model served with --unbatched gets no lengths of rows: give {parts.lengths.name!r} one value with "
            "--constant, or say --lengths none where clients send it"
        )
    batched = layout.rows > 1 and not wishes.unbatched and not _rowless(parts, layout)
    try:
        signature = Signature(
            task="generic",
            inputs=tuple(_sequence(p, p.shape or (), layout) for p in parts.sequences),
            outputs=tuple(_sequence(p, layout.shapes[p.name], layout) for p in parts.answers),
            states=tuple(_state(s, layout) for s in parts.states),
            batched=batched,
            lengths=parts.lengths.name if parts.lengths else None,
            constants={name: Tensor.of(value) for name, value in parts.constants.items()},
            recurrences=find_recurrences(model, parts.constants),
            made=dict(made),
        )
    except ValidationError as error:
        raise ExportError(
            f"the model cannot be described: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from error
    size = sum(math.prod(s.row_shape) * np.dtype(s.dtype).itemsize for s in signature.states)
    if size > _LARGEST_ROW:
        raise ExportError(
            f"the states of one session take {size / 1e6:.0f} MB where {_LARGEST_ROW / 1e6:.0f} MB is the most: "
            "they are written with every request"
        )
    return signature, _warnings(parts, layout, wishes)


def one_step(signature: Signature, wishes: Wishes) -> str | None:
    """A sentence on what one request holds, where it is one step; None where it is as many as the client sends."""
    if signature.has_time_axis:
        return None
    for spec in signature.inputs:
        told = wishes.time_axes.get(spec.name, wishes.time_axes.get(ALL, 0)) is None
        others = len(spec.step_shape) - 1  # axes for values, which whole numbers do without
        if not told and spec.time_axis is None and others >= (spec.dtype[0] == "f") and spec.step_shape[0] > 1:
            return (
                f"no open time axis: one step is a whole {spec.name} {list(spec.step_shape)}; if {spec.step_shape[0]} "
                "was only the example's length, the exporter has fixed it: export again with an open time axis "
                f"({HOW}), or use export.from_torch"
            )
    steps = ", ".join(f"{spec.name} {list(spec.step_shape)}" for spec in signature.inputs)
    return f"one request is one step: {steps}"


class _Runner:
    """Runs the graph with inputs of given shapes."""

    def __init__(self, model: ModelProto, parts: Parts, provider: str) -> None:
        content = model.SerializeToString()
        check_survives(model, content, provider)
        try:
            self._session = open_session(content, load_settings(provider=provider))
        except ort.ERRORS as error:
            raise ExportError(f"ONNX Runtime cannot load the model: {ort.first_line(error)}") from error
        self._parts = parts
        self._dtypes = {p.name: p.dtype for p in (*parts.sequences, *(s.before for s in parts.states))}
        self._firsts = {s.before.name: s.first for s in parts.states if s.first is not None}
        answers = [*parts.answers, *(s.after for s in parts.states)]
        self._fetch = list(dict.fromkeys(p.name for p in answers))

    def __call__(self, shapes: Mapping[str, tuple[int, ...]], steps: int) -> dict[str, tuple[int, ...]]:
        """The shape of each output; ``steps`` is what the rows' lengths say."""
        random = np.random.default_rng(0)
        feed = dict(self._parts.constants)
        for name, shape in shapes.items():
            if self._parts.lengths is not None and name == self._parts.lengths.name:
                feed[name] = np.full(shape, steps, self._parts.lengths.dtype)
            elif name in self._firsts:
                feed[name] = np.ascontiguousarray(np.broadcast_to(self._firsts[name], shape))
            elif name in {s.before.name for s in self._parts.states}:
                feed[name] = np.zeros(shape, self._dtypes[name])
            else:
                feed[name] = random.integers(0, 2, shape).astype(self._dtypes[name])
        try:
            return {n: a.shape for n, a in zip(self._fetch, self._session.run(self._fetch, feed), strict=True)}
        except ort.ERRORS as error:
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise ExportError(f"the model does not run with {told}: {ort.first_line(error)}") from error


def _rowless(parts: Parts, layout: Layout) -> list[str]:
    """Tensors that have no batch axis, or one of a fixed length."""
    tensors: list[tuple[str, tuple[Dim, ...] | None]] = [(p.name, p.shape) for p in parts.sequences]
    tensors += [(s.before.name, s.shape) for s in parts.states]
    found = []
    for name, shape in tensors:
        axis = layout.places[name].batch
        if axis is None or isinstance((shape or ())[axis], int):
            found.append(name)
    return found + [p.name for p in parts.answers if layout.places[p.name].batch is None]


def _sequence(port: Port, shape: tuple[Dim, ...], layout: Layout) -> TensorSpec:
    place = layout.places[port.name]
    axes = {place.batch: layout.rows, place.time: layout.steps}
    lengths = tuple(_length(n, i in axes, axes.get(i, 1), port, layout) for i, n in enumerate(shape))
    return TensorSpec(name=port.name, dtype=port.dtype, shape=lengths, batch_axis=place.batch, time_axis=place.time)


def _length(n: Dim, counts: bool, ran: int, port: Port, layout: Layout) -> int | None:
    """The length of an axis in the signature: None where it varies."""
    if not counts:
        return n if isinstance(n, int) else None
    declared_fixed = isinstance(n, int) and port.shape is not None and port.name not in layout.shapes
    return 1 if declared_fixed or ran == 1 else None


def _state(state: State, layout: Layout) -> StateSpec:
    axis = layout.places[state.before.name].batch
    rows = 1 if layout.rows == 1 else None
    shape: Shape = tuple(n if isinstance(n, int) else rows for n in state.shape)
    first = state.first
    if first is not None and axis is not None:
        first = np.take(first, 0, axis)
    return StateSpec(
        input=state.before.name,
        output=state.after.name,
        dtype=state.before.dtype,
        shape=shape,
        batch_axis=axis,
        initial=None if first is None else Tensor.of(first),
    )


def _warnings(parts: Parts, layout: Layout, wishes: Wishes) -> list[str]:
    told, rowless = [], _rowless(parts, layout)
    if wishes.unbatched:
        told.append("the model is served one row per call, as --unbatched says")
    elif layout.rows == 1:
        why = (
            "no axis counts rows"
            if all(p.batch is None for p in layout.places.values())
            else "the batch axis is frozen at 1"
        )
        told.append(
            f"{why}, so that the model is served one row per call: "
            f"re-export with a dynamic batch axis to share calls among sessions ({HOW})"
            + (f"; with more rows, {layout.refused}" if layout.refused else "")
        )
    elif rowless:
        told.append(
            f"{', '.join(rowless)} has no batch axis, so that the model is served one row per call: re-export with a "
            f"dynamic batch axis on every tensor to share calls among sessions ({HOW}), or say --constant for an input "
            "that always has one value"
        )
    timed = [p.name for p in parts.sequences if p.open and layout.places[p.name].time in p.open]
    untimed = [p.name for p in parts.answers if layout.places[p.name].time is None]
    if layout.steps > 1 and timed and untimed:
        told.append(
            f"one request is one step, although {', '.join(timed)} leaves the number of steps open: "
            f"the output {untimed[0]!r} has no axis for steps"
        )
    if layout.steps == 1 and any(layout.places[p.name].time is not None and p.open for p in parts.sequences):
        told.append(
            "one request is one step, although the shapes leave the number of steps open: "
            f"{layout.refused} ({UNROLLED})"
        )
    return told
