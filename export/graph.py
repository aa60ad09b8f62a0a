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
from export.weights import Forecast, Language, Weights

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
    and the cell's states ``h`` or ``h``, ``c`` float32 [layers, batch, hidden]. Outputs: ``logprobs`` [batch, time,
    symbols] or ``prediction`` [batch, time, features], and the states ``h_next``, ``c_next``.
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


def layer_node(cell: Cell, i: int) -> str:
    """The name of layer ``i``'s recurrent node."""
    return f"{cell.operator}_Y_{i}"


def layer_inputs(weights: Weights, i: int) -> dict[str, str]:
    """The tensors that layer ``i``'s recurrent node reads, by the operator's own names of its inputs and in its order.

    All are float32 tensors of the graph: ``X`` [time, batch, width], the constants of ``operator_weights``, and the
    states [1, batch, hidden] before the first step; ``sequence_lens`` is int32 [batch].
    """
    cell = cell_of(weights.recurrence.cell)
    first = "embedded" if isinstance(weights, Language) else "scaled"
    names = {"X": f"hidden_{i - 1}" if i else first, "W": f"W_{i}", "R": f"R_{i}", "B": f"B_{i}"}
    names |= {"sequence_lens": LENGTHS, **{f"initial_{name}": f"{name}_{i}" for name in cell.states}}
    return names | ({"P": f"P_{i}"} if cell.peepholes else {})


def _language(graph: _Graph, weights: Language) -> tuple[ValueInfoProto, ValueInfoProto]:
    steps = graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [time, batch]
    graph.add("Gather", [graph.constant("embedding", weights.embedding), steps], "embedded")
    logits = _recurrence(graph, weights)  # [time, batch, symbols]
    logprobs = graph.add("LogSoftmax", [logits], "logprobs_by_time", axis=-1)
    graph.add("Transpose", [logprobs], "logprobs", perm=[1, 0, 2])
    sequence = make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "time"])
    return sequence, _float("logprobs", ("batch", "time", len(weights.vocabulary)))


def _forecast(graph: _Graph, weights: Forecast) -> tuple[ValueInfoProto, ValueInfoProto]:
    mean, scale = graph.constant("mean", weights.mean), graph.constant("scale", weights.scale)
    steps = graph.add("Transpose", ["values"], "values_by_time", perm=[1, 0, 2])  # [time, batch, features]
    centred = graph.add("Sub", [steps, mean], "centred")
    graph.add("Div", [centred, scale], "scaled")
    change = _recurrence(graph, weights)
    change = graph.add("Mul", [scale, change], "change")  # in the user's units
    prediction = graph.add("Add", [steps, change], "prediction_by_time")
    graph.add("Transpose", [prediction], "prediction", perm=[1, 0, 2])
    shape = ("batch", "time", len(weights.features))
    return _float("values", shape), _float("prediction", shape)


def _recurrence(graph: _Graph, weights: Weights) -> str:
    """The layers and the head: [time, batch, width] -> [time, batch, width of the answer]; writes the new states."""
    recurrence = weights.recurrence
    cell, count = cell_of(recurrence.cell), len(recurrence.layers)
    after = {name: [f"{name}_{i}_next" for i in range(count)] for name in cell.states}
    for name in cell.states:
        before = [f"{name}_{i}" for i in range(count)]
        graph.add("Split", [name, graph.constant(f"{name}_parts", np.ones(count, np.int64))], before, axis=0)
    squeezed = graph.constant("direction_axis", np.array([1], np.int64))
    for i in range(count):
        steps = _layer(graph, weights, i, [after[name][i] for name in cell.states])
        graph.add("Squeeze", [steps, squeezed], f"hidden_{i}")  # [time, batch, hidden]
    for name, parts in after.items():
        graph.add("Concat", parts, next_state(name), axis=0)
    last, head = f"hidden_{count - 1}", graph.constant("head_weight", recurrence.head_weight.T)
    product = graph.add("MatMul", [last, head], "product")
    return graph.add("Add", [product, graph.constant("head_bias", recurrence.head_bias)], "head")


def _layer(graph: _Graph, weights: Weights, i: int, states: list[str]) -> str:
    """One recurrent node, which writes the ``states`` after its last step. Returns Y [time, 1, batch, hidden]."""
    recurrence, cell, inputs = weights.recurrence, cell_of(weights.recurrence.cell), layer_inputs(weights, i)
    for name, tensor in operator_weights(cell, recurrence.layers[i]).items():
        graph.constant(inputs[name], tensor)
    outputs = [f"Y_{i}", *states]
    return graph.add(cell.operator, list(inputs.values()), outputs, hidden_size=recurrence.hidden, **cell.attributes)


def _float(name: str, shape: Sequence[int | str]) -> ValueInfoProto:
    return make_tensor_value_info(name, TensorProto.FLOAT, shape)
