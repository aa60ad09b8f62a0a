"""The graph against a NumPy LSTM in float64 and against torch.nn.LSTM."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import ModelProto

from export.errors import ExportError
from export.graph import build
from export.weights import Forecast, Language, Layer, Recurrence, Weights
from service.engine.providers import open_session
from service.settings import load_settings
from tests.support.artifacts import random_recurrence

TOLERANCE = 1e-5
LENGTHS = (7, 1, 4, 6, 2)

Arrays = dict[str, np.ndarray]


def _language(layers: int, seed: int = 0) -> Language:
    random = np.random.default_rng(seed)
    embedding = random.normal(size=(9, 6)).astype(np.float32)
    return Language(random_recurrence(random, 6, layers, 11, 9), tuple("abcdefghi"), embedding)


def _forecast(layers: int) -> Forecast:
    random = np.random.default_rng(3)
    mean, scale = np.array([20.0, -300.0], np.float32), np.array([4.0, 90.0], np.float32)
    return Forecast(random_recurrence(random, 2, layers, 5, 2), ("celsius", "depth"), mean, scale)


def _run(model: ModelProto, feed: Arrays) -> Arrays:
    session = open_session(model.SerializeToString(), load_settings(provider="cpu"))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def _ragged_feed(weights: Weights) -> Arrays:
    """A batch of rows of ``LENGTHS`` steps from random states; what lies beyond a row's length is noise."""
    random, batch, steps = np.random.default_rng(5), len(LENGTHS), max(LENGTHS)
    shape = (len(weights.recurrence.layers), batch, weights.recurrence.hidden)
    feed: Arrays = {"lengths": np.array(LENGTHS, np.int32)}
    feed["h"], feed["c"] = random.normal(size=(2, *shape)).astype(np.float32)
    if isinstance(weights, Language):
        return feed | {"tokens": random.integers(0, len(weights.vocabulary), (batch, steps))}
    values = weights.mean + weights.scale * random.normal(size=(batch, steps, len(weights.features)))
    return feed | {"values": values.astype(np.float32)}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _numpy_layer(layer: Layer, sequence: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hochreiter and Schmidhuber's equations with a forget gate, PyTorch's gate order; float64.

    ``sequence`` [time, width] -> hidden [time, hidden], and the last h and c.
    """
    hidden = []
    for x in sequence:
        gates = layer.weight_ih @ x + layer.bias_ih + layer.weight_hh @ h + layer.bias_hh
        i, f, g, o = np.split(gates, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        hidden.append(h)
    return np.array(hidden), h, c


def _numpy_recurrence(
    recurrence: Recurrence, sequence: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, ...]:
    states = []
    for layer, h_0, c_0 in zip(recurrence.layers, h, c, strict=True):
        sequence, *state = _numpy_layer(layer, sequence, h_0.astype(np.float64), c_0.astype(np.float64))
        states.append(state)
    answer = sequence @ recurrence.head_weight.T.astype(np.float64) + recurrence.head_bias
    return answer, *(np.array(part) for part in zip(*states, strict=True))


def _numpy_network(weights: Weights, inputs: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
    if isinstance(weights, Language):
        logits, h, c = _numpy_recurrence(weights.recurrence, weights.embedding[inputs].astype(np.float64), h, c)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)), h, c
    scaled = (inputs.astype(np.float64) - weights.mean) / weights.scale
    change, h, c = _numpy_recurrence(weights.recurrence, scaled, h, c)
    return inputs + weights.scale * change, h, c


NETWORKS = {
    "language-1": _language(1),
    "language-3": _language(3),
    "forecast-1": _forecast(1),
    "forecast-2": _forecast(2),
}


@pytest.mark.parametrize("weights", NETWORKS.values(), ids=NETWORKS)
def test_ragged_rows_answer_like_the_equations(weights: Weights) -> None:
    """Each row's outputs, and its states after its own last step, are those of a NumPy LSTM in float64."""
    feed = _ragged_feed(weights)
    got = _run(build(weights), feed)
    answer, inputs = ("logprobs", "tokens") if isinstance(weights, Language) else ("prediction", "values")
    scale = 1 if isinstance(weights, Language) else weights.scale
    for row, steps in enumerate(LENGTHS):
        want, h, c = _numpy_network(weights, feed[inputs][row, :steps], feed["h"][:, row], feed["c"][:, row])
        assert np.max(np.abs(got[answer][row, :steps] - want) / scale) < TOLERANCE
        assert np.max(np.abs(got["h_next"][:, row] - h)) < TOLERANCE
        assert np.max(np.abs(got["c_next"][:, row] - c)) < TOLERANCE


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_agree_with_torch(layers: int) -> None:
    """The nodes are torch.nn.LSTM of the same weights, final states included."""
    weights = _language(layers, seed=layers)
    lstm = torch.nn.LSTM(6, 11, layers, batch_first=True)
    for i, layer in enumerate(weights.recurrence.layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(lstm, f"{name}_l{i}").data.copy_(torch.from_numpy(getattr(layer, name)))
    feed = _ragged_feed(weights) | {"lengths": np.full(len(LENGTHS), max(LENGTHS), np.int32)}
    got = _run(build(weights), feed)
    with torch.inference_mode():
        embedded = torch.from_numpy(weights.embedding[feed["tokens"]])
        hidden, states = lstm(embedded, (torch.from_numpy(feed["h"]), torch.from_numpy(feed["c"])))
        head = torch.from_numpy(weights.recurrence.head_weight), torch.from_numpy(weights.recurrence.head_bias)
        want = torch.log_softmax(torch.nn.functional.linear(hidden, *head), -1)
    for name, tensor in zip(("logprobs", "h_next", "c_next"), (want, *states), strict=True):
        np.testing.assert_allclose(got[name], tensor.numpy(), rtol=0, atol=TOLERANCE)


def test_recurrence_is_the_native_operator() -> None:
    """One LSTM node per layer of the standard operator set, fed with lengths and initial states."""
    model = build(_language(3))
    nodes = [node for node in model.graph.node if node.op_type == "LSTM"]
    assert len(nodes) == 3
    assert all("lengths" in node.input and not node.domain for node in nodes)
    assert [[opset.domain, opset.version] for opset in model.opset_import] == [["", 17]]


def test_batch_and_time_are_free() -> None:
    """The graph's tensors name batch and time instead of giving them a size."""
    graph = build(_forecast(2)).graph
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
    weights = _language(1)
    with pytest.raises(ExportError, match="the cell 'sru' cannot be exported: choose one of lstm"):
        build(replace(weights, recurrence=replace(weights.recurrence, cell="sru")))
