"""The training loop: streams in order, state carried and detached, validation, early stopping, exact snapshots.

Owns the mutable state of a training. Must not know where data comes from, what the losses mean, how progress is shown,
or how files are written: it is given functions for all of these.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

# Before MKL is first called: elsewhere than on Intel's processors its products else depend, in their last bits, on
# where in memory a tensor happens to lie, and a resumed training would not end as one that was never stopped.
os.environ.setdefault("MKL_CBWR", "AUTO")

import torch
from torch import Tensor, nn

from model.errors import ModelError
from model.evaluation import evaluate
from model.networks import Network, State
from model.objectives import Objective
from model.options import Options
from model.schedule import progress, rate_factor
from model.streams import Streams

CLIP = 1.0  # largest norm of a gradient: one bad chunk must not undo the carried dynamics
CLOSED_LOOP_FROM = 0.3  # progress at which rollouts begin: before it, one step ahead is not yet learned
_STEPS_BETWEEN_VALIDATIONS = (50, 1000)


@dataclass(frozen=True)
class Material:
    """What is learned from: streams to train on, streams to validate on, and the loss."""

    train: Streams
    validation: Streams
    objective: Objective


@dataclass
class Standing:
    """How far a training has come: with weights, optimizer, carried state and torch's RNG, all that a resume needs."""

    step: int = 0  # the position in the streams follows from it
    elapsed_s: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0  # validations since the best one
    loss_sum: float = 0.0  # of the steps since the last validation
    loss_count: int = 0
    history: list[list[float]] = field(default_factory=list)  # [step, training loss, validation loss, seconds]


class Trainer:
    """Trains `network` on `material`, one `step()` at a time; `run` is the loop around it."""

    def __init__(self, network: Network, material: Material, options: Options) -> None:
        self.network = network
        self.options = options
        self.standing = Standing()
        self.best: dict[str, Tensor] | None = None
        self.optimizer = _optimizer(network, options)
        self._material = material
        self.carried: State = network.initial_state(material.train.batch)
        self._chunk = min(options.sequence, material.train.length)
        self.chunks_per_epoch = material.train.length // self._chunk
        fewest, most = _STEPS_BETWEEN_VALIDATIONS
        self._interval = max(fewest, min(self.chunks_per_epoch, most))

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, unless time or patience ends it before."""
        return self.chunks_per_epoch * self.options.epochs

    @property
    def done(self) -> float:
        """Progress in [0, 1]."""
        standing = self.standing
        return progress(standing.step, self.total_steps, standing.elapsed_s, self.options.max_seconds)

    @property
    def finished(self) -> bool:
        """Whether steps, time or patience are used up."""
        return self.done >= 1 or self.standing.stale >= self.options.patience

    def run(self, report: Callable[[bool], None], save: Callable[[], None], stop: Callable[[], bool]) -> bool:
        """Train to the end, or until `stop()` says so after a step; True when finished.

        `report(validated)` is called after every step, `save()` after every validation and before a stop.
        """
        standing = self.standing
        began = time.monotonic() - standing.elapsed_s  # what was spent before a resume counts
        while not self.finished:
            self.step()
            standing.elapsed_s = time.monotonic() - began
            validated = self.done >= 1 or standing.step % self._interval == 0
            if validated:
                self.validate()
                standing.elapsed_s = time.monotonic() - began
                save()
            report(validated)
            if stop():
                save()
                return self.finished
        return True

    def step(self) -> None:
        """One chunk: forward from the carried state, backward, clipped update; the new state is kept, detached."""
        standing = self.standing
        index = standing.step % self.chunks_per_epoch
        if index == 0:  # the streams begin again, and so does the state
            self.carried = self.network.initial_state(self._material.train.batch)
        inputs, targets = self._material.train.chunk(self._offset() + index * self._chunk, self._chunk)
        rate = self.options.learning_rate * rate_factor(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        with precision(self.options.precision):
            closed = self.done >= CLOSED_LOOP_FROM
            loss, state = self._material.objective(self.network, inputs, targets, self.carried, closed)
        if not torch.isfinite(loss):
            raise ModelError(f"the loss is no longer finite after {standing.step} steps: lower --learning-rate")
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.carried = tuple(tensor.detach() for tensor in state)
        standing.step += 1
        standing.loss_sum += loss.item()
        standing.loss_count += 1

    def _offset(self) -> int:
        """Where this epoch begins, in steps: elsewhere each time, so that chunks are not always cut in the same places.

        Drawn from seed and epoch, not from a running generator, so that it survives a resume by itself.
        """
        slack = self._material.train.length - self.chunks_per_epoch * self._chunk
        epoch = self.standing.step // self.chunks_per_epoch
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
        return int(torch.randint(slack + 1, (), generator=generator))

    def validate(self) -> None:
        """Measure the validation loss, keep the weights when it is the best, and start the next average."""
        standing = self.standing
        with precision(self.options.precision):
            loss = evaluate(self.network, self._material.validation, self._chunk, self._material.objective)
        average = standing.loss_sum / max(1, standing.loss_count)
        standing.history.append([standing.step, average, loss, standing.elapsed_s])
        standing.loss_sum, standing.loss_count = 0.0, 0
        if standing.best_loss is None or loss < standing.best_loss:
            standing.best_loss, standing.best_step, standing.stale = loss, standing.step, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        else:
            standing.stale += 1


def computes_bfloat16() -> bool:
    """Whether this processor has what PyTorch's recurrent layers need for bfloat16: on x86 that is AVX-512."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # PyTorch tells it nowhere else


def precision(name: str) -> AbstractContextManager[Any]:
    """bfloat16 runs the matrix products of what is inside in bfloat16; float32 changes nothing."""
    return torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16")


def _optimizer(network: Network, options: Options) -> torch.optim.AdamW:
    """AdamW that decays matrices only: pulling biases to zero would close the forget gates again."""
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.99), fused=True)
