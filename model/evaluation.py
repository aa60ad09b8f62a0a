"""Measuring a network: validation loss and the figures that a checkpoint reports.

Owns the measures. The state is carried through a whole stream, as in serving. Must not change weights or write files.
"""

import math
from typing import Any

import torch
from torch import Tensor

from model.networks import Network
from model.objectives import Objective, continue_alone, language_loss
from model.streams import IGNORED, Streams

_CHUNK = 256  # steps per call; it bounds memory and changes no figure


@torch.no_grad()
def evaluate(network: Network, streams: Streams, chunk: int, objective: Objective) -> float:
    """The mean loss over all counted targets, in eval mode (left on), with the state carried from chunk to chunk."""
    network.eval()
    state = network.initial_state(streams.batch)
    total, count = 0.0, 0
    for inputs, targets in streams.chunks(chunk):
        loss, state = objective(network, inputs, targets, state, True)
        counted = int((targets != IGNORED).sum()) if targets.dtype == torch.int64 else targets.numel()
        if counted:  # the mean over no target at all is not a number
            total += loss.item() * counted
            count += counted
    return total / count


@torch.no_grad()
def one_step_errors(network: Network, streams: Streams) -> Tensor:
    """Prediction minus truth of the target column, one step ahead, in the user's units: [streams, length]."""
    network.eval()
    state = network.initial_state(streams.batch)
    errors = []
    for inputs, targets in streams.chunks(_CHUNK):
        outputs, state = network(inputs, state)  # [streams, time, features]
        errors.append(outputs[..., 0] - targets[..., 0])
    return torch.cat(errors, dim=1)


@torch.no_grad()
def closed_loop(network: Network, known: Tensor, steps: int) -> Tensor:
    """Read `known` [batch, time, features] from a zero state, then forecast alone: [batch, steps, features].

    The first forecast row is the one that follows the last known one.
    """
    network.eval()
    outputs, state = network(known, network.initial_state(known.shape[0]))
    first = outputs[:, -1:]  # [batch, 1, features]
    return torch.cat([first, continue_alone(network, first, state, steps - 1)], dim=1)


def language_metrics(network: Network, validation: Streams) -> dict[str, Any]:
    """Validation cross-entropy per character in float32, in nats and in bits."""
    nats = evaluate(network, validation, _CHUNK, language_loss)
    return {"validation_nats_per_character": nats, "validation_bits_per_character": nats / math.log(2)}


def forecast_metrics(network: Network, validation: Streams) -> dict[str, Any]:
    """One-step error of the target on the validation split, in its units, beside that of repeating the last value."""
    mse = one_step_errors(network, validation).double().square().mean().item()
    repeated = (validation.inputs - validation.targets)[..., 0].double().square().mean().item()
    return {"validation_mse": mse, "validation_rmse": math.sqrt(mse), "validation_rmse_of_repeating": repeated**0.5}


def wave_metrics(network: Network, known: Streams, truth: Tensor, forecast: Tensor) -> dict[str, Any]:
    """The sine exercise's figures: one-step MSE on the test waves, and the closed-loop RMSE of each of them."""
    rmse = (forecast - truth)[..., 0].double().square().mean(dim=1).sqrt()  # [waves]
    return {
        "test_one_step_mse": one_step_errors(network, known).double().square().mean().item(),
        "test_closed_loop_steps": truth.shape[1],
        "test_closed_loop_rmse": rmse.tolist(),
    }
