"""A trained network as plain numbers: what the graph is built from.

Owns the shapes, all float32, gates one below the other in the order of ``model/``: r, z, n of a GRU, i, f, g, o of an
LSTM with or without peepholes, i, g, o of one whose forget gate is coupled. Knows neither PyTorch nor ONNX, so that a
graph can be built from weights of any origin.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One recurrent layer; ``gates`` is how many there are in the order of its cell, 1 for a plain RNN."""

    weight_ih: Array  # [gates * hidden, width of the layer's input]
    weight_hh: Array  # [gates * hidden, hidden]
    bias_ih: Array  # [gates * hidden]
    bias_hh: Array  # [gates * hidden]
    weight_peephole: Array | None = None  # [3 * hidden], i, f, o: what gates see of the cell state

    @property
    def hidden(self) -> int:
        """The width of the layer's state."""
        return int(self.weight_hh.shape[1])


@dataclass(frozen=True)
class Recurrence:
    """What both tasks have in common: recurrent layers of one width, and a linear head on the last one."""

    cell: str
    layers: tuple[Layer, ...]
    head_weight: Array  # [width of the answer, hidden]
    head_bias: Array  # [width of the answer]

    @property
    def hidden(self) -> int:
        """The width of each layer's state."""
        return self.layers[0].hidden


@dataclass(frozen=True)
class Language:
    """Token ids to log-probabilities of the next token."""

    recurrence: Recurrence
    vocabulary: tuple[str, ...]
    embedding: Array  # [symbols, width of the first layer's input]

    task: ClassVar[Literal["language"]] = "language"


@dataclass(frozen=True)
class Forecast:
    """Values in the user's units to the next values: ``values + scale * head((values - mean) / scale)``."""

    recurrence: Recurrence
    features: tuple[str, ...]
    mean: Array  # [features]
    scale: Array  # [features]

    task: ClassVar[Literal["forecast"]] = "forecast"


Weights = Language | Forecast
