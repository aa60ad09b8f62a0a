"""The studies: the adding problem is the paper's, gradients are what is defined, weights begin as told."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from model.cells import CELLS
from model.networks import Network, NetworkConfig, build
from model.studies import adding
from model.studies.adding import CHANCE, SOLVED, Examples, answers, draw, errors
from model.studies.gradients import reach
from model.studies.options import AddingOptions
from model.studies.starts import reset

LAG = 20
TINY = AddingOptions(
    lags=(10,), cells=("lstm",), hidden=6, updates=60, batch=4, learning_rate=0.01, biases="lag", seed=3
)


@pytest.fixture(autouse=True)
def _keep_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def examples() -> Examples:
    """Many sequences."""
    return draw(LAG, 4000, torch.Generator().manual_seed(1))


def _adder(cell: str = "lstm") -> Network:
    torch.manual_seed(5)
    network = build(NetworkConfig("forecast", layers=1, hidden=6, cell=cell, features=("value", "marker")))
    torch.nn.init.normal_(network.head.weight)
    return network


def _speller(cell: str, layers: int = 1) -> Network:
    torch.manual_seed(6)
    config = NetworkConfig("language", layers=layers, hidden=7, cell=cell, vocabulary=tuple("abcd"), embedding=3)
    return build(config)


def test_sequences_are_of_random_lengths(examples: Examples) -> None:
    """From T = 2 lags to T + T/10 pairs; beyond its end a row holds nothing."""
    assert set(examples.lengths.tolist()) == set(range(40, 45))
    assert examples.pairs.shape == (4000, 44, 2)
    for pairs, length in zip(examples.pairs[:50], examples.lengths[:50].tolist(), strict=True):
        assert pairs[length:].abs().sum() == 0


def test_marks_are_where_the_paper_puts_them(examples: Examples) -> None:
    """-1 first and last, 1 on one of the first ten pairs and on another before the lag; never twice on one pair."""
    markers = examples.pairs[..., 1]
    rows = torch.arange(len(markers))
    assert (markers[:, 0] == -1).all()
    assert (markers[rows, examples.lengths - 1] == -1).all()
    assert set(markers.flatten().tolist()) == {-1.0, 0.0, 1.0}
    marked = markers == 1
    counts = marked.sum(dim=1)
    assert set(counts.tolist()) == {1, 2}  # 1 where the first pair, which keeps its -1, was drawn
    assert marked[:, :10].any(dim=1)[counts == 2].all()
    assert marked.any(dim=0).nonzero().flatten().tolist() == list(range(1, LAG))  # so LAG steps are left at least


def test_the_target_is_the_scaled_sum(examples: Examples) -> None:
    """0.5 + (X1 + X2) / 4; the value of a marked first pair counts as 0."""
    values, markers = examples.pairs.unbind(-1)
    expected = 0.5 + (values * (markers == 1)).sum(dim=1) / 4
    assert torch.allclose(examples.targets, expected, atol=1e-6)
    assert values.min() < -0.99
    assert values.max() > 0.99


def test_chance_is_what_a_constant_answer_solves() -> None:
    """The dotted line of the figure: 0.5 as the answer to everything."""
    targets = draw(200, 60_000, torch.Generator().manual_seed(2)).targets
    assert ((targets - 0.5).abs() < SOLVED).double().mean().item() == pytest.approx(CHANCE, abs=0.005)


@pytest.mark.parametrize("cell", CELLS)
def test_each_row_answers_at_its_own_end(cell: str) -> None:
    """A sequence among longer ones gets the answer that it gets alone."""
    network, examples = _adder(cell), draw(LAG, 5, torch.Generator().manual_seed(3))
    for i, length in enumerate(examples.lengths.tolist()):
        alone = Examples(examples.pairs[i : i + 1, :length], examples.lengths[i : i + 1], examples.targets[i : i + 1])
        assert torch.allclose(answers(network, alone), answers(network, examples)[i : i + 1], atol=1e-6)


def test_errors_do_not_depend_on_how_many_are_measured_at_once() -> None:
    """Measured in parts, as one."""
    network, examples = _adder(), draw(LAG, 600, torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = answers(network, examples) - examples.targets
    assert torch.allclose(errors(network, examples), expected, atol=1e-6)


def test_an_attempt_follows_from_its_seed() -> None:
    """The same options give the same curve, another seed another one; checks come every 50 updates and at the end."""
    told: list[int] = []
    first = adding.attempt("lstm", 10, TINY, lambda updates, share: told.append(updates))
    assert told == [50, 60]
    assert [updates for updates, _ in first.curve] == [0, 50, 60]
    assert first.updates == 60
    again = adding.attempt("lstm", 10, TINY, lambda updates, share: None)
    assert replace(again, cpu_s=first.cpu_s) == first
    other = adding.attempt("lstm", 10, replace(TINY, seed=4), lambda updates, share: None)
    assert other.mean_squared_error != first.mean_squared_error
    default = adding.attempt("lstm", 10, replace(TINY, biases="default"), lambda updates, share: None)
    assert default.mean_squared_error != first.mean_squared_error


def test_an_attempt_ends_when_the_problem_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first check at which enough is solved."""
    monkeypatch.setattr(adding, "ENOUGH", 0.0)
    assert adding.attempt("gru", 10, TINY, lambda updates, share: None).updates == 50


def test_reset_gives_the_weights_of_pytorch() -> None:
    """All of them, biases too, evenly within 1 / sqrt(hidden)."""
    network = _speller("lstm")
    reset(network)
    for name, parameter in network.recurrent.named_parameters():
        assert 0.2 < parameter.abs().max() <= 1 / math.sqrt(7), name
    assert network.head.bias.abs().max() > 0


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_reach_is_the_gradient_of_the_last_loss(cell: str, layers: int) -> None:
    """At each k it is the norm of dE/ds of the state before the last k steps, run as one chunk."""
    network, steps = _speller(cell, layers), 6
    tokens = torch.randint(4, (3, 12), generator=torch.Generator().manual_seed(7))
    norms = reach(network, tokens, steps)
    assert norms.shape == (3, steps + 1)
    network.double().eval()
    for k in range(1, steps + 1):
        zeros = tuple(tensor.double() for tensor in network.initial_state(3))
        with torch.no_grad():
            _, state = network(tokens[:, : 11 - k], zeros)
        for tensor in state:
            tensor.requires_grad_()
        _, after = network(tokens[:, 11 - k : 11], state)
        loss = functional.cross_entropy(network.head(after[0][-1]), tokens[:, 11], reduction="sum")
        gradients = torch.autograd.grad(loss, state)
        expected = sum(gradient.square().sum(dim=(0, 2)) for gradient in gradients)
        assert isinstance(expected, torch.Tensor)
        assert torch.allclose(norms[:, k], expected.sqrt(), rtol=1e-9)


def test_reach_leaves_the_network_as_it_is() -> None:
    """Training goes on in float32."""
    network = _speller("gru")
    reach(network, torch.zeros(2, 8, dtype=torch.int64), 5)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
