"""Between which values a tensor of a graph must lie, whatever goes in, as far as the graph itself tells.

Owns that knowledge of operators. An activation or an embedding bounds what comes out; measurements have no bounds.
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from export.quantization.graphs import constants_of

_BY_OPERATOR = {"Tanh": (-1.0, 1.0), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0)}
_RECURRENT = ("RNN", "GRU", "LSTM")
# Operators whose outputs hold values of their first input, and no others.
_MOVING = ("Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten", "Identity", "Slice", "Split")
_SQUASHING = (b"Tanh", b"Sigmoid")


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest value."""

    low: float
    high: float


UNIT = Bounds(-1.0, 1.0)


class Knowledge:
    """What is known of the tensors of a graph as it was when this was made."""

    def __init__(self, model: ModelProto) -> None:
        self._constants = constants_of(model)
        self._producers = {name: node for node in model.graph.node for name in node.output if name}

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that computes a tensor; None for inputs and constants."""
        return self._producers.get(tensor)

    def bounds(self, tensor: str) -> Bounds | None:
        """Between which values a tensor always lies; None where that cannot be told.

        An RNN or GRU whose first state is out of bounds strays from them for some steps: whoever relies on bounds
        clips.
        """
        node = self._producers.get(tensor)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in _BY_OPERATOR:
            return Bounds(*_BY_OPERATOR[node.op_type])
        if node.op_type in _RECURRENT:
            activations = next((a.strings for a in node.attribute if a.name == "activations"), _SQUASHING)
            is_cell = list(node.output).index(tensor) == 2  # c of an LSTM adds up
            return None if is_cell or not set(activations) <= set(_SQUASHING) else UNIT
        if node.op_type == "Gather" and node.input[0] in self._constants:
            table = self._constants[node.input[0]]
            return Bounds(float(table.min()), float(table.max())) if table.size and table.dtype == np.float32 else None
        return self.bounds(node.input[0]) if node.op_type in _MOVING else None
