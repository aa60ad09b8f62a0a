"""The networks: pure functions (inputs, state) -> (outputs, state') built on the cells of model/cells.py.

Owns the shapes, the scaling and the initial weights. Must not know data, training, files or the command line.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.cells import CELLS
from model.errors import ModelError

# (h,) of an RNN or a GRU, else (h, c): each [layers, batch, hidden], float32.
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that rebuilds a network but its weights; `dataclasses.asdict` of it is JSON.

    `vocabulary` (one character per symbol) and `embedding` (its width) belong to the task language, `features`
    (column names, the target first) to the task forecast. `hidden` is the width of each of the `layers`.
    """

    task: Literal["language", "forecast"]
    layers: int
    hidden: int
    dropout: float = 0.0
    cell: str = "lstm"
    vocabulary: tuple[str, ...] = ()
    embedding: int = 0
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.task in ("language", "forecast"), f"there is no task {self.task!r}: choose language or forecast")
        _require(self.cell in CELLS, f"there is no cell {self.cell!r}: choose one of {', '.join(CELLS)}")
        _require(self.layers >= 1, f"layers must be at least 1, not {self.layers}")
        _require(self.hidden >= 1, f"hidden must be at least 1, not {self.hidden}")
        _require(0 <= self.dropout < 1, f"dropout must be at least 0 and below 1, not {self.dropout}")
        if self.task == "language":
            _require(len(self.vocabulary) >= 2, "a language network needs at least 2 symbols in its vocabulary")
            _require(self.embedding >= 1, f"embedding must be at least 1, not {self.embedding}")
        else:
            _require(len(self.features) >= 1, "a forecast network needs at least one feature")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "NetworkConfig":
        """Rebuild a config from the JSON of `asdict`; lists become tuples again. Raises ModelError or TypeError."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        return cls(**values)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ModelError(sentence)


class Network(nn.Module, ABC):
    """A recurrent network without a memory of its own: whoever calls it keeps the state."""

    def __init__(self, config: NetworkConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.config = config
        between = config.dropout if config.layers > 1 else 0.0  # torch warns of dropout that has no place to act
        self.cell = CELLS[config.cell]
        self.recurrent = self.cell.make(width_in, config.hidden, config.layers, batch_first=True, dropout=between)
        self.head = nn.Linear(config.hidden, width_out)
        self.dropout = nn.Dropout(config.dropout)  # inactive in eval(), as everything that serving leaves out

    def initial_state(self, batch: int) -> State:
        """Zeros for `batch` sequences that begin: per state of the cell a tensor [layers, batch, hidden], float32."""
        shape = (self.config.layers, batch, self.config.hidden)
        return tuple(torch.zeros(shape) for _ in self.cell.states)

    def recur(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Run the recurrent layers: [batch, time, width_in] -> hidden [batch, time, hidden], and the new state.

        The state keeps its type under autocast too, float32, since it is what a session keeps.
        """
        alone = len(state) == 1  # torch takes and gives a single state without a tuple around it
        hidden, after = self.recurrent(features, state[0] if alone else state)  # [batch, time, hidden]
        after = (after,) if alone else after
        return hidden, tuple(new.to(old.dtype) for new, old in zip(after, state, strict=True))

    @abstractmethod
    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Consume a chunk of time steps and return its outputs [batch, time, ...] and the state after it."""


class LanguageNetwork(Network):
    """Next symbol: token numbers -> log-probabilities of the token that follows."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config, config.embedding, len(config.vocabulary))
        self.embedding = nn.Embedding(len(config.vocabulary), config.embedding)
        initialise(self)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """`inputs` int64 [batch, time] -> log-probabilities float32 [batch, time, vocabulary], and the new state."""
        embedded = self.dropout(self.embedding(inputs))  # [batch, time, embedding]
        hidden, state = self.recur(embedded, state)  # [batch, time, hidden]
        logits = self.head(self.dropout(hidden)).to(state[0].dtype)  # [batch, time, vocabulary]
        return torch.log_softmax(logits, dim=-1), state


