"""The recurrent cells by name: which module each is, its equations, and what it carries.

Owns the table. In the equations x is the input, h and c the state before the step, h' and c' after it; W, R and b are
weights of the input, of the recurrence, and biases, of which PyTorch keeps two that add up; * is by element.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from model.compiled import CoupledLSTM, PeepholeLSTM


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent layer.

    `make` takes (width of the input, hidden, layers, batch_first, dropout) and gives a module whose parameters and
    calls are like those of torch.nn.LSTM. `gates` are the blocks of its weights, one below the other; `states` what it
    carries from step to step, each [layers, batch, hidden]. `lasting` is the gate that decides what is kept, and the
    bias with which it is kept by default.
    """

    make: Callable[..., nn.Module]
    gates: tuple[str, ...]
    states: tuple[str, ...]
    lasting: tuple[str, float] | None = None


RNN = Cell(nn.RNN, gates=("h",), states=("h",))
"""The simple recurrent network.

    h' = tanh(W x + R h + b)

Source: Elman, "Finding structure in time" (1990); with tanh for his logistic function.
"""

GRU = Cell(nn.GRU, gates=("r", "z", "n"), states=("h",), lasting=("z", 1.0))
"""The gated recurrent unit.

    r  = sigmoid(W_r x + R_r h + b_r)
    z  = sigmoid(W_z x + R_z h + b_z)
    n  = tanh(W_n x + b_n + r * (R_n h + d_n))
    h' = (1 - z) * n + z * h

Source: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation"
(2014), in the variant of PyTorch and cuDNN: the reset gate acts after the product with R_n, not on h before it, so the
two biases b_n and d_n of n do not add up.
"""

LSTM = Cell(nn.LSTM, gates=("i", "f", "g", "o"), states=("h", "c"), lasting=("f", 1.0))
"""Long short-term memory.

    i  = sigmoid(W_i x + R_i h + b_i)
    f  = sigmoid(W_f x + R_f h + b_f)
    g  = tanh(W_g x + R_g h + b_g)
    o  = sigmoid(W_o x + R_o h + b_o)
    c' = f * c + i * g
    h' = o * tanh(c')

Source: Hochreiter & Schmidhuber, "Long short-term memory" (1997), with the forget gate of Gers, Schmidhuber & Cummins,
"Learning to forget: continual prediction with LSTM" (2000).
"""

PEEPHOLE = Cell(PeepholeLSTM, gates=("i", "f", "g", "o"), states=("h", "c"), lasting=("f", 1.0))
"""LSTM whose gates see c; equations and source: PeepholeLSTM."""

CIFG = Cell(CoupledLSTM, gates=("i", "g", "o"), states=("h", "c"), lasting=("i", -1.0))
"""LSTM with coupled input and forget gates; equations and source: CoupledLSTM."""

CELLS = {"rnn": RNN, "gru": GRU, "lstm": LSTM, "peephole": PEEPHOLE, "cifg": CIFG}
