"""Gates recomputed from the weights: they are the reference's, and lead to the very states that were served."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from export.adoption.adopting import adopt_file
from export.adoption.wishes import Wishes
from service.engine.gates import Inspector
from service.engine.probe import random_chunk
from service.engine.runtime import Engine, load_engine
from service.errors import ModelNotLoaded, UndecodableState, UnsupportedTask
from service.settings import load_settings
from service.state import Chunk
from service.trace import Layer, begun, extended
from tests.support import adopted, artifacts, operators, reference

CPU = load_settings(provider="cpu")
CELLS = ["rnn", "gru", "lstm", "peephole", "cifg"]
SHIPPED = sorted((Path(__file__).parents[3] / "model_repository").glob("*/*/model.onnx"))
WRITERS: dict[str, Callable[[Path], Path]] = {
    **{f"language {cell}": partial(artifacts.language, cell=cell) for cell in CELLS},
    **{f"forecast {cell}": partial(artifacts.forecast, cell=cell, layers=3) for cell in CELLS},
    "RNN": partial(operators.operator, kind="RNN"),
    "GRU": partial(operators.operator, kind="GRU"),
    "GRU, reset behind": partial(operators.operator, kind="GRU", reset_behind=True),
    "LSTM": partial(operators.operator, kind="LSTM"),
    "GRU, one step": partial(operators.operator, kind="GRU", layout="one step"),
    "LSTM, one step": partial(operators.operator, kind="LSTM", layout="one step"),
}


def stepped(engine: Engine, chunk: Chunk, gates: int, row: bytes = b"") -> tuple[bytes, list[bytes]]:
    """The trace of a session that consumed a chunk step by step, and its row after each step."""
    trace, rows = begun(gates), [row or engine.initial_row]
    for step in range(len(chunk[0])):
        one = tuple(a[step : step + 1] for a in chunk)
        trace = extended(trace, rows[-1], one)
        rows += engine.run([rows[-1]], [one]).rows
    return trace, rows[1:]


def served(engine: Engine, rows: list[bytes]) -> list[dict[str, np.ndarray]]:
    """The states h (and c) of each layer after each step, as they are in the rows: name -> [steps, hidden]."""
    layers = []
    for i, operator in enumerate(engine.signature.recurrences):
        names = [state.input for state in engine.signature.states]
        told = {}
        for name in names:
            told[name[0]] = np.stack(
                [engine.layout.unpack_one(row)[name].reshape(-1, operator.hidden)[i] for row in rows]
            )
        layers.append(told)
    return layers


def assert_states_are_those_served(engine: Engine, layers: list[Layer], rows: list[bytes]) -> None:
    """To 1e-5, after every step, in every layer; of cell states beyond 1, to 1e-5 of their size."""
    for layer, told in zip(layers, served(engine, rows), strict=True):
        assert set(layer.states) == set(told)
        for name, values in told.items():
            assert np.max(np.abs(layer.states[name] - values) / np.maximum(1, np.abs(values))) <= 1e-5


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_recomputed_states_are_those_that_were_served(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Of every cell and layout, whether the model is ours or another's, over hundreds of steps."""
    engine = load_engine(write(tmp_path / "m" / "1" / "model.onnx"), CPU)
    chunk = random_chunk(engine.signature, 300, np.random.default_rng(1))
    trace, rows = stepped(engine, chunk, 100)
    layers = Inspector(engine, CPU).layers(trace, 100)
    assert [layer.steps for layer in layers] == [100] * len(layers)
    assert_states_are_those_served(engine, layers, rows[-100:])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parts[-3])
def test_the_shipped_models_can_be_looked_into(path: Path) -> None:
    """The same over thousands of random steps of the models that the project ships."""
    engine = load_engine(path, CPU)
    assert engine.signature.recurrences
    chunk = random_chunk(engine.signature, 3000, np.random.default_rng(2))
    trace, rows = stepped(engine, chunk, 1500)
    assert_states_are_those_served(engine, Inspector(engine, CPU).layers(trace, 1500), rows[-1500:])


