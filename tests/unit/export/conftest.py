"""Tiny networks, their checkpoints, and an engine on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

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
    """Two layers over eight symbols, in eval mode."""
    torch.manual_seed(0)
    return build(NetworkConfig("language", 2, 12, dropout=0.2, vocabulary=tuple("abcdefg\n"), embedding=5)).eval()


@pytest.fixture
def forecast() -> Network:
    """One layer over two features of very different sizes, in eval mode."""
    torch.manual_seed(1)
    network = build(NetworkConfig("forecast", 1, 10, features=("pressure", "flow")))
    assert isinstance(network, ForecastNetwork)
    network.mean.copy_(torch.tensor([101_300.0, 0.002]))
    network.scale.copy_(torch.tensor([850.0, 0.0004]))
    torch.nn.init.normal_(network.head.weight, std=0.3)  # an untrained head is zero and would hide everything
    return network.eval()


@pytest.fixture(params=["language", "forecast"])
def network(request: pytest.FixtureRequest) -> Network:
    """Each of the two tiny networks."""
    chosen = request.getfixturevalue(request.param)
    assert isinstance(chosen, Network)
    return chosen


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
