"""The graph of every cell against its equations in float64, and against PyTorch's modules."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper

from export.errors import ExportError
from export.graph import build
from export.weights import Forecast, Language, Weights
from service.engine.providers import open_session
from service.settings import load_settings
from tests.support import reference
from tests.support.artifacts import random_recurrence

TOLERANCE = 1e-5
LENGTHS = (7, 1, 4, 6, 2)

Arrays = dict[str, np.ndarray]
Kind = Callable[[str, int], Weights]


def _language(cell: str, layers: int, seed: int = 0) -> Language:
    random = np.random.default_rng(seed)
    embedding = random.normal(size=(9, 6)).astype(np.float32)
    return Language(random_recurrence(random, 6, layers, 11, 9, cell), tuple("abcdefghi"), embedding)


def _forecast(cell: str, layers: int) -> Forecast:
    random = np.random.default_rng(3)
    mean, scale = np.array([20.0, -300.0], np.float32), np.array([4.0, 90.0], np.float32)
    return Forecast(random_recurrence(random, 2, layers, 5, 2, cell), ("celsius", "depth"), mean, scale)


def _run(model: ModelProto, feed: Arrays) -> Arrays:
    session = open_session(model.SerializeToString(), load_settings(provider="cpu"))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def _states(weights: Weights) -> tuple[str, ...]:
    return reference.STATES[weights.recurrence.cell]


def _ragged_feed(weights: Weights, lengths: Sequence[int] = LENGTHS) -> Arrays:
    """A batch of rows of ``lengths`` steps from random states; what lies beyond a row's length is noise."""
    random, batch, steps = np.random.default_rng(5), len(lengths), max(lengths)
    shape = (len(weights.recurrence.layers), batch, weights.recurrence.hidden)
    feed: Arrays = {"lengths": np.array(lengths, np.int32)}
    feed |= {name: random.normal(size=shape).astype(np.float32) for name in _states(weights)}
    if isinstance(weights, Language):
        return feed | {"tokens": random.integers(0, len(weights.vocabulary), (batch, steps))}
    values = weights.mean + weights.scale * random.normal(size=(batch, steps, len(weights.features)))
    return feed | {"values": values.astype(np.float32)}


