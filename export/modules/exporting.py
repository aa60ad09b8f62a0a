"""torch.onnx.export, both of its exporters, held to what it was asked for and without its noise.

Owns the form of the graph: inputs and outputs in the names of the call, the next of a state as ``NAME_next``, shapes as
they were found by running. What an exporter says of shapes is not believed, nor what it made: whether a graph answers
like its module is found out elsewhere, by running it.

There are three ways, because none is right for all. Seen with torch 2.13: ``dynamo`` refuses what it cannot express,
such as decisions that depend on data, but fixes the number of steps of nn.RNN and of a time-first nn.GRU to that of
the example; ``torchscript``, which torch calls deprecated, does these right, and silently takes every decision as the
example had it; both fail for an nn.LSTM with projections. ``decomposed`` is dynamo with one step in a call and the
recurrent layers taken apart into products and sums, which was right for all of these.
"""

import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxscript.optimizer
import torch
from onnx import ModelProto
from torch import Tensor, nn

from export.errors import ExportError
from export.modules.axes import ROWS, STEPS, Axes, draw
from export.modules.calling import Call, first_line, next_of

Way = Literal["dynamo", "torchscript", "decomposed"]


def axes_for(way: Way, axes: Axes) -> Axes:
    """The axes of the graph that comes of a way: taken apart, a recurrence is of one step."""
    return replace(axes, cut=False) if way == "decomposed" else axes


def export(call: Call, axes: Axes, way: Way) -> ModelProto:
    """The module as an ONNX model with these axes; ExportError says why this way leads nowhere."""
    example = draw(call, axes, ROWS, STEPS if axes.cut else 1)
    names = [*call.sequences, *call.carried]
    answers = [next_of(name) if name in call.carried else name for name in call.returned]
    flat, arguments = _Flat(call, names).eval(), tuple(example[name] for name in names)
    free = {name: _free(axes, name, is_state=name in call.carried) for name in names}
    free |= {a: _free(axes, r, is_state=a != r) for a, r in zip(answers, call.returned, strict=True)}
    try:
        with _quiet():
            export_with = _torchscript if way == "torchscript" else _dynamo if way == "dynamo" else _decomposed
            model = export_with(flat, arguments, names, answers, free)
        answered = call(example)
    except Exception as error:  # exporters raise anything, of their own or of Python
        raise ExportError(_reason(error)) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in example.items()}
    shapes |= {a: tuple(answered[r].shape) for a, r in zip(answers, call.returned, strict=True)}
    return _told(model, free, shapes, names)


class _Flat(nn.Module):
    """The call with its tensors one beside the other, as graphs have them."""

    def __init__(self, call: Call, names: list[str]) -> None:
        super().__init__()
        self.module = call.module
        self._call, self._names = call, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Inputs, then states, in the order of the names -> what the module returns."""
        return tuple(self._call.traced(dict(zip(self._names, tensors, strict=True))).values())


_Free = dict[str, dict[int, str]]  # the axes whose length varies, by tensor


def _free(axes: Axes, name: str, is_state: bool) -> dict[int, str]:
    found = {axes.batch[name]: "batch"}
    if axes.cut and not is_state:
        found[axes.time[name]] = "time"
    return {axis: kind for axis, kind in found.items() if axis is not None}


_Tensors = tuple[Tensor, ...]
_LARGEST = 2**31  # values of a constant


def _dynamo(flat: nn.Module, example: _Tensors, names: list[str], answers: list[str], free: _Free) -> ModelProto:
    return _program(flat, example, names, answers, _dynamic(names, free))


def _decomposed(flat: nn.Module, example: _Tensors, names: list[str], answers: list[str], free: _Free) -> ModelProto:
    program = torch.export.export(flat, example, dynamic_shapes=_dynamic(names, free))
    return _program(program.run_decompositions(), (), names, answers, None)


def _program(source: Any, example: _Tensors, names: list[str], answers: list[str], dynamic: Any) -> ModelProto:  # noqa: ANN401 - as torch types it
    program: Any = torch.onnx.export(
        source,
        example,
        dynamo=True,
        input_names=names,
        output_names=answers,
        dynamic_shapes=dynamic,
        verbose=False,
    )
    # The exporter reorders the gates of recurrent layers in the graph: weights are folded into constants, so that they
    # are not computed anew where a graph is loaded, and the gates can be shown.
    onnxscript.optimizer.fold_constants(program.model, input_size_limit=_LARGEST, output_size_limit=_LARGEST)
    model: ModelProto = program.model_proto
    return model


def _dynamic(names: list[str], free: _Free) -> dict[str, Any]:
    kinds = {kind: torch.export.Dim(kind) for kind in ("batch", "time")}
    return {"tensors": tuple({axis: kinds[kind] for axis, kind in free[name].items()} for name in names)}


def _torchscript(flat: nn.Module, example: _Tensors, names: list[str], answers: list[str], free: _Free) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "module.onnx")
        torch.onnx.export(flat, example, path, dynamo=False, input_names=names, output_names=answers, dynamic_axes=free)
        return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters log their progress and print graphs; what is wrong with a model is told in one sentence instead."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with _without_stdout(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_stdout() -> Iterator[None]:
    """The file of standard output set aside: torch prints from C++ there, past Python."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with tempfile.TemporaryFile() as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _reason(error: Exception) -> str:
    """What went wrong at the bottom of an exporter's own long report."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)


def _told(model: ModelProto, free: _Free, shapes: Mapping[str, tuple[int, ...]], names: list[str]) -> ModelProto:
    """The model with the shapes that are known; ExportError where it cannot take them."""
    graph = model.graph
    if missing := [name for name in names if name not in {value.name for value in graph.input}]:
        raise ExportError(f"the graph has no input {missing[0]!r}: what the module answers does not depend on it")
    for value in graph.input:
        for axis, kind in free[value.name].items():
            if value.type.tensor_type.shape.dim[axis].HasField("dim_value"):
                raise ExportError(f"the graph takes one length of {kind} only, fixed on axis {axis} of {value.name!r}")
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape
        dims.Clear()
        for axis, length in enumerate(shapes[value.name]):
            if axis in free[value.name]:
                dims.dim.add(dim_param=free[value.name][axis])
            else:
                dims.dim.add(dim_value=length)
    del graph.value_info[:]
    return model
