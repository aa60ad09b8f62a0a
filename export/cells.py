"""The recurrent cells as ONNX operators: a cell that the project learns to export gets its row in ``CELLS``.

Source: the operator LSTM of ai.onnx version 14, https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

from dataclasses import dataclass

import numpy as np

from export.errors import ExportError
from export.weights import Array, Layer


@dataclass(frozen=True)
class Cell:
    """How one of PyTorch's cells becomes an ONNX operator.

    ``gates`` names, for each gate in ONNX's order, its place in PyTorch's; ``states`` are the tensors carried from
    step to step, in the order of the operator's inputs ``initial_h``, ``initial_c`` and its outputs after ``Y``.
    """

    operator: str
    gates: tuple[int, ...]
    states: tuple[str, ...]


CELLS = {
    # PyTorch: input, forget, cell, output; ONNX: input, output, forget, cell
    "lstm": Cell("LSTM", gates=(0, 3, 1, 2), states=("h", "c")),
}


def cell_of(name: str) -> Cell:
    """The cell's row of the table; ExportError where there is none."""
    if name not in CELLS:
        raise ExportError(f"the cell {name!r} cannot be exported: choose one of {', '.join(CELLS)}")
    return CELLS[name]


def operator_weights(cell: Cell, layer: Layer) -> dict[str, Array]:
    """The operator's inputs W [1, gates * hidden, width], R [1, gates * hidden, hidden], B [1, 2 * gates * hidden]."""
    bias = np.concatenate([_reordered(cell, layer.bias_ih), _reordered(cell, layer.bias_hh)])
    tensors = {"W": _reordered(cell, layer.weight_ih), "R": _reordered(cell, layer.weight_hh), "B": bias}
    return {name: tensor[None] for name, tensor in tensors.items()}  # the leading axis counts directions


def _reordered(cell: Cell, tensor: Array) -> Array:
    """The gates, which lie one below the other on axis 0, in ONNX's order."""
    gates = np.split(tensor, len(cell.gates))
    return np.concatenate([gates[i] for i in cell.gates])
