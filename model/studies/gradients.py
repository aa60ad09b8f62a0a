"""How far back a gradient reaches, measured: of the loss at the last step, with respect to the state k steps before it.

E is the loss of the last step t alone, and s the whole state of the recurrent layer (h; with an LSTM h and c). What
reaches step t - k is dE/ds[t-k], the total derivative through all the steps between, and its norm says how much
learning can still make of what happened there. That it fades or explodes exponentially with k in a simple recurrent
network was shown by Hochreiter (diploma thesis, 1991), as the flow of the error; by Bengio, Simard & Frasconi
(1994), as products of the Jacobians ds[t]/ds[t-1]; and in this form, dE/ds, by Pascanu, Mikolov & Bengio (2013).

Measured in float64, since float32 ends near 1e-45; told as a share of the norm at k = 0, the median over sequences.
Owns the measure and the training before it. Must not know files, figures or how progress is shown.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.evaluation import evaluate
from model.networks import Network, State
from model.options import Options
from model.studies.options import GradientOptions
from model.studies.starts import Start, begin
from model.tasks import Task, prepare
from model.trainer import Trainer

_BEFORE = 100  # steps that are read before those that are measured: the state of a beginning is a special one
_EMBEDDING, _BATCH, _CHUNK, _RATE = 64, 32, 64, 0.004


@dataclass(frozen=True)
class Reach:
    """One curve: `shares[k]` is the norm at k steps back, divided by that at k = 0."""

    cell: str
    start: Start
    trained: bool
    shares: tuple[float, ...]
    loss: float  # validation, nats per character
    cpu_s: float


def study(cell: str, start: Start, options: GradientOptions, report: Callable[[float], None]) -> tuple[Reach, Reach]:
    """The reach at initialisation and after training on Python's documentation, as one layer of a language model.

    `report(share of the training done)` is called after every step. The figures follow from the seed.
    """
    training = Options(
        kind="language", cell=cell, hidden=options.hidden, layers=1, dropout=0.0, embedding=_EMBEDDING,
        seed=options.seed, epochs=options.epochs, batch=_BATCH, sequence=_CHUNK, learning_rate=_RATE,
        weight_decay=0.0, patience=1,
    )  # fmt: skip
    began = time.process_time()
    task = prepare(training)
    begin(task.network, start, options.steps)
    trainer = Trainer(task.network, task.material, training)
    before = _measure(task, options)
    while trainer.done < 1:
        trainer.step()
        report(trainer.done)
    after = _measure(task, options)
    cpu_s = time.process_time() - began
    return Reach(cell, start, False, *before, cpu_s), Reach(cell, start, True, *after, cpu_s)


def _measure(task: Task, options: GradientOptions) -> tuple[tuple[float, ...], float]:
    """The reach in the validation text, and the loss on the whole of it."""
    validation = task.material.validation
    loss = evaluate(task.network, validation, _CHUNK, task.material.objective)
    norms = reach(task.network, validation.inputs[:, : _BEFORE + options.steps + 1], options.steps)
    shares = (norms / norms[:, :1]).median(dim=0).values
    return tuple(shares.tolist()), loss


def reach(network: Network, tokens: Tensor, steps: int) -> Tensor:
    """The norms of dE/ds at k = 0 ... `steps` steps back: tokens [sequences, time] -> float64 [sequences, steps + 1].

    The last token is only predicted: E is the loss of that prediction.
    """
    network = copy.deepcopy(network).double().eval()
    begin = tokens.shape[1] - 1 - steps
    with torch.no_grad():
        zeros = tuple(tensor.double() for tensor in network.initial_state(len(tokens)))
        _, state = network(tokens[:, :begin], zeros)
    for tensor in state:
        tensor.requires_grad_()
    states = [state]
    for t in range(begin, begin + steps):
        _, state = network(tokens[:, t : t + 1], state)
        for tensor in state:
            tensor.retain_grad()
        states.append(state)
    logits = network.head(state[0][-1])  # [sequences, vocabulary], of h as it left the last layer
    torch.autograd.backward(functional.cross_entropy(logits, tokens[:, -1], reduction="sum"))
    return torch.stack([_norm(state) for state in reversed(states)], dim=1)


def _norm(state: State) -> Tensor:
    """The norm over all tensors of a state, each [layers, sequences, hidden] -> [sequences]; c has none at k = 0."""
    squares = [tensor.grad.square().sum(dim=(0, 2)) for tensor in state if tensor.grad is not None]
    return torch.stack(squares).sum(dim=0).sqrt()