@pytest.mark.parametrize("cell", CELLS)
def test_gates_are_those_of_the_equations(tmp_path: Path, cell: str) -> None:
    """Each gate of each layer by its name, held against the cells' reference in float64."""
    engine = load_engine(artifacts.language(tmp_path / "m" / "1" / "model.onnx", cell=cell, seed=3), CPU)
    random = np.random.default_rng(3)
    embedding = random.normal(size=(29, 8)).astype(np.float32)
    weights = artifacts.random_recurrence(random, 8, 2, 16, 29, cell)
    chunk = random_chunk(engine.signature, 40, random)
    inputs = embedding[chunk[0]][:, None]  # [steps, 1, width]
    trace, _ = stepped(engine, chunk, 40)
    for layer, own in zip(Inspector(engine, CPU).layers(trace, 40), weights.layers, strict=True):
        tensors = {name: getattr(own, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        if own.weight_peephole is not None:
            tensors["weight_peephole"] = own.weight_peephole
        zeros = tuple(np.zeros((1, 16)) for _ in reference.STATES[cell])
        told = reference.gates(cell, tensors, inputs, zeros)
        assert set(told) == {*layer.gates, *layer.states}
        for name, values in {**layer.gates, **layer.states}.items():
            np.testing.assert_allclose(values, told[name][:, 0], rtol=0, atol=1e-5)
        inputs = told["h"]


def test_the_share_of_saturated_units_is_counted() -> None:
    """Below 0.1 and above 0.9 of a sigmoid; of a tanh, the same of (1 + x) / 2; an RNN has only its h."""
    h = np.array([[-0.9, 0.0, 0.81, 0.79]])
    told = Layer("a", "LSTM", 4, {"i": np.array([[0.05, 0.5, 0.95, 0.92]]), "g": h}, {"h": h, "c": h}).saturated()
    assert {name: (s["below"].tolist(), s["above"].tolist()) for name, s in told.items()} == {
        "i": ([0.25], [0.5]),
        "g": ([0.25], [0.25]),
    }
    assert set(Layer("a", "RNN", 4, {}, {"h": h}).saturated()) == {"h"}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A small language model."""
    return load_engine(artifacts.language(tmp_path / "m" / "1" / "model.onnx"), CPU)


def test_a_session_that_has_consumed_nothing_has_nothing_to_show(engine: Engine) -> None:
    """Every layer is told, with no steps."""
    layers = Inspector(engine, CPU).layers(begun(5), 5)
    assert [(layer.steps, layer.numbers) for layer in layers] == [(0, 0), (0, 0)]
    assert set(layers[0].saturated()) == {"i", "f", "g", "o"}


def test_the_last_steps_are_the_end_of_all(engine: Engine) -> None:
    """Asking for fewer tells the same of them."""
    trace, _ = stepped(engine, random_chunk(engine.signature, 25, np.random.default_rng(0)), 10)
    inspector = Inspector(engine, CPU)
    every, few = inspector.layers(trace, 10), inspector.layers(trace, 3)
    for whole, end in zip(every, few, strict=True):
        assert (whole.steps, end.steps) == (10, 3)
        np.testing.assert_allclose(end.gates["f"], whole.gates["f"][-3:], atol=1e-6)


def test_a_file_that_was_replaced_is_not_taken_for_the_model(engine: Engine) -> None:
    """Gates come from the weights that serve; once opened, the file is not needed any more."""
    trace, _ = stepped(engine, random_chunk(engine.signature, 2, np.random.default_rng(0)), 2)
    opened = Inspector(engine, CPU)
    opened.layers(trace, 2)
    engine.path.unlink()
    assert opened.layers(trace, 2)[0].steps == 2
    with pytest.raises(ModelNotLoaded, match="replaced or removed"):
        Inspector(engine, CPU).layers(trace, 2)
    artifacts.language(engine.path, seed=9)
    with pytest.raises(ModelNotLoaded, match="replaced or removed"):
        Inspector(engine, CPU).layers(trace, 2)


def test_tensors_that_the_graph_does_not_have_are_named(engine: Engine) -> None:
    """A signature that promises too much is an error with a name, not a fault of the service."""
    first = engine.signature.recurrences[0].model_copy(update={"weight": "nothing"})
    engine.signature = engine.signature.model_copy(update={"recurrences": (first,)})
    trace = extended(begun(1), engine.initial_row, (np.array([1]),))
    with pytest.raises(UnsupportedTask, match="cannot be computed"):
        Inspector(engine, CPU).layers(trace, 1)


@pytest.mark.parametrize(
    "trace", [extended(begun(2), b"row", (np.array([1]),)), extended(begun(2), b"row", (np.zeros(1), np.zeros(1)))]
)
def test_another_models_trace_is_refused(engine: Engine, trace: bytes) -> None:
    """A row or inputs of another size are an error with a name, never zeros."""
    with pytest.raises(UndecodableState):
        Inspector(engine, CPU).layers(trace, 2)


FRAMES = """frames (float[b,4,3] x, float[1,b,5] h) => (float[b,5] y, float[1,b,5] hn) {
    s = Transpose <perm = [1,0,2]> (x)
    all, hn = GRU <hidden_size = 5> (s, W, R, B, , h)
    y = Squeeze (hn, zero)
}"""
CHANNELS = """channels (float[t,b,2,3] x, float[b,2,5] h) => (float[t,b,2,5] y, float[b,2,5] hn) {
    s = Reshape (x, flat)
    before = Reshape (h, into)
    all, after = GRU <hidden_size = 5> (s, W, R, B, , before)
    one_direction = Squeeze (all, one)
    y = Reshape (one_direction, back)
    hn = Reshape (after, out)
}"""


@pytest.mark.parametrize(("text", "told"), [(FRAMES, "takes 4 steps of 1 rows"), (CHANNELS, "takes 1 steps of 2 rows")])
def test_an_operator_with_steps_or_rows_of_its_own_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """Frames of a chunk, channels of a row: its h after one of them is not that after the model's step."""
    random = np.random.default_rng(0)
    shapes = {"W": (1, 15, 3), "R": (1, 15, 5), "B": (1, 30)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    whole = {"zero": [0], "one": [1], "flat": [0, -1, 3], "into": [1, -1, 5], "back": [0, -1, 2, 5], "out": [-1, 2, 5]}
    used = {name: np.array(value) for name, value in whole.items() if f"{name})" in text}
    file = adopted.written(tmp_path / "foreign.onnx", adopted.model(text, **weights, **used))
    adopt_file(file, tmp_path / "m" / "1", Wishes(), Console(quiet=True))
    engine = load_engine(tmp_path / "m" / "1" / "model.onnx", CPU)
    assert engine.signature.recurrences
    trace, _ = stepped(engine, random_chunk(engine.signature, 3, random), 3)
    with pytest.raises(UnsupportedTask, match=told):
        Inspector(engine, CPU).layers(trace, 3)
