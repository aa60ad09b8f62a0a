"""Networks are pure functions whose state can be carried, scaled and rebuilt."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from model.errors import ModelError
from model.networks import ForecastNetwork, LanguageNetwork, Network, NetworkConfig, build

LANGUAGE = NetworkConfig(
    task="language", layers=2, hidden=12, dropout=0.5, vocabulary=("\n", "a", "b", "é"), embedding=5
)
FORECAST = NetworkConfig(task="forecast", layers=2, hidden=12, features=("load", "wind", "sun"))


def _network(config: NetworkConfig) -> Network:
    torch.manual_seed(1)
    network = build(config).eval()
    torch.nn.init.normal_(network.head.weight)
    return network


def _inputs(config: NetworkConfig, batch: int = 3, time: int = 11) -> torch.Tensor:
    if config.task == "language":
        return torch.randint(len(config.vocabulary), (batch, time))
    return torch.randn(batch, time, len(config.features))


@pytest.mark.parametrize("config", [LANGUAGE, FORECAST], ids=["language", "forecast"])
def test_state_carries_everything(config: NetworkConfig) -> None:
    """A sequence cut into chunks gives the outputs and the final state of the whole."""
    network, inputs = _network(config), _inputs(config)
    whole, (h, c) = network(inputs, network.initial_state(3))
    state, parts = network.initial_state(3), []
    for chunk in inputs.split([1, 4, 6], dim=1):
        outputs, state = network(chunk, state)
        parts.append(outputs)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(state, (h, c))


@pytest.mark.parametrize("config", [LANGUAGE, FORECAST], ids=["language", "forecast"])
def test_network_remembers_nothing_itself(config: NetworkConfig) -> None:
    """Two calls with the same inputs and state give the same answer, and leave the state they were given alone."""
    network, inputs = _network(config), _inputs(config)
    state = network.initial_state(3)
    first, _ = network(inputs, state)
    second, _ = network(inputs, state)
    assert torch.equal(first, second)
    assert not state[0].any()
    assert not state[1].any()


def test_language_answers_log_probabilities() -> None:
    """The outputs of a language network are normalised log-probabilities over its vocabulary."""
    network = _network(LANGUAGE)
    outputs, _ = network(_inputs(LANGUAGE), network.initial_state(3))
    assert outputs.shape == (3, 11, 4)
    torch.testing.assert_close(outputs.exp().sum(-1), torch.ones(3, 11))


def test_state_shape_and_dtype() -> None:
    """The state is h and c, each [layers, batch, hidden] in float32, also when the products are in bfloat16."""
    network = _network(LANGUAGE)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, state = network(_inputs(LANGUAGE), network.initial_state(3))
    assert outputs.dtype == torch.float32
    assert [tensor.dtype for tensor in state] == [torch.float32] * 2
    assert [tuple(tensor.shape) for tensor in state] == [(2, 3, 12)] * 2


def test_dropout_acts_in_training_only() -> None:
    """Dropout changes a network in training mode and is absent in eval mode."""
    network, inputs = _network(LANGUAGE), _inputs(LANGUAGE)
    state = network.initial_state(3)
    served = network(inputs, state)[0]
    assert not torch.equal(network.train()(inputs, state)[0], served)
    assert torch.equal(network.eval()(inputs, state)[0], served)


def test_forecast_follows_the_units() -> None:
    """Rows in other units, with the scaling fitted to them, are forecast as the same rows."""
    network = ForecastNetwork(FORECAST)
    torch.nn.init.normal_(network.head.weight)
    rows = torch.randn(4, 50, 3)
    factor, offset = torch.tensor([1000.0, 0.01, 1.0]), torch.tensor([-5.0, 3.0, 100.0])
    network.fit_scaling(rows)
    plain, _ = network(rows, network.initial_state(4))
    network.fit_scaling(rows * factor + offset)
    other, _ = network(rows * factor + offset, network.initial_state(4))
    torch.testing.assert_close((other - offset) / factor, plain, rtol=1e-3, atol=1e-3)


def test_untrained_forecast_is_no_change() -> None:
    """A fresh forecast network repeats the present row."""
    network, rows = build(FORECAST), _inputs(FORECAST)
    assert torch.equal(network(rows, network.initial_state(3))[0], rows)


def test_constant_column_is_not_blown_up() -> None:
    """A column that never changes is scaled by 1, and so stays finite and small."""
    network = ForecastNetwork(FORECAST)
    rows = torch.randn(1, 200, 3)
    rows[..., 1] = 0.1
    network.fit_scaling(rows)
    assert network.scale[1] == 1
    assert network.scale[0] != 1


def test_forget_gate_starts_open() -> None:
    """The two biases of a forget gate add up to 1, and all others to 0, in every layer."""
    network = build(LANGUAGE)
    for layer in range(2):
        total = getattr(network.recurrent, f"bias_ih_l{layer}") + getattr(network.recurrent, f"bias_hh_l{layer}")
        assert total.tolist() == [0.0] * 12 + [1.0] * 12 + [0.0] * 24


def test_recurrence_starts_orthogonal_per_gate() -> None:
    """Each gate's recurrent matrix is orthogonal by itself."""
    network = build(LANGUAGE)
    for gate in network.recurrent.weight_hh_l1.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [LANGUAGE, FORECAST], ids=["language", "forecast"])
def test_config_survives_json(config: NetworkConfig) -> None:
    """A config written as JSON and read back is equal, tuples included."""
    assert NetworkConfig.from_json(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": 0}, "layers"),
        ({"hidden": 0}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"cell": "gru2"}, "cell"),
        ({"task": "speech"}, "task"),
        ({"vocabulary": ("a",)}, "symbols"),
        ({"embedding": 0}, "embedding"),
    ],
)
def test_impossible_config_is_refused(change: dict[str, Any], said: str) -> None:
    """A config that no network can have is refused with a sentence that names the field."""
    with pytest.raises(ModelError, match=said):
        NetworkConfig(**(asdict(LANGUAGE) | change))


def test_build_chooses_the_class() -> None:
    """`build` returns the network of the config's task."""
    assert isinstance(build(LANGUAGE), LanguageNetwork)
    assert isinstance(build(FORECAST), ForecastNetwork)
