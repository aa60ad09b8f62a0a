"""Weights to an ONNX graph: native recurrent nodes between elementary ones, batch and time dynamic.

Owns the graph's form and the names of its tensors (``export/signature.py`` says the same in the signature). Knows
nothing of PyTorch, files or ONNX Runtime. The ONNX operators want time first, clients batch first: the two
transpositions stand where the tensors are smallest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper
from onnx.helper import make_tensor_value_info

from export.cells import Cell, cell_of, operator_weights
from export.weights import Forecast, Language, Recurrence, Weights

PRODUCER = "lstm-serve"
LENGTHS = "lengths"  # int32 [batch]: each row's number of steps
# Old enough for every ONNX Runtime that the project allows, new enough for LSTM-14.
OPSET, IR_VERSION = 17, 8


class _Graph:
    """The nodes and constants of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> str:  # noqa: ANN401 - any that ONNX knows
        """Append a node; returns the name of its first output."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"{operator}_{names[0]}", **attributes))
        return names[0]

    def constant(self, name: str, value: np.ndarray) -> str:
        """Append an initializer; returns its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def build(weights: Weights) -> ModelProto:
    """The ONNX model of the weights.

    Inputs: ``tokens`` int64 [batch, time] or ``values`` float32 [batch, time, features], ``lengths`` int32 [batch],
    and the states ``h``, ``c`` float32 [layers, batch, hidden]. Outputs: ``logprobs`` [batch, time, symbols] or
    ``prediction`` [batch, time, features], and the states ``h_next``, ``c_next``.
    """
    graph = _Graph()
    if isinstance(weights, Language):
        sequence, answer = _language(graph, weights)
    else:
        sequence, answer = _forecast(graph, weights)
    recurrence, cell = weights.recurrence, cell_of(weights.recurrence.cell)
    states = [(len(recurrence.layers), "batch", recurrence.hidden)] * len(cell.states)
    inputs = [sequence, make_tensor_value_info(LENGTHS, TensorProto.INT32, ["batch"])]
    inputs += [_float(name, shape) for name, shape in zip(cell.states, states, strict=True)]
    outputs = [answer] + [_float(next_state(name), shape) for name, shape in zip(cell.states, states, strict=True)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, f"{recurrence.cell}_{weights.task}", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
    )
    checker.check_model(model, full_check=True)
    return model


def next_state(name: str) -> str:
    """The output that carries on the state input ``name``."""
    return f"{name}_next"


def _language(graph: _Graph, weights: Language) -> tuple[ValueInfoProto, ValueInfoProto]:
    steps = graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [time, batch]
    embedded = graph.add("Gather", [graph.constant("embedding", weights.embedding), steps], "embedded")
    logits = _recurrence(graph, weights.recurrence, embedded)  # [time, batch, symbols]
    logprobs = graph.add("LogSoftmax", [logits], "logprobs_by_time", axis=-1)
    graph.add("Transpose", [logprobs], "logprobs", perm=[1, 0, 2])
    sequence = make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "time"])
    return sequence, _float("logprobs", ("batch", "time", len(weights.vocabulary)))


def _forecast(graph: _Graph, weights: Forecast) -> tuple[ValueInfoProto, ValueInfoProto]:
    mean, scale = graph.constant("mean", weights.mean), graph.constant("scale", weights.scale)
    steps = graph.add("Transpose", ["values"], "values_by_time", perm=[1, 0, 2])  # [time, batch, features]
    centred = graph.add("Sub", [steps, mean], "centred")
    scaled = graph.add("Div", [centred, scale], "scaled")
    change = _recurrence(graph, weights.recurrence, scaled)
    change = graph.add("Mul", [scale, change], "change")  # in the user's units
    prediction = graph.add("Add", [steps, change], "prediction_by_time")
    graph.add("Transpose", [prediction], "prediction", perm=[1, 0, 2])
    shape = ("batch", "time", len(weights.features))
    return _float("values", shape), _float("prediction", shape)


def _recurrence(graph: _Graph, recurrence: Recurrence, sequence: str) -> str:
    """The layers and the head: [time, batch, width] -> [time, batch, width of the answer]; writes the new states."""
    cell, count = cell_of(recurrence.cell), len(recurrence.layers)
    before = {name: [f"{name}_{i}" for i in range(count)] for name in cell.states}
    after = {name: [f"{name}_{i}_next" for i in range(count)] for name in cell.states}
    for name, parts in before.items():
        graph.add("Split", [name, graph.constant(f"{name}_parts", np.ones(count, np.int64))], parts, axis=0)
    squeezed = graph.constant("direction_axis", np.array([1], np.int64))
    for i in range(count):
        states = [before[name][i] for name in cell.states]
        sequence = _layer(graph, cell, recurrence, i, [sequence, *states], [after[name][i] for name in cell.states])
        sequence = graph.add("Squeeze", [sequence, squeezed], f"hidden_{i}")  # [time, batch, hidden]
    for name, parts in after.items():
        graph.add("Concat", parts, next_state(name), axis=0)
    product = graph.add("MatMul", [sequence, graph.constant("head_weight", recurrence.head_weight.T)], "product")
    return graph.add("Add", [product, graph.constant("head_bias", recurrence.head_bias)], "head")


def _layer(graph: _Graph, cell: Cell, recurrence: Recurrence, i: int, inputs: list[str], states: list[str]) -> str:
    """One recurrent node; ``inputs`` are its sequence and states. Returns Y [time, 1, batch, hidden]."""
    tensors = operator_weights(cell, recurrence.layers[i])
    names = [graph.constant(f"{name}_{i}", tensor) for name, tensor in tensors.items()]
    return graph.add(
        cell.operator,
        [inputs[0], *names, LENGTHS, *inputs[1:]],
        [f"Y_{i}", *states],
        hidden_size=recurrence.hidden,
    )


def _float(name: str, shape: Sequence[int | str]) -> ValueInfoProto:
    return make_tensor_value_info(name, TensorProto.FLOAT, shape)
