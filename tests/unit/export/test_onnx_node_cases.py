"""ONNX's own test cases of LSTM, GRU and RNN, each made stateful, adopted, and run by the engine that serves."""

import copy
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx.backend.test.case import node as cases
from onnx.backend.test.case.node import gru, lstm, rnn  # noqa: F401 - each registers its cases
from onnx.backend.test.case.test_case import TestCase
from rich.console import Console

from export.adoption.adopting import adopt_model
from export.adoption.wishes import Wishes
from export.errors import ExportError
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import load_settings

# Every case that onnx has, so that one that vanishes is missed.
FORWARD = (
    "test_lstm_defaults",
    "test_lstm_with_initial_bias",
    "test_lstm_with_peepholes",  # with sequence lengths and initial states, too
    "test_gru_defaults",
    "test_gru_with_initial_bias",
    "test_gru_seq_length",
    "test_simple_rnn_defaults",
    "test_simple_rnn_with_initial_bias",
    "test_rnn_seq_length",
)
BACKWARD = tuple(f"test_{cell}_{way}" for cell in ("lstm", "gru", "simple_rnn") for way in ("reverse", "bidirectional"))
BATCHWISE = ("test_lstm_batchwise", "test_gru_batchwise", "test_simple_rnn_batchwise")  # batch first: layout=1
INPUTS = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
CONSTANTS = ("W", "R", "B", "P")


def test_these_are_all_cases() -> None:
    """No case of the three operators is passed over."""
    known = {*FORWARD, *BACKWARD, *BATCHWISE}
    found = {case.name for case in cases._NodeTestCases if case.name.split("_")[1] in ("lstm", "gru", "simple", "rnn")}
    assert found == known


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name: str, tmp_path: Path) -> None:
    """The engine answers as the case expects, whole and cut into single steps."""
    engine, given, expected, tolerances = _adopted(name, tmp_path)
    assert engine.signature.batched
    assert engine.signature.proof is not None
    assert engine.signature.proof.chunked
    assert engine.ragged == ("sequence_lens" in given)
    whole = _run(engine, given, cuts=False)
    single = _run(engine, given, cuts=True)
    for key, value in expected.items():
        np.testing.assert_allclose(whole[key], value, *tolerances)
        np.testing.assert_allclose(single[key], value, *tolerances)
    np.testing.assert_allclose(whole["Y"][-1], expected["Y_h"], *tolerances)  # the cases do not tell Y


@pytest.mark.parametrize("name", BACKWARD)
def test_backward(name: str, tmp_path: Path) -> None:
    """What reads a sequence from its end is run right, and known not to be cut."""
    engine, given, expected, tolerances = _adopted(name, tmp_path)
    assert engine.signature.proof is not None
    assert not engine.signature.proof.chunked
    whole = _run(engine, given, cuts=False)
    for key, value in expected.items():
        np.testing.assert_allclose(whole[key], value, *tolerances)


@pytest.mark.parametrize("name", BATCHWISE)
def test_batchwise(name: str, tmp_path: Path) -> None:
    """ONNX Runtime has no kernel for batch-first recurrences on the CPU: adoption says so in one line."""
    with pytest.raises(ExportError, match=r"^[^\n]*layout == 1\) are not supported[^\n]*$"):
        _adopted(name, tmp_path)
    assert not (tmp_path / "case").exists()


_Arrays = dict[str, np.ndarray]


def _adopted(name: str, folder: Path) -> tuple[Engine, _Arrays, _Arrays, tuple[float, float]]:
    """The engine of a case in its stateful form, the case's inputs and outputs by name, and its tolerances."""
    (case,) = [case for case in cases._NodeTestCases if case.name == name]
    inputs, outputs = case.data_sets[0]
    given = dict(zip((v.name for v in case.model.graph.input), inputs, strict=True))
    expected = dict(zip((v.name for v in case.model.graph.output), outputs, strict=True))
    constants = {key: given[key] for key in CONSTANTS if key in given}
    path = adopt_model(_stateful(case, given), folder / "case" / "1", Wishes(constants=constants), Console(quiet=True))
    engine = load_engine(path, load_settings(provider="cpu"))
    probe(engine)
    return engine, given, expected, (case.rtol, case.atol)


def _stateful(case: TestCase, given: _Arrays) -> ModelProto:
    """The case's model with states in and out, and open axes for steps and rows; its node keeps its attributes."""
    model = copy.deepcopy(case.model)
    graph = model.graph
    (node,) = graph.node
    width, hidden, directions = given["X"].shape[2], given["R"].shape[2], given["R"].shape[0]
    x: list[int | str] = ["time", "batch", width]
    state: list[int | str] = [directions, "batch", hidden]
    answer: list[int | str] = ["time", directions, "batch", hidden]
    if any(attribute.name == "layout" and attribute.i == 1 for attribute in node.attribute):
        x, state, answer = (
            ["batch", "time", width],
            ["batch", directions, hidden],
            ["batch", "time", directions, hidden],
        )
    states = {"initial_h": "Y_h", "initial_c": "Y_c"} if node.op_type == "LSTM" else {"initial_h": "Y_h"}
    taken = [key if key in given or key in states else "" for key in INPUTS[node.op_type]]
    del node.input[:], node.output[:], graph.input[:], graph.output[:]
    node.input.extend(taken)
    node.output.extend(["Y", *states.values()])
    shapes: dict[str, list[int | str]] = {"X": x, "sequence_lens": ["batch"]}
    shapes |= dict.fromkeys(states, state) | {key: [*given[key].shape] for key in CONSTANTS if key in given}
    for key in filter(None, taken):
        kind = TensorProto.INT32 if key == "sequence_lens" else TensorProto.FLOAT
        graph.input.append(helper.make_tensor_value_info(key, kind, shapes[key]))
    for key in node.output:
        graph.output.append(helper.make_tensor_value_info(key, TensorProto.FLOAT, answer if key == "Y" else state))
    return model


def _run(engine: Engine, given: _Arrays, *, cuts: bool) -> _Arrays:
    """Y [time, directions, batch, hidden] and the final states, of all rows of the case in one batch."""
    x, states = given["X"], [spec.input for spec in engine.signature.states]
    count = x.shape[1]
    first = {key: given.get(key) for key in states}
    zeros = {spec.input: np.zeros(spec.row_shape, spec.dtype) for spec in engine.signature.states}
    rows = [
        engine.layout.pack_one({k: zeros[k] if a is None else a[:, i] for k, a in first.items()}) for i in range(count)
    ]
    lengths = set(given.get("sequence_lens", np.array([len(x)])).tolist())
    assert lengths == {len(x)}  # in the cases that have them, too
    parts = []
    for part in np.split(x, len(x)) if cuts else [x]:
        done = engine.run(rows, [(part[:, i],) for i in range(count)])
        rows = done.rows
        parts.append(np.moveaxis(done.outputs["Y"], 0, 2))  # [steps, directions, batch, hidden]
    last = {s.output: s.input for s in engine.signature.states}
    kept = [engine.layout.unpack_one(row) for row in rows]
    return {"Y": np.concatenate(parts), **{o: np.stack([k[i] for k in kept], 1) for o, i in last.items()}}
