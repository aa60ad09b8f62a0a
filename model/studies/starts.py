"""The weights that a study begins with, beside those of `model.networks.initialise`. Knows networks only."""

import math
from typing import Literal

import torch
from torch import nn

from model.networks import Network

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


def keep_for(network: Network, steps: int) -> None:
    """Begin with gates that keep for between 2 and `steps` steps, a time scale drawn evenly for each unit.

    Tallec & Ollivier, "Can recurrent neural networks warp time?" (2018): a gate that keeps sigmoid(b) forgets over 1 +
    exp(b) steps, so its bias is log(u) with u uniform in [1, steps - 1], and the gate that takes in has the
    opposite bias. Nothing is done to a cell without gates.
    """
    if network.cell.lasting is None:
        return
    gates, (lasting, sign) = network.cell.gates, network.cell.lasting
    bias = torch.log(torch.empty(network.config.hidden).uniform_(1, steps - 1))
    with torch.no_grad():
        for name, parameter in network.recurrent.named_parameters():
            if name.startswith("bias_ih"):
                parts = dict(zip(gates, parameter.chunk(len(gates)), strict=True))
                parts[lasting].copy_(math.copysign(1.0, sign) * bias)
                if lasting == "f":  # the other cells take in what they forget
                    parts["i"].copy_(-bias)
