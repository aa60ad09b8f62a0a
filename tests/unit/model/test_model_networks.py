"""Networks are pure functions whose state can be carried, scaled and rebuilt."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from model.cells import CELLS
from model.errors import ModelError
from model.networks import ForecastNetwork, LanguageNetwork, Network, NetworkConfig, build, keep_for
from model.trainer import computes_bfloat16

EACH_CELL = pytest.mark.parametrize("cell", CELLS)
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


@EACH_CELL
@pytest.mark.parametrize("config", [LANGUAGE, FORECAST], ids=["language", "forecast"])
def test_state_carries_everything(config: NetworkConfig, cell: str) -> None:
    """A sequence cut into chunks gives the outputs and the final state of the whole."""
    network, inputs = _network(replace(config, cell=cell)), _inputs(config)
    whole, final = network(inputs, network.initial_state(3))
    state, parts = network.initial_state(3), []
    for chunk in inputs.split([1, 4, 6], dim=1):
        outputs, state = network(chunk, state)
        parts.append(outputs)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(state, final)


@EACH_CELL
@pytest.mark.parametrize("config", [LANGUAGE, FORECAST], ids=["language", "forecast"])
def test_network_remembers_nothing_itself(config: NetworkConfig, cell: str) -> None:
    """Two calls with the same inputs and state give the same answer, and leave the state they were given alone."""
    network, inputs = _network(replace(config, cell=cell)), _inputs(config)
    state = network.initial_state(3)
    first, _ = network(inputs, state)
    second, _ = network(inputs, state)
    assert torch.equal(first, second)
    assert not any(tensor.any() for tensor in state)


def test_language_answers_log_probabilities() -> None:
    """The outputs of a language network are normalised log-probabilities over its vocabulary."""
    network = _network(LANGUAGE)
    outputs, _ = network(_inputs(LANGUAGE), network.initial_state(3))
    assert outputs.shape == (3, 11, 4)
    torch.testing.assert_close(outputs.exp().sum(-1), torch.ones(3, 11))


@EACH_CELL
def test_state_shape_and_dtype(cell: str) -> None:
    """The state is h, and c if the cell has one, each [layers, batch, hidden] in float32, under autocast too."""
    network = _network(replace(LANGUAGE, cell=cell))
    with torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16()):
        outputs, state = network(_inputs(LANGUAGE), network.initial_state(3))
    assert outputs.dtype == torch.float32
    assert len(state) == len(CELLS[cell].states) == (1 if cell in ("rnn", "gru") else 2)
    assert {tensor.dtype for tensor in state} == {torch.float32}
    assert {tuple(tensor.shape) for tensor in state} == {(2, 3, 12)}


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


@pytest.mark.parametrize(
    ("cell", "biases"),
    [
        ("rnn", [0]),
        ("gru", [0, 1, 0]),  # z keeps h
        ("lstm", [0, 1, 0, 0]),  # f keeps c
        ("peephole", [0, 1, 0, 0]),
        ("cifg", [-1, 0, 0]),  # 1 - i keeps c
    ],
)
def test_memory_starts_open(cell: str, biases: list[int]) -> None:
    """The two biases of the gate that keeps the state add up to what keeps it, all others to 0, in every layer."""
    network = build(replace(LANGUAGE, cell=cell))
    for layer in range(2):
        total = getattr(network.recurrent, f"bias_ih_l{layer}") + getattr(network.recurrent, f"bias_hh_l{layer}")
        assert total.view(-1, 12).tolist() == [[bias] * 12 for bias in biases]


@pytest.mark.parametrize(("cell", "gate"), [("gru", "z"), ("lstm", "f"), ("peephole", "f"), ("cifg", "i")])
def test_gates_begin_open_for_the_lag(cell: str, gate: str) -> None:
    """Time scales from 2 to 100 steps: the gate that keeps has the bias log(u), the one that takes in its opposite."""
    network = _network(replace(LANGUAGE, cell=cell))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    keep_for(network, 100)
    changed = {name for name, tensor in network.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"recurrent.bias_ih_l0", "recurrent.bias_ih_l1"}
    drawn = []
    for name in sorted(changed):
        biases = network.state_dict()[name].chunk(len(CELLS[cell].gates))
        parts = dict(zip(CELLS[cell].gates, biases, strict=True))
        keeping = -parts[gate] if gate == "i" else parts[gate]
        assert keeping.min() >= 0
        assert keeping.max() <= math.log(99)
        drawn += keeping.tolist()
        if gate == "f":
            assert parts["i"].equal(-parts["f"])
    assert len(set(drawn)) == 24  # each unit of each layer has its own


def test_a_cell_without_gates_has_none_to_open() -> None:
    """The RNN is left as it is."""
    network = _network(replace(LANGUAGE, cell="rnn"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    keep_for(network, 100)
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


@EACH_CELL
def test_recurrence_starts_orthogonal_per_gate(cell: str) -> None:
    """Each gate's recurrent matrix is orthogonal by itself; inputs have theirs, and peepholes begin at 0."""
    network = build(replace(LANGUAGE, cell=cell))
    weights = dict(network.recurrent.named_parameters())
    for gate in weights["weight_hh_l1"].view(-1, 12, 12):
        torch.testing.assert_close(gate @ gate.T, torch.eye(12), atol=1e-5, rtol=0)
    for gate in weights["weight_ih_l0"].view(-1, 12, 5):
        assert 0 < gate.abs().max() <= (6 / (12 + 5)) ** 0.5  # Glorot's bound for one gate
    if cell == "peephole":
        assert not weights["weight_peephole_l0"].any()


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
