"""The recurrent cells as ONNX operators: a cell that the project learns to export gets its row in ``CELLS``.

Owns the order of gates and the operators' attributes. Source: the operators of ai.onnx version 14,
https://onnx.ai/onnx/operators/onnx__RNN.html, onnx__GRU.html and onnx__LSTM.html in the same folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from export.errors import ExportError
from export.weights import Array, Layer


@dataclass(frozen=True)
class Cell:
    """How one of the cells of ``model/`` becomes an ONNX operator.

    ``gates`` names, for each gate in ONNX's order, its place in the weights; None is a gate that the operator has
    room for and does not read. ``peepholes`` does the same for the peephole weights. ``states`` are the tensors
    carried from step to step, in the order of the operator's inputs ``initial_h``, ``initial_c`` and its outputs
    after ``Y``.
    """

    operator: Literal["RNN", "GRU", "LSTM"]
    gates: tuple[int | None, ...]
    states: tuple[str, ...]
    peepholes: tuple[int, ...] = ()
    attributes: Mapping[str, int] = field(default_factory=dict)


CELLS = {
    "rnn": Cell("RNN", gates=(0,), states=("h",)),
    # Weights: reset, update, new; ONNX: update, reset, new. The reset gate acts behind the product with h, biases too.
    "gru": Cell("GRU", gates=(1, 0, 2), states=("h",), attributes={"linear_before_reset": 1}),
    # Weights: input, forget, cell, output; ONNX: input, output, forget, cell.
    "lstm": Cell("LSTM", gates=(0, 3, 1, 2), states=("h", "c")),
    # Peephole weights: input, forget, output; ONNX: input, output, forget.
    "peephole": Cell("LSTM", gates=(0, 3, 1, 2), states=("h", "c"), peepholes=(0, 2, 1)),
    # Weights: input, cell, output; ONNX as above, and takes 1 less the input gate for the forget gate.
    "cifg": Cell("LSTM", gates=(0, 2, None, 1), states=("h", "c"), attributes={"input_forget": 1}),
}


def cell_of(name: str) -> Cell:
    """The cell's row of the table; ExportError where there is none."""
    if name not in CELLS:
        raise ExportError(f"the cell {name!r} cannot be exported: choose one of {', '.join(CELLS)}")
    return CELLS[name]


def operator_weights(cell: Cell, layer: Layer) -> dict[str, Array]:
    """The operator's constant inputs by their names in ONNX, the leading axis of each counting directions.

    W [1, gates * hidden, width], R [1, gates * hidden, hidden], B [1, 2 * gates * hidden], and P [1, 3 * hidden] of a
    cell with peepholes.
    """
    bias = np.concatenate([_reordered(cell.gates, layer.bias_ih), _reordered(cell.gates, layer.bias_hh)])
    tensors = {"W": _reordered(cell.gates, layer.weight_ih), "R": _reordered(cell.gates, layer.weight_hh), "B": bias}
    if layer.weight_peephole is not None:
        tensors["P"] = _reordered(cell.peepholes, layer.weight_peephole)
    return {name: tensor[None] for name, tensor in tensors.items()}


def _reordered(order: tuple[int | None, ...], tensor: Array) -> Array:
    """The gates, which lie one below the other on axis 0, in ONNX's order, with zeros for those that are not read."""
    gates = np.split(tensor, len(order) - order.count(None))
    return np.concatenate([np.zeros_like(gates[0]) if i is None else gates[i] for i in order])
