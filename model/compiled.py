"""The two cells that PyTorch lacks: an LSTM with peephole connections, and one with coupled gates.

Owns their modules, which are built and called like torch.nn.LSTM, and their ways through time, which are compiled.
Must not know what networks are made of them.

A step of so small a cell takes less time than Python and autograd need to speak of it. Hence what the inputs add to
the gates is one product for all steps, and only what must wait for the step before it is left to a loop in TorchScript.
The way back is written by hand, in the same form: the slopes of all gates at once, then a loop, then one product for
the gradient of each weight.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """The function in TorchScript."""
    with warnings.catch_warnings():
        # Torch points to torch.compile instead, which needs a C++ compiler on the machine that trains.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        script: _Function = torch.jit.script(function)
    return script


class _GatedLSTM(nn.Module, ABC):
    """What the two cells have in common: layers one above the other, with parameters named like nn.LSTM's.

    `weight_ih_l{k}` [gates * hidden, width], `weight_hh_l{k}` [gates * hidden, hidden], `bias_ih_l{k}` and
    `bias_hh_l{k}` [gates * hidden], the gates one below the other. Two biases, as PyTorch has, add up to one. Of
    nn.LSTM's arguments these cells take the ones below; the inputs are always [batch, time, width].
    """

    gates: int  # the last one is the output gate, the only one that acts after c

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, *, batch_first: bool, dropout: float
    ) -> None:
        super().__init__()
        if not batch_first:
            raise ValueError("inputs are [batch, time, width]: batch_first must be True")
        self.num_layers = num_layers
        self.dropout = dropout
        bound = 1 / math.sqrt(hidden_size)  # as nn.LSTM starts
        for k in range(num_layers):
            for name, shape in self.shapes(hidden_size if k else input_size, hidden_size).items():
                weight = torch.empty(shape).uniform_(-bound, bound)
                self.register_parameter(f"{name}_l{k}", nn.Parameter(weight))

    def shapes(self, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """The parameters of a layer."""
        rows = self.gates * hidden
        return {"weight_ih": (rows, width), "weight_hh": (rows, hidden), "bias_ih": (rows,), "bias_hh": (rows,)}

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[batch, time, width] and (h, c), each [layers, batch, hidden] -> h of the last layer, and (h, c) after it.

        The state keeps its type under autocast too; only the matrix products are in autocast's.
        """
        signal = inputs.transpose(0, 1)  # [time, batch, width]
        after = []
        for k in range(self.num_layers):
            h, c = state[0][k], state[1][k]  # [batch, hidden]
            if k and self.dropout:
                signal = functional.dropout(signal, self.dropout, self.training)
            named = {name: getattr(self, f"{name}_l{k}") for name in self.shapes(0, 0)}
            added = functional.linear(signal, named.pop("weight_ih"), named.pop("bias_ih") + named.pop("bias_hh"))
            weight = named.pop("weight_hh").to(added.dtype)
            layer = (type(self), added.to(h.dtype), h, c, weight, *named.values())
            signal, c = _Layer.apply(*layer)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            after.append((signal[-1], c))
        h, c = (torch.stack(tensors) for tensors in zip(*after, strict=True))
        return signal.transpose(0, 1), (h, c)

    @staticmethod
    @abstractmethod
    def steps(added: Tensor, h: Tensor, c: Tensor, weight: Tensor, *peephole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All steps of a layer: gates [time, batch, gates * hidden], c and h after each [time, batch, hidden].

        `added` [time, batch, gates * hidden] is what inputs and biases add to the gates; h and c [batch, hidden];
        `weight` [hidden, gates * hidden] in the type that products are to have.
        """

    @staticmethod
    @abstractmethod
    def slopes(gates: Tensor, before: Tensor, after: Tensor, *peephole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives that a step has by itself, from its gates [time, batch, gates, hidden], and c around it.

        First of c by the sum inside each gate, and in the last place of h by that inside the output gate [time, batch,
        gates, hidden]; then of c by the c before it; then of h by c. The last two are [time, batch, hidden], and count
        what goes by way of the peepholes.
        """

    @staticmethod
    def peephole_gradients(errors: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the peepholes, where there are any, from that of the gates' sums, and c as in `slopes`."""
        return ()


class PeepholeLSTM(_GatedLSTM):
    """An LSTM whose gates see the cell state, each unit its own: the weights p are diagonal.

        i  = sigmoid(W_i x + R_i h + b_i + p_i * c)
        f  = sigmoid(W_f x + R_f h + b_f + p_f * c)
        g  = tanh(W_g x + R_g h + b_g)
        c' = f * c + i * g
        o  = sigmoid(W_o x + R_o h + b_o + p_o * c')
        h' = o * tanh(c')

    Gates lie in the order i, f, g, o; `weight_peephole_l{k}` [3 * hidden] in the order i, f, o.

    Source: Gers & Schmidhuber, "Recurrent nets that time and count" (2000); Gers, Schraudolph & Schmidhuber, "Learning
    precise timing with LSTM recurrent networks" (2002). With tanh on g and h', as by Graves, "Generating sequences with
    recurrent neural networks" (2013).
    """

    gates = 4

    def shapes(self, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """The parameters of a layer."""
        return super().shapes(width, hidden) | {"weight_peephole": (3 * hidden,)}

    @staticmethod
    def steps(added: Tensor, h: Tensor, c: Tensor, weight: Tensor, *peephole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class."""
        return _peephole_steps(added, h, c, weight, peephole[0].view(3, -1))

    @staticmethod
    def slopes(gates: Tensor, before: Tensor, after: Tensor, *peephole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class."""
        i, f, g, o = gates.unbind(2)  # each [time, batch, hidden]
        p_i, p_f, p_o = peephole[0].view(3, -1)
        squashed = after.tanh()
        of_c = (g * i * (1 - i), before * f * (1 - f), i * (1 - g * g))
        of_h = squashed * o * (1 - o)
        kept = f + p_i * of_c[0] + p_f * of_c[1]
        return torch.stack([*of_c, of_h], dim=2), kept, o * (1 - squashed * squashed) + p_o * of_h

    @staticmethod
    def peephole_gradients(errors: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
        """See the base class."""
        i, f, _, o = errors.unbind(2)
        return (torch.cat([(i * before).sum((0, 1)), (f * before).sum((0, 1)), (o * after).sum((0, 1))]),)


class CoupledLSTM(_GatedLSTM):
    """An LSTM that forgets as much as it takes in: the forget gate is 1 - i.

        i  = sigmoid(W_i x + R_i h + b_i)
        g  = tanh(W_g x + R_g h + b_g)
        o  = sigmoid(W_o x + R_o h + b_o)
        c' = (1 - i) * c + i * g
        h' = o * tanh(c')

    Gates lie in the order i, g, o.

    Source: Greff et al., "LSTM: a search space odyssey" (2017), where it is called CIFG; without their peepholes.
    """

    gates = 3

    @staticmethod
    def steps(added: Tensor, h: Tensor, c: Tensor, weight: Tensor, *peephole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class."""
        return _coupled_steps(added, h, c, weight)

    @staticmethod
    def slopes(gates: Tensor, before: Tensor, after: Tensor, *peephole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class."""
        i, g, o = gates.unbind(2)  # each [time, batch, hidden]
        squashed = after.tanh()
        of_c = ((g - before) * i * (1 - i), i * (1 - g * g))
        of_h = squashed * o * (1 - o)
        return torch.stack([*of_c, of_h], dim=2), 1 - i, o * (1 - squashed * squashed)


class _Layer(torch.autograd.Function):
    """One layer through time: the compiled steps forth, and the compiled steps back.

    Derived by hand from the cells' equations; `torch.autograd.gradcheck` compares it with differences in the tests.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch has no type for it that knows what is saved)
        cell: type[_GatedLSTM],
        added: Tensor,
        h: Tensor,
        c: Tensor,
        weight: Tensor,
        *peephole: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """h of all steps [time, batch, hidden], and the last c [batch, hidden]; arguments as `steps` has them."""
        gates, cells, outputs = cell.steps(added, h, c, weight.t(), *peephole)
        ctx.cell = cell
        ctx.save_for_backward(gates, cells, outputs, h, c, weight, *peephole)
        return outputs, cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h_gradients: Tensor, c_gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradients of forward's arguments, from those of its results."""
        gates, cells, outputs, h, c, weight, *peephole = ctx.saved_tensors
        before = torch.cat([c[None], cells[:-1]])  # [time, batch, hidden]
        slopes, kept, seen = ctx.cell.slopes(gates.unflatten(2, (ctx.cell.gates, -1)), before, cells, *peephole)
        errors, first_h, first_c = _steps_back(slopes, kept, seen, h_gradients, c_gradient, weight)
        inputs = torch.cat([h[None], outputs[:-1]]).flatten(0, 1)  # [time * batch, hidden]
        flat = errors.flatten(2)  # [time, batch, gates * hidden]
        weight_gradient = flat.flatten(0, 1).t().to(weight.dtype) @ inputs.to(weight.dtype)
        others = ctx.cell.peephole_gradients(errors, before, cells)
        return None, flat, first_h, first_c, weight_gradient, *others


@_compiled
def _sum_into(gates: Tensor, added: Tensor, h: Tensor, weight: Tensor) -> None:
    """gates = added + h @ weight; where the weight has another type than the rest, the product alone is in it."""
    if weight.dtype == h.dtype:
        torch.addmm(added, h, weight, out=gates)
    else:
        torch.add(added, torch.mm(h.to(weight.dtype), weight), out=gates)


@_compiled
def _peephole_steps(
    added: Tensor, h: Tensor, c: Tensor, weight: Tensor, peephole: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """PeepholeLSTM.steps, with the peepholes as [3, hidden]."""
    gates, cells = h.new_empty(added.shape), h.new_empty([added.size(0), h.size(0), h.size(1)])
    outputs = torch.empty_like(cells)
    for t in range(added.size(0)):
        _sum_into(gates[t], added[t], h, weight)
        gate = gates[t].view(h.size(0), 4, h.size(1))
        gate[:, :2].addcmul_(peephole[:2], c.unsqueeze(1)).sigmoid_()
        gate[:, 2].tanh_()
        torch.mul(gate[:, 1], c, out=cells[t])
        c = cells[t].addcmul_(gate[:, 0], gate[:, 2])
        gate[:, 3].addcmul_(peephole[2], c).sigmoid_()
        h = outputs[t]
        torch.mul(gate[:, 3], c.tanh(), out=h)
    return gates, cells, outputs


@_compiled
def _coupled_steps(added: Tensor, h: Tensor, c: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CoupledLSTM.steps."""
    gates, cells = h.new_empty(added.shape), h.new_empty([added.size(0), h.size(0), h.size(1)])
    outputs = torch.empty_like(cells)
    for t in range(added.size(0)):
        _sum_into(gates[t], added[t], h, weight)
        gate = gates[t].view(h.size(0), 3, h.size(1))
        gate[:, 0].sigmoid_()
        gate[:, 1].tanh_()
        gate[:, 2].sigmoid_()
        torch.lerp(c, gate[:, 1], gate[:, 0], out=cells[t])
        c, h = cells[t], outputs[t]
        torch.mul(gate[:, 2], c.tanh(), out=h)
    return gates, cells, outputs


@_compiled
def _steps_back(
    slopes: Tensor, kept: Tensor, seen: Tensor, h_gradients: Tensor, c_gradient: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradients of all h and the last c to those of the gates' sums, and of the first h and c.

    `slopes`, `kept` and `seen` as _GatedLSTM.slopes gives them; the slopes are overwritten with the gates' gradients.
    """
    last = slopes.size(2) - 1
    h_gradient = h_gradients[-1]
    for k in range(slopes.size(0)):
        t = slopes.size(0) - 1 - k
        c_gradient = torch.addcmul(c_gradient, h_gradient, seen[t])
        gate = slopes[t]  # [batch, gates, hidden]
        gate[:, :last].mul_(c_gradient.unsqueeze(1))
        gate[:, last].mul_(h_gradient)
        c_gradient = c_gradient * kept[t]
        if t > 0:
            h_gradient = torch.empty_like(c_gradient)
            _sum_into(h_gradient, h_gradients[t - 1], gate.flatten(1), weight)
        else:  # nothing else is made of the h from before the first step
            h_gradient = torch.mm(gate.flatten(1).to(weight.dtype), weight).to(gate.dtype)
    return slopes, h_gradient, c_gradient
