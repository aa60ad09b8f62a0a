"""The five cells do what their equations say, forth and back, and the two of our own behave like torch's."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import options
from model.cells import CELLS
from model.compiled import CoupledLSTM, PeepholeLSTM
from model.networks import NetworkConfig, build
from tests.support import reference

OWN = ["peephole", "cifg"]


def _module(name: str, width: int, hidden: int, layers: int, dropout: float = 0.0) -> nn.Module:
    """A cell in float64 whose weights, peepholes and biases too, are large enough to bend every gate."""
    torch.manual_seed(4)
    module = CELLS[name].make(width, hidden, layers, batch_first=True, dropout=dropout).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def _states(name: str, layers: int, batch: int, hidden: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(layers, batch, hidden, dtype=torch.float64) for _ in CELLS[name].states)


def _call(module: nn.Module, inputs: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs, after = module(inputs, states if len(states) > 1 else states[0])
    return outputs, after if isinstance(after, tuple) else (after,)


def _layers(module: nn.Module, layers: int) -> list[dict[str, np.ndarray]]:
    named = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    suffixes = [f"_l{k}" for k in range(layers)]
    return [
        {name.removesuffix(suffix): array for name, array in named.items() if name.endswith(suffix)}
        for suffix in suffixes
    ]


@pytest.mark.parametrize(("layers", "batch", "time"), [(1, 1, 1), (1, 4, 9), (2, 1, 7), (3, 3, 40)])
@pytest.mark.parametrize("name", CELLS)
def test_cell_follows_its_equations(name: str, layers: int, batch: int, time: int) -> None:
    """In float64, outputs and states agree with NumPy to 1e-10, whatever the layers, the batch and the length."""
    module, states = _module(name, 5, 6, layers), _states(name, layers, batch, 6)
    inputs = torch.randn(batch, time, 5, dtype=torch.float64)
    outputs, after = _call(module, inputs, states)
    arrays = tuple(state.numpy() for state in states)
    expected, finals = reference.run(name, _layers(module, layers), inputs.transpose(0, 1).numpy(), arrays)
    np.testing.assert_allclose(outputs.detach().transpose(0, 1).numpy(), expected, rtol=0, atol=1e-10)
    for state, final in zip(after, finals, strict=True):
        np.testing.assert_allclose(state.detach().numpy(), final, rtol=0, atol=1e-10)


def test_table_agrees_with_options_and_reference() -> None:
    """The cells have the same names for the command line, which knows no torch, and the same gates in NumPy."""
    assert tuple(CELLS) == options.CELLS
    assert {name: cell.gates for name, cell in CELLS.items()} == reference.GATES
    assert {name: cell.states for name, cell in CELLS.items()} == reference.STATES


@pytest.mark.parametrize(("layers", "batch", "time"), [(1, 1, 1), (1, 2, 4), (2, 3, 3)])
@pytest.mark.parametrize("name", OWN)
def test_gradients_of_own_cells(name: str, layers: int, batch: int, time: int) -> None:
    """The hand-written way back agrees with differences: for inputs, states and every weight, by outputs and states."""
    module = _module(name, 3, 4, layers)
    inputs = torch.randn(batch, time, 3, dtype=torch.float64)
    arguments = [inputs, *_states(name, layers, batch, 4), *(p.detach() for p in module.parameters())]
    names = [parameter_name for parameter_name, _ in module.named_parameters()]

    def function(inputs: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(names, weights, strict=True))
        outputs, after = torch.func.functional_call(module, named, (inputs, (h, c)))
        return outputs, *after

    assert torch.autograd.gradcheck(function, [argument.requires_grad_() for argument in arguments])


@pytest.mark.parametrize("task", ["language", "forecast"])
@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_networks(name: str, task: str) -> None:
    """A whole network's gradients, by its states and weights, agree with differences."""
    torch.manual_seed(2)
    own: dict[str, Any] = (
        {"vocabulary": ("a", "b", "c"), "embedding": 2} if task == "language" else {"features": ("y",)}
    )
    network = build(NetworkConfig(task=task, layers=2, hidden=3, cell=name, **own)).double()  # type: ignore[arg-type]
    nn.init.normal_(network.head.weight)
    inputs = torch.randint(3, (2, 3)) if task == "language" else torch.randn(2, 3, 1, dtype=torch.float64)
    names = [parameter_name for parameter_name, _ in network.named_parameters()]

    def function(*arguments: Tensor) -> tuple[Tensor, ...]:
        count = len(CELLS[name].states)
        named = dict(zip(names, arguments[count:], strict=True))
        outputs, after = torch.func.functional_call(network, named, (inputs, arguments[:count]))
        return outputs, *after

    arguments = [*_states(name, 2, 2, 3), *(p.detach() for p in network.parameters())]
    assert torch.autograd.gradcheck(function, [argument.requires_grad_() for argument in arguments])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_peepholes_of_zero_are_none(dtype: torch.dtype) -> None:
    """With peepholes of 0 the cell is torch's LSTM, gradients included."""
    peephole, lstm = _module("peephole", 5, 6, 2).to(dtype), nn.LSTM(5, 6, 2, batch_first=True, dtype=dtype)
    shared = {name: tensor for name, tensor in peephole.state_dict().items() if "peephole" not in name}
    lstm.load_state_dict(shared)
    for k in range(2):
        nn.init.zeros_(peephole.get_parameter(f"weight_peephole_l{k}"))
    inputs = torch.randn(3, 10, 5, dtype=dtype)
    states = tuple(state.to(dtype) for state in _states("peephole", 2, 3, 6))
    found, expected = _call(peephole, inputs, states), _call(lstm, inputs, states)
    torch.testing.assert_close(found, expected)
    for module, (outputs, after) in ((peephole, found), (lstm, expected)):
        torch.autograd.backward(outputs.square().sum() + after[0].sum() + after[1].square().sum())
        assert module.weight_ih_l0.grad is not None
    for name in shared:
        torch.testing.assert_close(peephole.get_parameter(name).grad, lstm.get_parameter(name).grad)


