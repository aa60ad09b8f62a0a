"""Ranges that are the same in every call: what makes dynamic quantisation fit for sessions.

ONNX Runtime's dynamically quantised operators round to the range that they find in the whole tensor. A row would then
be rounded otherwise beside other rows, and a sequence otherwise when it is cut. So where the bounds of a tensor are
known beforehand, it gets two further columns that always hold these bounds, and weights of zero for them: the range
becomes a constant, and the sum stays what it was. The h that an LSTM feeds back to itself lies between -1 and 1; since
no column can be added to it between two steps, the operator gets two further units that always answer -1 and 1.

Owns this change of the graph, which in float32 changes no answer. Knows nothing of ONNX Runtime.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, shape_inference

from export.adoption.recurrences import find_recurrences
from export.quantization.bounds import UNIT, Bounds, Knowledge
from export.quantization.graphs import add_constant, constants_of, copy_of, remove_unused, set_nodes

_COLUMNS = 2  # the low bound, then the high one
# A gate's bias so large that the gate is open, or shut, to the last bit; a c whose tanh is 1 to the last bit.
_SATURATED, _FULL = np.float32(100), np.float32(20)
_INPUT, _OUTPUT, _FORGET = 0, 1, 2  # ONNX's order of an LSTM's gates; the cell's comes last
_SMALLEST = 1024  # weights of a product below which rounding its input costs more than it saves
_OLDEST = 13  # the first opset whose Squeeze and Split take their axes as inputs


@dataclass(frozen=True)
class Pinned:
    """The changed graph, and the names of its nodes whose ranges are the same in every call."""

    model: ModelProto
    nodes: tuple[str, ...]


def pin(model: ModelProto) -> Pinned:
    """A copy of the model in which every LSTM and MatMul with constant weights and a bounded input is pinned."""
    copy = shape_inference.infer_shapes(_named(model))
    if next((o.version for o in copy.opset_import if o.domain in ("", "ai.onnx")), 0) < _OLDEST:
        return Pinned(copy, ())
    return _Pinning(copy).run()


def _named(model: ModelProto) -> ModelProto:
    """A copy whose nodes all have names."""
    copy = copy_of(model)
    for i, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    return copy


class _Pinning:
    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._constants = constants_of(model)
        self._knowledge = Knowledge(model)
        values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        self._ranks = {
            v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")
        }
        self._simple = {r.name for r in find_recurrences(model, ()) if r.operator == "LSTM"}
        self._nodes: list[NodeProto] = []
        self._wide: dict[str, str] = {}  # outputs of pinned LSTMs, to the same with their two further columns

    def run(self) -> Pinned:
        done = [node.name for node in list(self._model.graph.node) if self._took(node)]
        set_nodes(self._model, self._nodes)
        remove_unused(self._model)
        del self._model.graph.value_info[:]  # shapes of what was there before
        return Pinned(self._model, tuple(done))

    def _took(self, node: NodeProto) -> bool:
        """Append the node, pinned if that can be."""
        bounds = self._knowledge.bounds(node.input[0]) if node.input else None
        if bounds and node.op_type == "LSTM" and node.name in self._simple and self._weighted(node, (1, 2)):
            self._lstm(node, bounds)
        elif bounds and node.op_type == "MatMul" and self._weighted(node, (1,)) and node.input[0] in self._ranks:
            weight = np.pad(self._constants[node.input[1]], ((0, _COLUMNS), (0, 0)))
            node.input[0] = self._widened(node.input[0], bounds, self._ranks[node.input[0]])
            node.input[1] = self._constant(f"{node.name}_wide", weight)
            self._nodes.append(node)
        else:
            self._nodes.append(node)
            return False
        return True

    def _weighted(self, node: NodeProto, places: tuple[int, ...]) -> bool:
        """Whether the inputs at these places are float32 weights."""
        tensors = [self._constants.get(node.input[place]) for place in places]
        rank = 2 if node.op_type == "MatMul" else 3
        fewest = _SMALLEST if node.op_type == "MatMul" else 0
        return all(t is not None and t.dtype == np.float32 and t.ndim == rank and t.size >= fewest for t in tensors)

    def _lstm(self, node: NodeProto, bounds: Bounds) -> None:
        name, inputs = node.name, [*node.input, *[""] * (8 - len(node.input))]
        hidden = self._constants[inputs[2]].shape[2]
        for place in (1, 2):  # W and R [1, 4 * hidden, width]
            gates = self._constants[inputs[place]].reshape(4, hidden, -1)
            gates = np.pad(gates, ((0, 0), (0, _COLUMNS), (0, _COLUMNS)))
            inputs[place] = self._constant(f"{name}_wide_{place}", gates.reshape(1, 4 * (hidden + _COLUMNS), -1))
        inputs[3] = self._constant(f"{name}_wide_3", self._bias(inputs[3], hidden))
        inputs[0] = self._widened(inputs[0], bounds, rank=3)
        inputs[5] = self._widened(inputs[5], UNIT, rank=3)
        inputs[6] = self._padded(inputs[6], (-_FULL, _FULL), rank=3)
        if inputs[7]:
            peepholes = np.pad(self._constants[inputs[7]].reshape(3, hidden), ((0, 0), (0, _COLUMNS)))
            inputs[7] = self._constant(f"{name}_wide_7", peepholes.reshape(1, -1))
        outputs = [f"{output}_wide" if output else "" for output in node.output]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        attributes["hidden_size"] = hidden + _COLUMNS
        self._add("LSTM", inputs, outputs, name=name, **attributes)
        for narrow, wide in zip(node.output, outputs, strict=True):
            if narrow:
                self._narrowed(wide, narrow, hidden)
        if node.output[0]:
            self._wide[node.output[0]] = outputs[0]

    def _bias(self, name: str, hidden: int) -> np.ndarray:
        """B [1, 8 * hidden] with the further units' gates: they keep their c, take nothing in, and answer all of it."""
        bias = self._constants[name] if name else np.zeros(8 * hidden, np.float32)
        bias = np.pad(bias.reshape(8, hidden), ((0, 0), (0, _COLUMNS)))  # gates of W, then gates of R
        for gate, value in ((_INPUT, -_SATURATED), (_OUTPUT, _SATURATED), (_FORGET, _SATURATED)):
            bias[gate, hidden:] = value
        return bias.reshape(1, -1)

    def _widened(self, tensor: str, bounds: Bounds, rank: int) -> str:
        """The tensor, clipped, with its bounds as two further columns; taken from an LSTM that has them already."""
        node = self._knowledge.producer(tensor)
        if node is not None and node.op_type == "Squeeze" and len(node.input) == 2 and node.input[0] in self._wide:
            return self._add("Squeeze", [self._wide[node.input[0]], node.input[1]], [f"{tensor}_wide"])
        low, high = np.float32(bounds.low), np.float32(bounds.high)
        ends = [self._constant(f"bound_{end}", np.array(end)) for end in (low, high)]
        return self._padded(self._add("Clip", [tensor, *ends], [f"{tensor}_clipped"]), (low, high), rank)

    def _padded(self, tensor: str, values: tuple[np.float32, np.float32], rank: int) -> str:
        """The tensor with one further column of each value."""
        pads = self._constant(f"one_column_{rank}", np.array([*[0] * (2 * rank - 1), 1], np.int64))
        for value in values:
            filling = self._constant(f"bound_{value}", np.array(value))
            tensor = self._add("Pad", [tensor, pads, filling], [f"{tensor}_{value}"])
        return tensor

    def _narrowed(self, wide: str, narrow: str, hidden: int) -> None:
        start, end, axis = (self._constant(f"index_{i}", np.array([i], np.int64)) for i in (0, hidden, -1))
        self._add("Slice", [wide, start, end, axis], [narrow])

    def _constant(self, name: str, value: np.ndarray) -> str:
        name = f"pinned_{name}"
        if name not in self._constants:
            self._constants[name] = value
            add_constant(self._model, name, value)
        return name

    def _add(self, operator: str, inputs: list[str], outputs: list[str], name: str = "", **attributes: Any) -> str:  # noqa: ANN401 - any that ONNX knows
        if any(outputs[0] in node.output for node in self._nodes):
            return outputs[0]  # a tensor that two nodes read is widened once
        name = name or f"pinned_{outputs[0]}"
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs[0]
