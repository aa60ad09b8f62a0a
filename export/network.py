"""A trained network of ``model/`` as weights, as provenance, and as the reference that the gate compares with.

The one module of ``export/`` that knows PyTorch.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from export.cells import Cell, cell_of
from export.errors import ExportError
from export.parity import Reference, Run
from export.weights import Array, Forecast, Language, Layer, Recurrence, Weights
from model.checkpoint import Checkpoint
from model.networks import ForecastNetwork, LanguageNetwork, Network
from model.options import without_folders
from service.state import Chunk


def freeze(network: Network) -> Weights:
    """The network's weights; ExportError for a cell or a kind of network that has no graph."""
    cell = cell_of(network.config.cell)
    layers = tuple(_layer(network, cell, i) for i in range(network.config.layers))
    recurrence = Recurrence(network.config.cell, layers, _array(network.head.weight), _array(network.head.bias))
    if isinstance(network, LanguageNetwork):
        return Language(recurrence, network.config.vocabulary, _array(network.embedding.weight))
    if isinstance(network, ForecastNetwork):
        return Forecast(recurrence, network.config.features, _array(network.mean), _array(network.scale))
    raise ExportError(f"a network of the kind {type(network).__name__} cannot be exported")


def made_by(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the artifact was made: what training recorded, without folders, and the versions that exported it.

    Export adds nothing of the time or the machine, so that the same checkpoint gives the same file again.
    """
    made = dict(checkpoint.provenance)
    if isinstance(made.get("command"), str):  # the artifact is published; a checkpoint of before kept whole paths
        made["command"] = without_folders(made["command"])
    return {**made, "export": {"versions": _versions()}}


def reference_of(network: Network) -> Reference:
    """The network in eval mode as functions on arrays, one row at a time; the network itself is left as it is."""
    return Reference(
        float32=_runner(copy.deepcopy(network).eval().float(), np.float32),
        float64=_runner(copy.deepcopy(network).eval().double(), np.float64),
    )


def _runner(network: Network, dtype: type[np.floating[Any]]) -> Run:
    names = cell_of(network.config.cell).states

    def run(states: Mapping[str, np.ndarray], chunk: Chunk) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        inputs = chunk[0] if network.config.task == "language" else chunk[0].astype(dtype)
        before = tuple(torch.from_numpy(states[name].astype(dtype))[:, None] for name in names)  # [layers, 1, hidden]
        with torch.inference_mode(), _one_thread():
            output, after = network(torch.from_numpy(inputs.copy())[None], before)
        return output[0].numpy(), {name: state[:, 0].numpy() for name, state in zip(names, after, strict=True)}

    return run


@contextmanager
def _one_thread() -> Iterator[None]:
    """Single rows gain nothing from threads, and on a busy machine wait for each other: 22 s instead of 0.1 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layer(network: Network, cell: Cell, i: int) -> Layer:
    named = dict(network.recurrent.named_parameters())
    kinds = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *(["weight_peephole"] if cell.peepholes else [])]
    return Layer(*(_array(named[f"{kind}_l{i}"]) for kind in kinds))


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().float().cpu().numpy().copy()


def _versions() -> dict[str, str]:
    try:
        own = version("lstm-serve")
    except PackageNotFoundError:
        own = "source tree"
    return {"lstm-serve": own, **{package: version(package) for package in ("onnx", "onnxruntime", "torch")}}
