"""The weights that a study begins with, beside those of `model.networks.initialise`. Knows networks only."""

from typing import Literal

from torch import nn

from model.networks import Network, keep_for

Start = Literal["ours", "torch", "lag"]


def begin(network: Network, start: Start, steps: int) -> None:
    """Change a network's initial weights from "ours" to PyTorch's own, or to gates that keep for up to `steps`."""
    if start == "torch":
        reset(network)
    elif start == "lag":
        keep_for(network, steps)


def reset(network: Network) -> None:
    """PyTorch's own initial weights: in recurrent layers uniform up to 1 / sqrt(hidden), biases too."""
    for module in network.children():
        if isinstance(module, nn.Linear | nn.Embedding | nn.RNNBase):
            module.reset_parameters()