@pytest.mark.parametrize("name", OWN)
def test_own_cell_is_the_same_each_time(name: str) -> None:
    """Whole or in chunks, first or tenth call, original or deep copy: the answer is the same, to the bit if possible.

    TorchScript settles during its first calls, and a training that is resumed in a new process must not notice.
    """
    module, states = _module(name, 5, 6, 2).float(), tuple(s.float() for s in _states(name, 2, 4, 6))
    inputs = torch.randn(4, 12, 5)
    first, (h, c) = _call(module, inputs, states)
    for _ in range(9):
        again, after = _call(copy.deepcopy(module), inputs, states)
        assert torch.equal(again, first)
        assert torch.equal(after[0], h)
        assert torch.equal(after[1], c)
    parts, carried = [], states
    for chunk in inputs.split([1, 4, 7], dim=1):
        part, carried = _call(module, chunk, carried)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), first)
    torch.testing.assert_close(carried, (h, c))


@pytest.mark.parametrize("name", OWN)
def test_copy_in_float64_runs_without_gradients(name: str) -> None:
    """A deep copy in double precision runs in inference mode, one row at a time, and leaves the original alone."""
    module = _module(name, 3, 4, 2).float()
    copied = copy.deepcopy(module).eval().double()
    with torch.inference_mode():
        outputs, _ = _call(copied, torch.randn(1, 1, 3, dtype=torch.float64), _states(name, 2, 1, 4))
    assert outputs.dtype == torch.float64
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", OWN)
def test_bfloat16_products(name: str) -> None:
    """Under autocast the products are bfloat16, the states and the gradients are not, and both stay near float32's."""
    module, states = _module(name, 5, 16, 2).float(), tuple(s.float() for s in _states(name, 2, 4, 16))
    inputs = torch.randn(4, 20, 5)
    found = []
    for reduced in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            outputs, after = _call(module, inputs, states)
        module.zero_grad()
        torch.autograd.backward(outputs.square().mean() + after[1].mean())
        gradients = [parameter.grad for parameter in module.parameters()]
        assert {tensor.dtype for tensor in (outputs, *after, *gradients) if tensor is not None} == {torch.float32}
        found.append((outputs, [gradient.clone() for gradient in gradients if gradient is not None]))
    (exact, exact_gradients), (rounded, rounded_gradients) = found
    assert 0 < (rounded - exact).abs().max() < 0.1
    for a, b in zip(rounded_gradients, exact_gradients, strict=True):
        assert (a - b).norm() < 0.1 * b.norm()


@pytest.mark.parametrize("name", OWN)
def test_dropout_between_layers(name: str) -> None:
    """Dropout acts between layers as in nn.LSTM: not on the last one's answer, and in training only."""
    module, states = _module(name, 3, 8, 2, dropout=0.5), _states(name, 2, 4, 8)
    inputs = torch.randn(4, 6, 3, dtype=torch.float64)
    plain, (h, _) = _call(module.eval(), inputs, states)
    dropped, (dropped_h, _) = _call(module.train(), inputs, states)
    assert torch.equal(dropped_h[0], h[0])
    assert not torch.equal(dropped_h[1], h[1])
    assert dropped.all()
    assert torch.equal(_call(module.eval(), inputs, states)[0], plain)


@pytest.mark.parametrize("own", [PeepholeLSTM, CoupledLSTM])
def test_time_first_is_refused(own: type[nn.Module]) -> None:
    """The one layout of inputs that these cells do not take is refused, not misread."""
    with pytest.raises(ValueError, match="batch_first"):
        own(3, 4, 1, batch_first=False, dropout=0.0)


@pytest.mark.parametrize("name", OWN)
def test_own_cell_reaches_no_second_gradient(name: str) -> None:
    """The gradient of a gradient, which the way back does not have, is an error and not a wrong number."""
    module, states = _module(name, 3, 4, 1), _states(name, 1, 2, 4)
    inputs = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(_call(module, inputs, states)[0].square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(gradient.sum())


def test_compiling_is_silent() -> None:
    """Torch's advice to compile otherwise is kept away from users, and other warnings are not."""
    from model.compiled import _compiled

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _compiled(_doubled)
        warnings.warn("`torch.jit.script` is deprecated", DeprecationWarning, stacklevel=1)
    assert len(caught) == 1


def _doubled(x: Tensor) -> Tensor:
    return x + x
