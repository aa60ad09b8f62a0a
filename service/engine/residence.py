"""A model's graph with its states in memory of its own: gathered from there before a step, scattered to it after.

Owns the nodes around the graph, and how the states of rows lie in that memory: those of one type side by side, in an
arena [slots, width]. So however many states a model has, one operator gathers them, one scatters them, and what it
scatters is a tensor [rows, width] of its own: all that a commit needs, in one copy.

                from                                                to
                 |                                                  |
    arena -> Gather -> Split -> (axes) -> the graph -> (axes) -> Concat -> ScatterElements -> kept, in the arena's place
                                                                    |
                                                                  rows
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.artifact import DType, Signature, StateSpec
from service.engine import onnx_file
from service.state import RowLayout, Tensors, axes_moved

MIN_OPSET = 13  # Split takes its sizes as an input
PREFIX = "lstm_serve."
FROM, TO = PREFIX + "from", PREFIX + "to"  # int64 [rows] and [rows, 1]: the slots that rows come from and go to
_PLACES = onnx_file.tensor(FROM, "int64", ["rows"]), onnx_file.tensor(TO, "int64", ["rows", 1])
_IR_VERSION, _OPSET = 8, 17


@dataclass(frozen=True, slots=True)
class Bank:
    """The states of one type: where their rows lie side by side. The names are of the graph's tensors."""

    states: tuple[StateSpec, ...]

    @property
    def dtype(self) -> DType:
        """The type of the states."""
        return self.states[0].dtype

    @property
    def widths(self) -> list[int]:
        """Numbers of each state in one row."""
        return [math.prod(state.row_shape) for state in self.states]

    @property
    def width(self) -> int:
        """Numbers in one row."""
        return sum(self.widths)

    def named(self, what: str) -> str:
        """The name of a tensor of this bank: ``arena`` and ``kept`` [slots, width], ``rows`` [rows, width]."""
        return f"{PREFIX}{self.dtype}.{what}"

    def packed(self, layout: RowLayout, rows: Sequence[bytes]) -> np.ndarray:
        """Rows of sessions as [rows, width]; UndecodableState where one is not the model's."""
        tensors = layout.gather(rows)
        parts = [np.moveaxis(tensors[s.input], s.batch_axis or 0, 0).reshape(len(rows), -1) for s in self.states]
        return np.concatenate(parts, axis=1)

    def unpacked(self, packed: np.ndarray) -> Tensors:
        """[rows, width] as the graph's new states, by name: views of it."""
        parts = np.split(packed, np.cumsum(self.widths)[:-1], axis=1)
        return {
            state.output: np.moveaxis(part.reshape(len(packed), *state.row_shape), 0, state.batch_axis or 0)
            for state, part in zip(self.states, parts, strict=True)
        }

    def arena(self) -> bytes:
        """The arena as an input of a graph."""
        return onnx_file.tensor(self.named("arena"), self.dtype, ["slots", self.width])

    def gathering(self) -> list[bytes]:
        """The nodes that make the graph's states of the arena."""
        gathered, sizes = self.named("gathered"), self.named("widths")
        parts = [self.named(f"{i}.part") for i in range(len(self.states))]
        nodes = [
            onnx_file.node("Gather", [self.named("arena"), FROM], [gathered], axis=0),
            onnx_file.constant(sizes, self.widths),
            onnx_file.node("Split", [gathered, sizes], parts, axis=1),
        ]
        for i, (state, part) in enumerate(zip(self.states, parts, strict=True)):
            shape, row = self.named(f"{i}.shape"), self.named(f"{i}.row")
            axes = axes_moved(len(state.shape), (0,), (state.batch_axis or 0,))
            nodes += [
                onnx_file.constant(shape, [0, *state.row_shape]),  # 0: as many rows as there are
                onnx_file.node("Reshape", [part, shape], [row]),
                onnx_file.node("Transpose", [row], [state.input], perm=axes),
            ]
        return nodes

    def scattering(self) -> list[bytes]:
        """The nodes that make rows of the graph's new states, and put them into the arena."""
        nodes, flat = [], [self.named(f"{i}.flat") for i in range(len(self.states))]
        for i, (state, width) in enumerate(zip(self.states, self.widths, strict=True)):
            shape, row = self.named(f"{i}.width"), self.named(f"{i}.next")
            axes = axes_moved(len(state.shape), (state.batch_axis or 0,), (0,))
            nodes += [
                onnx_file.node("Transpose", [state.output], [row], perm=axes),
                onnx_file.constant(shape, [-1, width]),
                onnx_file.node("Reshape", [row, shape], [flat[i]]),
            ]
        return [*nodes, onnx_file.node("Concat", flat, [self.named("rows")], axis=1), *self.putting()]

    def putting(self) -> list[bytes]:
        """The nodes that put rows into the arena.

        Each number has its own thread on a GPU; ScatterND would write a whole row with one.

        The slot of a row is spread over its numbers by adding zeros: with Shape and Expand, ONNX Runtime would do it on
        the CPU and carry the indices over.
        """
        zeros, places = self.named("zeros"), self.named("places")
        put = [self.named("arena"), places, self.named("rows")]
        return [
            onnx_file.constant(zeros, [0] * self.width),
            onnx_file.node("Add", [TO, zeros], [places]),
            onnx_file.node("ScatterElements", put, [self.named("kept")], axis=0),
        ]


def banks_of(signature: Signature) -> list[Bank]:
    """The banks of a model: one for each type of its states."""
    kinds = dict.fromkeys(state.dtype for state in signature.states)
    return [Bank(tuple(state for state in signature.states if state.dtype == kind)) for kind in kinds]


def resident(content: bytes, banks: Sequence[Bank]) -> bytes:
    """The model whose states come from arenas and go there. Its new states are still outputs, too."""
    inputs = [*_PLACES, *(bank.arena() for bank in banks)]
    before = onnx_file.graph([node for bank in banks for node in bank.gathering()], inputs)
    told = [bank.named(what) for bank in banks for what in ("kept", "rows")]
    after = onnx_file.graph([node for bank in banks for node in bank.scattering()], outputs=told)
    states = {state.input for bank in banks for state in bank.states}
    return before + onnx_file.without_inputs(content, states) + after


def putting(banks: Sequence[Bank]) -> bytes:
    """A model that puts rows into arenas: ``rows`` of each bank, into the slots TO."""
    rows = [onnx_file.tensor(bank.named("rows"), bank.dtype, ["rows", bank.width]) for bank in banks]
    inputs = [_PLACES[1], *(bank.arena() for bank in banks), *rows]
    nodes = [node for bank in banks for node in bank.putting()]
    return onnx_file.model(_OPSET, _IR_VERSION) + onnx_file.graph(nodes, inputs, [bank.named("kept") for bank in banks])