class ForecastNetwork(Network):
    """Next values: rows in the user's own units -> prediction of the next row, all columns, same units.

    The network predicts the change from the present row, in units of `scale`: a forecast of "no change" costs
    nothing to learn, and each prediction can be fed back as the next input.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        width = len(config.features)
        super().__init__(config, width, width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        initialise(self)
        nn.init.zeros_(self.head.weight)  # an untrained network forecasts "no change"

    def fit_scaling(self, rows: Tensor) -> None:
        """Learn `mean` and `scale` (standard deviation) from rows [..., features] of the training split only."""
        flat = rows.reshape(-1, rows.shape[-1]).double()  # [rows, features]; float32 sums lose digits on long series
        deviation = flat.std(dim=0, correction=0)
        self.mean.copy_(flat.mean(dim=0))
        # Rounding leaves a tiny deviation on a constant column; dividing by it would blow the column up.
        constant = deviation <= 1e-9 * flat.abs().amax(dim=0)
        self.scale.copy_(torch.where(constant, torch.ones_like(deviation), deviation))

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """`inputs` float32 [batch, time, features] -> the next rows, same shape, dtype and units; the new state."""
        scaled = (inputs - self.mean) / self.scale  # [batch, time, features]
        hidden, state = self.recur(scaled, state)  # [batch, time, hidden]
        change = self.head(self.dropout(hidden)).to(state[0].dtype)  # [batch, time, features]
        return inputs + self.scale * change, state


def initialise(network: Network) -> None:
    """Set the weights that training starts from: Glorot inputs, orthogonal recurrence per gate, open memory.

    Glorot & Bengio (2010) keep the variance of what a layer is told; orthogonal recurrence keeps gradients from fading
    or exploding over long chunks (Saxe et al. 2014); a cell that begins by keeping what it has learns what to forget
    (Gers et al. 2000, Jozefowicz et al. 2015): the bias of the gate that decides it is 1, or -1 where the gate closes
    to keep. All other biases are 0, and so are the peepholes: their LSTM begins as one without.
    """
    gates = network.cell.gates
    for name, parameter in network.recurrent.named_parameters():
        if name.startswith(("bias", "weight_peephole")):
            nn.init.zeros_(parameter)
        else:
            fill = nn.init.xavier_uniform_ if name.startswith("weight_ih") else nn.init.orthogonal_
            for gate in parameter.chunk(len(gates)):  # [hidden, width]
                fill(gate)
        if name.startswith("bias_ih") and network.cell.lasting:  # one of the two biases: they add up
            lasting, bias = network.cell.lasting
            nn.init.constant_(parameter.chunk(len(gates))[gates.index(lasting)], bias)
    nn.init.zeros_(network.head.bias)


def keep_for(network: Network, steps: int) -> None:
    """Begin with gates that keep for between 2 and `steps` steps, a time scale drawn evenly for each unit.

    Tallec & Ollivier, "Can recurrent neural networks warp time?" (2018): a gate that keeps sigmoid(b) forgets over 1 +
    exp(b) steps, so its bias is log(u) with u uniform in [1, steps - 1], and the gate that takes in has the
    opposite bias. Nothing is done to a cell without gates.
    """
    if network.cell.lasting is None:
        return
    gates, (lasting, sign) = network.cell.gates, network.cell.lasting
    with torch.no_grad():
        for name, parameter in network.recurrent.named_parameters():
            if name.startswith("bias_ih"):
                bias = torch.log(torch.empty(network.config.hidden).uniform_(1, steps - 1))
                parts = dict(zip(gates, parameter.chunk(len(gates)), strict=True))
                parts[lasting].copy_(math.copysign(1.0, sign) * bias)
                if lasting == "f":  # the other cells take in what they forget
                    parts["i"].copy_(-bias)


def build(config: NetworkConfig) -> Network:
    """A freshly initialised network for the config, in training mode; the weights follow torch's global seed."""
    return LanguageNetwork(config) if config.task == "language" else ForecastNetwork(config)
