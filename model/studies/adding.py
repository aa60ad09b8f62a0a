"""The adding problem: two numbers far back in a sequence are to be added at its end.

Experiment 4 (section 5.4) of Hochreiter & Schmidhuber, "Long short-term memory" (1997). Owns the sequences and the
training of one cell on them. Must not know files, figures or how progress is shown.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.networks import Network, NetworkConfig, build, keep_for
from model.studies.options import AddingOptions

SOLVED = 0.04  # a sequence is solved when the absolute error of its answer is below this, as in the paper
ENOUGH = 0.99  # share of solved sequences at which a training ends
CHANCE = 0.154  # the share that the constant answer 0.5 solves: the probability that |X1 + X2| < 0.16
_EARLY = 10  # one mark is among so many first pairs
_CLIP = 1.0
_UPDATES_BETWEEN_CHECKS = 50
_CHECKED = 512  # fresh sequences of a check
_TESTED = 2560  # fresh sequences of the final test, as many as in the paper
_TOGETHER = 256  # sequences measured at once: it bounds memory and changes no figure


@dataclass(frozen=True)
class Examples:
    """Sequences of different lengths, side by side; beyond its own length a row holds zeros."""

    pairs: Tensor  # [sequences, longest, 2]: value and marker
    lengths: Tensor  # int64 [sequences]
    targets: Tensor  # [sequences]


@dataclass(frozen=True)
class Attempt:
    """What came of one cell at one lag. `curve` holds (updates, share solved of fresh sequences)."""

    cell: str
    lag: int
    curve: tuple[tuple[int, float], ...]
    share_solved: float
    mean_squared_error: float
    cpu_s: float

    @property
    def updates(self) -> int:
        """How many updates were made: fewer than allowed where the problem was solved before."""
        return self.curve[-1][0]


def draw(lag: int, count: int, generator: torch.Generator) -> Examples:
    """Fresh sequences of T = 2 * lag to T + T/10 pairs, drawn evenly.

    A pair is a value of [-1, 1] and a marker: -1 in the first and the last pair, 1 in two others, else 0. One mark is
    on one of the first ten pairs, the other on one of the first T/2 - 1 pairs that are still unmarked, so that at least
    `lag` steps lie between a number and the answer. The target is 0.5 + (X1 + X2) / 4, with the marked values X1 and
    X2; where the mark falls on the first pair, that keeps its -1, and its value counts as 0.
    """
    shortest = 2 * lag
    lengths = torch.randint(shortest, shortest + shortest // 10 + 1, (count,), generator=generator)
    values = 2 * torch.rand(count, int(lengths.max()), generator=generator) - 1  # [count, longest]
    first = torch.randint(_EARLY, (count,), generator=generator)
    second = torch.randint(lag - 1, (count,), generator=generator)
    second += second >= first  # the pairs that are still unmarked leave this one out
    rows = torch.arange(count)
    markers = torch.zeros_like(values)
    markers[rows, first] = markers[rows, second] = 1.0
    total = (values * markers)[:, 1:].sum(dim=1)
    markers[:, 0] = markers[rows, lengths - 1] = -1.0
    inside = torch.arange(values.shape[1]) < lengths[:, None]  # [count, longest]
    return Examples(torch.stack([values * inside, markers], dim=-1), lengths, 0.5 + total / 4)


def attempt(cell: str, lag: int, options: AddingOptions, report: Callable[[int, float], None]) -> Attempt:
    """Train one layer of a cell until it solves fresh sequences, or the updates are used up.

    Adam, with gradients clipped to the norm 1. `report(updates, share solved)` is called at every check. The weights
    follow from the seed, the sequences from seed and lag, so that every cell sees the same ones.
    """
    torch.manual_seed(options.seed)
    network = build(NetworkConfig("forecast", layers=1, hidden=options.hidden, cell=cell, features=("value", "marker")))
    if options.biases == "lag":
        keep_for(network, 2 * lag)
    training, checking, testing = (_generator(options.seed, lag, purpose) for purpose in range(3))
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    began, curve = time.process_time(), [(0, _share(errors(network, draw(lag, _CHECKED, checking))))]
    for update in range(1, options.updates + 1):
        _learn(network, optimizer, draw(lag, options.batch, training))
        if update % _UPDATES_BETWEEN_CHECKS == 0 or update == options.updates:
            curve.append((update, _share(errors(network, draw(lag, _CHECKED, checking)))))
            report(*curve[-1])
            if curve[-1][1] >= ENOUGH:
                break
    cpu_s = time.process_time() - began
    error = errors(network, draw(lag, _TESTED, testing))
    return Attempt(cell, lag, tuple(curve), _share(error), error.double().square().mean().item(), cpu_s)


def _generator(seed: int, lag: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 10_007 + lag) * 3 + purpose)


def _learn(network: Network, optimizer: torch.optim.Optimizer, examples: Examples) -> None:
    loss = (answers(network, examples) - examples.targets).square().mean()
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
    optimizer.step()


def answers(network: Network, examples: Examples) -> Tensor:
    """What the network says at the last pair of each row [sequences]: the first of its outputs, others are unused."""
    count = len(examples.lengths)
    hidden, _ = network.recur(examples.pairs, network.initial_state(count))  # [count, longest, hidden]
    last = hidden[torch.arange(count), examples.lengths - 1]  # [count, hidden]
    answered: Tensor = network.head(last)[:, 0]
    return answered


@torch.no_grad()
def errors(network: Network, examples: Examples) -> Tensor:
    """Answer minus target [sequences]."""
    found = []
    for start in range(0, len(examples.lengths), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        some = Examples(examples.pairs[part], examples.lengths[part], examples.targets[part])
        found.append(answers(network, some) - some.targets)
    return torch.cat(found)


def _share(error: Tensor) -> float:
    return (error.abs() < SOLVED).double().mean().item()
