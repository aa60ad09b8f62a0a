"""What training minimises: one function per task from a chunk and a state to a loss and the next state.

Owns the losses and the closed loop. Must not know optimizers, schedules or files.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from model.networks import Network, State


class Objective(Protocol):
    """A loss over one chunk."""

    def __call__(
        self, network: Network, inputs: Tensor, targets: Tensor, state: State, closed: bool
    ) -> tuple[Tensor, State]:
        """The mean loss per counted target (scalar) and the state after the chunk; `closed` asks for the rollout."""
        ...


def language_loss(
    network: Network, inputs: Tensor, targets: Tensor, state: State, closed: bool
) -> tuple[Tensor, State]:
    """Cross-entropy in nats per character; `closed` changes nothing. Tokens [batch, time]."""
    log_probabilities, state = network(inputs, state)  # [batch, time, vocabulary]
    return functional.nll_loss(log_probabilities.flatten(0, 1), targets.flatten()), state


@dataclass(frozen=True)
class ForecastLoss:
    """Squared error in units of `change`, the typical step of each column: repeating the last value costs about 1.

    With a `rollout` of n > 0 and `closed`, the last n steps of the chunk are also predicted in closed loop, each
    prediction fed back as the next input, and their error is added. The state that is carried on is always the one
    after the true inputs, as in serving.
    """

    change: Tensor  # [features]
    rollout: int = 0

    def __call__(
        self, network: Network, inputs: Tensor, targets: Tensor, state: State, closed: bool
    ) -> tuple[Tensor, State]:
        """Values [batch, time, features] in the user's own units."""
        steps = min(self.rollout, inputs.shape[1] - 1) if closed else 0
        if steps < 1:
            outputs, state = network(inputs, state)  # [batch, time, features]
            return self._error(outputs, targets), state
        known = inputs.shape[1] - steps
        before, middle = network(inputs[:, :known], state)  # [batch, known, features]
        after, state = network(inputs[:, known:], middle)  # [batch, steps, features]
        fed = continue_alone(network, before[:, -1:], middle, steps)  # [batch, steps, features]
        one_step = self._error(torch.cat([before, after], dim=1), targets)
        return one_step + self._error(fed, targets[:, known:]), state

    def _error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) / self.change).square().mean()


def continue_alone(network: Network, prediction: Tensor, state: State, steps: int) -> Tensor:
    """Closed loop: feed a `prediction` [batch, 1, features] back, `steps` times -> [batch, steps, features].

    The first of the returned predictions is the one that follows `prediction`.
    """
    outputs = []
    for _ in range(steps):
        prediction, state = network(prediction, state)
        outputs.append(prediction)
    return torch.cat(outputs, dim=1)


def typical_change(rows: Tensor) -> Tensor:
    """Root mean square of the step from row to row, per column: [sequences, time, features] -> [features]."""
    change = (rows[:, 1:] - rows[:, :-1]).double().square().mean(dim=(0, 1)).sqrt()
    return torch.where(change > 0, change, torch.ones_like(change)).float()  # a constant column has no step
