"""Tiny networks, their checkpoints, and an engine on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from export.cells import CELLS
from export.graph import build as build_graph
from export.signature import attach, describe
from export.weights import Weights
from model import checkpoint
from model.networks import ForecastNetwork, Network, NetworkConfig, build
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import load_settings

Load = Callable[[Weights], Engine]
Save = Callable[[Network], Path]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Networks of this size gain nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def language() -> Network:
    """Two LSTM layers over eight symbols, in eval mode."""
    return language_of("lstm")


@pytest.fixture
def forecast() -> Network:
    """One LSTM layer over two features of very different sizes, in eval mode."""
    return forecast_of("lstm")


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> str:
    """Each of the cells that can be exported."""
    return str(request.param)


@pytest.fixture(params=["language", "forecast"])
def network(request: pytest.FixtureRequest, cell: str) -> Network:
    """A tiny network of each task and each cell."""
    return language_of(cell) if request.param == "language" else forecast_of(cell)


def language_of(cell: str) -> Network:
    """Two layers of a cell over eight symbols, in eval mode."""
    torch.manual_seed(0)
    config = NetworkConfig("language", 2, 12, dropout=0.2, cell=cell, vocabulary=tuple("abcdefg\n"), embedding=5)
    return _drawn(build(config))


def forecast_of(cell: str) -> Network:
    """One layer of a cell over two features of very different sizes, in eval mode."""
    torch.manual_seed(1)
    network = build(NetworkConfig("forecast", 1, 10, cell=cell, features=("pressure", "flow")))
    assert isinstance(network, ForecastNetwork)
    network.mean.copy_(torch.tensor([101_300.0, 0.002]))
    network.scale.copy_(torch.tensor([850.0, 0.0004]))
    torch.nn.init.normal_(network.head.weight, std=0.3)  # an untrained head is zero and would hide everything
    return _drawn(network)


def _drawn(network: Network) -> Network:
    """With recurrent weights as training may leave them: some are zero before it, and would hide a wrong order."""
    for parameter in network.recurrent.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return network.eval()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a network's checkpoint; returns its folder."""

    def write(network: Network) -> Path:
        folder = tmp_path / "checkpoint"
        checkpoint.save(folder, network.config, network.state_dict(), {"seed": 7, "losses": {"best_validation": 1.25}})
        return folder

    return write


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The probed engine of the artifact of some weights."""

    def engine(weights: Weights) -> Engine:
        path = tmp_path / "model.onnx"
        path.write_bytes(attach(build_graph(weights), describe(weights)))
        loaded = load_engine(path, load_settings(provider="cpu"))
        probe(loaded)
        return loaded

    return engine
