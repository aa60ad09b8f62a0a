"""One step of ONNX's native recurrent operators in NumPy, so that their gates can be seen.

Equations, gate orders and names of the weights are those of the operators' documentation (onnx.ai/onnx/operators: RNN,
GRU, LSTM), with the default activations. Computed in float64, for many steps at once, each from the states before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.artifact import Recurrence

Activations = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # gates and states by name, each [steps, hidden]


@dataclass(frozen=True, slots=True)
class Weights:
    """Of an operator with ``n`` gates: W [n * hidden, width], R [n * hidden, hidden], B of W and of R [2, n * hidden],
    P [3, hidden]."""

    w: np.ndarray
    r: np.ndarray
    b: np.ndarray
    p: np.ndarray

    @classmethod
    def of(cls, operator: Recurrence, tensors: Mapping[str, np.ndarray]) -> "Weights":
        """The weights of an operator from the graph's tensors; a bias or peepholes that it has not are zeros."""

        def tensor(name: str | None, *shape: int) -> np.ndarray:
            return tensors[name].astype(np.float64).reshape(shape) if name else np.zeros(shape)

        rows = len(tensors[operator.weight][0])
        w, r = tensor(operator.weight, rows, -1), tensor(operator.recurrence, rows, -1)
        return cls(w, r, tensor(operator.bias, 2, rows), tensor(operator.peephole, 3, operator.hidden))


def step(operator: Recurrence, k: Weights, x: np.ndarray, states: Sequence[np.ndarray]) -> Activations:
    """What an operator computes from ``x`` [steps, width] and the states before each (h, and c) [steps, hidden]."""
    formula = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[operator.operator]
    return formula(operator, k, x @ k.w.T + k.b[0], states)


def _rnn(_: Recurrence, k: Weights, x: np.ndarray, states: Sequence[np.ndarray]) -> Activations:
    """h' = tanh(W x + R h + b)."""
    (h,) = states
    return {}, {"h": np.tanh(x + h @ k.r.T + k.b[1])}


def _gru(operator: Recurrence, k: Weights, x: np.ndarray, states: Sequence[np.ndarray]) -> Activations:
    """Gates z, r, n in this order; h' = (1 - z) n + z h. The reset gate acts on h, or behind its product with R."""
    (h,) = states
    (x_z, x_r, x_n), (r_z, r_r, r_n), (b_z, b_r, b_n) = np.split(x, 3, axis=1), np.split(k.r, 3), np.split(k.b[1], 3)
    z, r = _sigmoid(x_z + h @ r_z.T + b_z), _sigmoid(x_r + h @ r_r.T + b_r)
    n = np.tanh(x_n + (r * (h @ r_n.T + b_n) if operator.linear_before_reset else (r * h) @ r_n.T + b_n))
    return {"r": r, "z": z, "n": n}, {"h": (1 - z) * n + z * h}


def _lstm(operator: Recurrence, k: Weights, x: np.ndarray, states: Sequence[np.ndarray]) -> Activations:
    """Gates i, o, f, g in this order, peepholes of i, o, f; c' = f c + i g, h' = o tanh(c')."""
    h, c = states
    i, o, f, g = np.split(x + h @ k.r.T + k.b[1], 4, axis=1)
    p_i, p_o, p_f = k.p
    i, g = _sigmoid(i + p_i * c), np.tanh(g)
    f = 1 - i if operator.coupled else _sigmoid(f + p_f * c)
    c = f * c + i * g
    o = _sigmoid(o + p_o * c)
    return {"i": i, "f": f, "g": g, "o": o}, {"h": o * np.tanh(c), "c": c}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # never overflows
