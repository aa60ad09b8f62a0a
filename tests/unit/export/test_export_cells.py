"""Each cell as ONNX's own operator: the gate passes what the table says, and fails every other reading of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from export.cells import CELLS
from export.errors import ExportError
from export.network import freeze, reference_of
from export.parity import check
from export.weights import Weights
from model import cells
from model.networks import Network
from service.engine.runtime import Engine

Load = Callable[[Weights], Engine]

# What an exporter may get wrong: the cell, and what is changed in its row.
MISTAKES: Mapping[str, tuple[str, dict[str, object]]] = {
    "rnn, another activation": ("rnn", {"attributes": {"activations": ["Relu"]}}),
    "gru, gates in PyTorch's order": ("gru", {"gates": (0, 1, 2)}),
    "gru, reset before the product": ("gru", {"attributes": {}}),
    "lstm, gates in PyTorch's order": ("lstm", {"gates": (0, 1, 2, 3)}),
    "lstm, coupled": ("lstm", {"attributes": {"input_forget": 1}}),
    "peephole, gates in PyTorch's order": ("peephole", {"gates": (0, 1, 2, 3)}),
    "peephole, peepholes in the order of the weights": ("peephole", {"peepholes": (0, 1, 2)}),
    "cifg, output and cell gate swapped": ("cifg", {"gates": (0, 1, None, 2)}),
    "cifg, not coupled": ("cifg", {"attributes": {}}),
}


@pytest.mark.parametrize(("cell", "change"), MISTAKES.values(), ids=MISTAKES)
def test_a_misread_operator_fails(
    network: Network, load: Load, monkeypatch: pytest.MonkeyPatch, cell: str, change: dict[str, object]
) -> None:
    """A wrong order of gates or peepholes, an attribute that is missing or too much: the gate finds it."""
    monkeypatch.setitem(CELLS, cell, replace(CELLS[cell], **change))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="differ from PyTorch"):
        check(load(freeze(network)), reference_of(network)).require()


@pytest.mark.parametrize("cell", ["peephole"])
def test_peepholes_that_are_left_out_fail(network: Network, load: Load) -> None:
    """An LSTM of the same weights without its peepholes is another network."""
    weights = freeze(network)
    plain = tuple(replace(layer, weight_peephole=None) for layer in weights.recurrence.layers)
    engine = load(replace(weights, recurrence=replace(weights.recurrence, cell="lstm", layers=plain)))
    with pytest.raises(ExportError, match="differ from PyTorch"):
        check(engine, reference_of(network)).require()


def test_the_cells_that_can_be_trained_are_those_that_can_be_exported() -> None:
    """Two tables, one list of cells, of states and of how many gates the weights hold."""
    assert CELLS.keys() == cells.CELLS.keys()
    for name, cell in CELLS.items():
        assert cell.states == cells.CELLS[name].states
        assert sorted(g for g in cell.gates if g is not None) == list(range(len(cells.CELLS[name].gates)))