def _equations(weights: Weights, inputs: np.ndarray, states: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """One row in float64: inputs [time, ...], states [layers, hidden] -> answer [time, width], and the new states."""
    recurrence = weights.recurrence
    layers = [{k: v for k, v in vars(layer).items() if v is not None} for layer in recurrence.layers]
    language = isinstance(weights, Language)
    steps = weights.embedding[inputs] if language else (inputs.astype(np.float64) - weights.mean) / weights.scale
    hidden, after = reference.run(recurrence.cell, layers, steps[:, None], tuple(state[:, None] for state in states))
    answer = hidden[:, 0] @ recurrence.head_weight.T.astype(np.float64) + recurrence.head_bias
    if language:
        answer = answer - np.log(np.exp(answer).sum(axis=-1, keepdims=True))
    else:
        answer = inputs + weights.scale * answer
    return answer, *(state[:, 0] for state in after)


def _assert_row(weights: Weights, feed: Arrays, got: Arrays, row: int, steps: int) -> None:
    """The row's outputs, and its states after its own last step, are those of the equations."""
    answer, inputs = ("logprobs", "tokens") if isinstance(weights, Language) else ("prediction", "values")
    scale = 1 if isinstance(weights, Language) else weights.scale
    names = _states(weights)
    want, *states = _equations(weights, feed[inputs][row, :steps], [feed[name][:, row] for name in names])
    assert np.max(np.abs(got[answer][row, :steps] - want) / scale) < TOLERANCE
    for name, state in zip(names, states, strict=True):
        assert np.max(np.abs(got[f"{name}_next"][:, row] - state)) < TOLERANCE


@pytest.mark.parametrize("lengths", [LENGTHS, (40, *[1] * 20), (1,)], ids=["ragged", "one long", "one step"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", [_language, _forecast])
def test_ragged_rows_answer_like_the_equations(kind: Kind, cell: str, layers: int, lengths: tuple[int, ...]) -> None:
    """Each row's outputs, and its states after its own last step, are those of NumPy in float64."""
    weights = kind(cell, layers)
    feed = _ragged_feed(weights, lengths)
    got = _run(build(weights), feed)
    for row, steps in enumerate(lengths):
        _assert_row(weights, feed, got, row, steps)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_answer_like_the_equations(cell: str, chunk: int) -> None:
    """Cut into ragged chunks, the states handed on, each row comes to what the equations say of the whole."""
    weights = _language(cell, 2)
    feed = _ragged_feed(weights)
    model, left = build(weights), np.array(LENGTHS)
    answers = np.zeros((len(LENGTHS), max(LENGTHS), len(weights.vocabulary)), np.float32)
    states = {name: feed[name].copy() for name in _states(weights)}
    for start in range(0, max(LENGTHS), chunk):
        rows = np.flatnonzero(left > start)  # those that still have steps
        turn = {"lengths": np.minimum(left[rows] - start, chunk).astype(np.int32)}
        turn["tokens"] = feed["tokens"][rows, start : start + turn["lengths"].max()]
        got = _run(model, turn | {name: state[:, rows] for name, state in states.items()})
        answers[rows, start : start + got["logprobs"].shape[1]] = got["logprobs"]
        for name, state in states.items():
            state[:, rows] = got[f"{name}_next"]
    done = {"logprobs": answers} | {f"{name}_next": state for name, state in states.items()}
    for row, steps in enumerate(LENGTHS):
        _assert_row(weights, feed, done, row, steps)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_layers_agree_with_torch(cell: str, layers: int) -> None:
    """The nodes are torch's own module of the same weights, final states included."""
    weights = _language(cell, layers, seed=layers)
    make = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    module = make(6, 11, layers, batch_first=True)
    for i, layer in enumerate(weights.recurrence.layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(module, f"{name}_l{i}").data.copy_(torch.from_numpy(getattr(layer, name)))
    feed = _ragged_feed(weights) | {"lengths": np.full(len(LENGTHS), max(LENGTHS), np.int32)}
    got = _run(build(weights), feed)
    with torch.inference_mode():
        embedded = torch.from_numpy(weights.embedding[feed["tokens"]])
        before = tuple(torch.from_numpy(feed[name]) for name in _states(weights))
        hidden, after = module(embedded, before if len(before) > 1 else before[0])
        head = torch.from_numpy(weights.recurrence.head_weight), torch.from_numpy(weights.recurrence.head_bias)
        want = torch.log_softmax(torch.nn.functional.linear(hidden, *head), -1)
    found = {"logprobs": want, **dict(zip(_states(weights), after if len(before) > 1 else (after,), strict=True))}
    for name, tensor in found.items():
        have = got[name] if name == "logprobs" else got[f"{name}_next"]
        np.testing.assert_allclose(have, tensor.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("cell", "operator", "attributes", "inputs"),
    [
        ("rnn", "RNN", {}, "X W R B lengths h"),
        ("gru", "GRU", {"linear_before_reset": 1}, "X W R B lengths h"),
        ("lstm", "LSTM", {}, "X W R B lengths h c"),
        ("peephole", "LSTM", {}, "X W R B lengths h c P"),
        ("cifg", "LSTM", {"input_forget": 1}, "X W R B lengths h c"),
    ],
)
def test_recurrence_is_the_native_operator(cell: str, operator: str, attributes: dict[str, int], inputs: str) -> None:
    """One node per layer of the standard operator set, fed with lengths and initial states."""
    model = build(_language(cell, 3))
    nodes = [node for node in model.graph.node if node.op_type == operator]
    assert len(nodes) == 3
    for i, node in enumerate(nodes):
        steps = f"hidden_{i - 1}" if i else "embedded"
        names = [{"X": steps, "lengths": "lengths"}.get(name, f"{name}_{i}") for name in inputs.split()]
        assert list(node.input) == names
        assert not node.domain
        assert {a.name: helper.get_attribute_value(a) for a in node.attribute} == attributes | {"hidden_size": 11}
    assert [[opset.domain, opset.version] for opset in model.opset_import] == [["", 17]]


def test_batch_and_time_are_free() -> None:
    """The graph's tensors name batch and time instead of giving them a size."""
    graph = build(_forecast("lstm", 2)).graph
    shapes = {
        tensor.name: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in (*graph.input, *graph.output)
    }
    assert shapes == {
        "values": ["batch", "time", 2],
        "lengths": ["batch"],
        "h": [2, "batch", 5],
        "c": [2, "batch", 5],
        "prediction": ["batch", "time", 2],
        "h_next": [2, "batch", 5],
        "c_next": [2, "batch", 5],
    }


def test_a_cell_without_a_graph_is_refused_by_name() -> None:
    """A cell that export does not know is named in the error, with those that it knows."""
    weights = _language("lstm", 1)
    with pytest.raises(
        ExportError, match="the cell 'sru' cannot be exported: choose one of rnn, gru, lstm, peephole, cifg"
    ):
        build(replace(weights, recurrence=replace(weights.recurrence, cell="sru")))
