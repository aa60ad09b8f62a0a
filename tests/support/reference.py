"""The five cells in NumPy and float64, written from their equations: what PyTorch and ONNX Runtime must agree with.

A layer is a dict of weights in PyTorch's form: weight_ih [gates * hidden, width], weight_hh [gates * hidden, hidden],
bias_ih and bias_hh [gates * hidden], and weight_peephole [3 * hidden] (i, f, o) of the cell peephole; blocks of gates
one below the other in the order of GATES. States are h, or h and c, each [batch, hidden] for a layer.

Sources: Elman (1990); Cho et al. (2014), the reset gate after the matrix product; Hochreiter & Schmidhuber (1997) with
Gers et al. (2000); Gers, Schraudolph & Schmidhuber (2002); Greff et al. (2017).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Array = np.ndarray
Layer = Mapping[str, Array]
GATES = {
    "rnn": ("h",),
    "gru": ("r", "z", "n"),
    "lstm": ("i", "f", "g", "o"),
    "peephole": ("i", "f", "g", "o"),
    "cifg": ("i", "g", "o"),
}
STATES = {"rnn": ("h",), "gru": ("h",), "lstm": ("h", "c"), "peephole": ("h", "c"), "cifg": ("h", "c")}


def run(
    cell: str, layers: Sequence[Layer], inputs: Array, states: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """Inputs [time, batch, width], states each [layers, batch, hidden] -> h of the last layer, and the new states."""
    after = []
    for k, layer in enumerate(layers):
        values = gates(cell, layer, inputs, tuple(state[k] for state in states))
        inputs = values["h"]  # [time, batch, hidden]
        after.append([values[name][-1] for name in STATES[cell]])
    return inputs, tuple(np.stack(state) for state in zip(*after, strict=True))


def gates(cell: str, layer: Layer, inputs: Array, states: tuple[Array, ...]) -> dict[str, Array]:
    """Every gate's activation, and h and c, after each step of one layer: name -> [time, batch, hidden]."""
    weights = {name: np.asarray(tensor, np.float64) for name, tensor in layer.items()}
    before = {name: np.asarray(state, np.float64) for name, state in zip(STATES[cell], states, strict=True)}
    steps = []
    for x in np.asarray(inputs, np.float64):
        steps.append(STEPS[cell](_Sums(GATES[cell], weights, x, before["h"]), before))
        before = {name: steps[-1][name] for name in STATES[cell]}
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


class _Sums:
    """What the input and the h before add to each gate."""

    def __init__(self, names: tuple[str, ...], weights: Layer, x: Array, h: Array) -> None:
        hidden = h.shape[-1]
        self._blocks = {name: slice(n * hidden, (n + 1) * hidden) for n, name in enumerate(names)}
        self._weights, self._x, self._h = weights, x, h

    def of_x(self, gate: str) -> Array:
        rows = self._blocks[gate]
        added: Array = self._x @ self._weights["weight_ih"][rows].T + self._weights["bias_ih"][rows]
        return added

    def of_h(self, gate: str) -> Array:
        rows = self._blocks[gate]
        added: Array = self._h @ self._weights["weight_hh"][rows].T + self._weights["bias_hh"][rows]
        return added

    def of_both(self, gate: str) -> Array:
        return self.of_x(gate) + self.of_h(gate)

    def peephole(self, gate: str) -> Array:
        weights: Array = np.split(self._weights["weight_peephole"], 3)["ifo".index(gate)]
        return weights


def _sigmoid(x: Array) -> Array:
    squashed: Array = 1 / (1 + np.exp(-x))
    return squashed


def _rnn(sums: _Sums, before: Mapping[str, Array]) -> dict[str, Array]:
    return {"h": np.tanh(sums.of_both("h"))}


def _gru(sums: _Sums, before: Mapping[str, Array]) -> dict[str, Array]:
    r, z = _sigmoid(sums.of_both("r")), _sigmoid(sums.of_both("z"))
    n = np.tanh(sums.of_x("n") + r * sums.of_h("n"))
    return {"r": r, "z": z, "n": n, "h": (1 - z) * n + z * before["h"]}


def _lstm(sums: _Sums, before: Mapping[str, Array]) -> dict[str, Array]:
    i, f, o = (_sigmoid(sums.of_both(gate)) for gate in "ifo")
    g = np.tanh(sums.of_both("g"))
    c = f * before["c"] + i * g
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": o * np.tanh(c)}


def _peephole(sums: _Sums, before: Mapping[str, Array]) -> dict[str, Array]:
    i, f = (_sigmoid(sums.of_both(gate) + sums.peephole(gate) * before["c"]) for gate in "if")
    g = np.tanh(sums.of_both("g"))
    c = f * before["c"] + i * g
    o = _sigmoid(sums.of_both("o") + sums.peephole("o") * c)
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": o * np.tanh(c)}


def _cifg(sums: _Sums, before: Mapping[str, Array]) -> dict[str, Array]:
    i, o = _sigmoid(sums.of_both("i")), _sigmoid(sums.of_both("o"))
    g = np.tanh(sums.of_both("g"))
    f = 1 - i
    c = f * before["c"] + i * g
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": o * np.tanh(c)}


STEPS: dict[str, Callable[[_Sums, Mapping[str, Array]], dict[str, Array]]] = {
    "rnn": _rnn,
    "gru": _gru,
    "lstm": _lstm,
    "peephole": _peephole,
    "cifg": _cifg,
}
