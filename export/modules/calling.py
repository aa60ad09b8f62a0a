"""A module of the user's own as a pure function of named tensors.

Owns the names: of what ``forward`` takes (its parameters, ``state_0`` and ``state_1`` inside of a ``state`` that is a
tuple), of what it returns, and of new states. Knows nothing of exporters or ONNX, nor of axes, but for the sentence on
states of another number of rows.
"""

import inspect
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import ExportError

Nested = Any  # a tensor, or tuples, lists and mappings of such
Named = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """How a module is called: example ``inputs`` and ``states`` by parameter, nested as ``forward`` wants them.

    ``returned`` names what comes back in its order: an output by any name, a state by the name it goes in with.
    """

    module: nn.Module
    inputs: Mapping[str, Nested]
    states: Mapping[str, Nested]
    constants: Mapping[str, Any]
    returned: tuple[str, ...]

    @property
    def sequences(self) -> Named:
        """The example inputs by name, without the states."""
        return _flat(self.inputs)

    @property
    def carried(self) -> Named:
        """The example states by name."""
        return _flat(self.states)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what is returned and no state."""
        return tuple(name for name in self.returned if name not in self.carried)

    def __call__(self, tensors: Mapping[str, Tensor]) -> Named:
        """What ``forward`` makes of inputs and states: outputs by name, and new states by the name of the old ones.

        A module may change what it is given, and what it has returned: it works on copies.
        """
        return _copies(self.traced(_copies(tensors)))

    def traced(self, tensors: Mapping[str, Tensor]) -> Named:
        """The same without copies, which are no part of a graph."""
        nested = {name: _rebuilt(value, name, tensors) for name, value in {**self.inputs, **self.states}.items()}
        answer = self.module(**nested, **self.constants)
        return dict(zip(self.returned, (t for _, t in _leaves(answer, "output")), strict=True))


def next_of(state: str) -> str:
    """The output that carries on the state input of this name."""
    return f"{state}_next"


def bind(
    module: nn.Module,
    example_inputs: Nested,
    states: Mapping[str, Nested],
    outputs: Sequence[str] | None,
    constants: Mapping[str, Any],
) -> Call:
    """The call that a user describes; ExportError names the argument that does not fit ``forward``."""
    if any(t.device.type != "cpu" for t in (*module.parameters(), *module.buffers())):
        raise ExportError("the module is not on the CPU: hand over module.cpu()")
    if not isinstance(states, Mapping):
        raise ExportError("states is no dict: name the parameters of forward that carry the state, such as {'h': h0}")
    if len(states) == 0:
        raise ExportError("states is empty: name the parameters of forward that carry the state, such as {'h': h0}")
    inputs = _by_parameter(module, example_inputs, {*states, *constants})
    draft = Call(module, inputs, states, dict(constants), ())
    _check_names(draft)
    draft = Call(module, _copied(inputs), _copied(states), dict(constants), ())  # what a module may change is ours
    answer = _answer(draft)
    call = replace(draft, returned=_returned(draft, outputs, len(answer)))
    _check_states(call, dict(zip(call.returned, answer, strict=True)))
    return call


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, without gradients, on one thread; afterwards everything is as it was."""
    if not isinstance(module, nn.Module):
        raise ExportError(f"module is of type {type(module).__name__}, expected an nn.Module")
    modes = [(part, part.training) for part in module.modules()]
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small calls gain nothing from threads, and on a busy machine wait for each other
    try:
        module.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn of themselves, and of what the module does every time
            yield
    finally:
        torch.set_num_threads(threads)
        for part, training in modes:
            part.training = training
        for name, buffer in module.named_buffers():
            if name in kept:
                buffer.data.copy_(kept[name])


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said if len(said) <= _LONGEST else said[:_LONGEST] + ' ...'}"


MOST_TRIALS = 256  # ways in which the rows of many states may lie
_LONGEST = 200  # characters of another library's sentence: some hold a whole graph
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _by_parameter(module: nn.Module, example: Nested, taken: set[str]) -> dict[str, Nested]:
    """Example inputs by parameter; a tensor or tuple stands for the first parameters that are not ``taken``."""
    if isinstance(example, Mapping):
        found = dict(example)
    else:
        given = tuple(example) if isinstance(example, tuple | list) else (example,)
        free = [name for name in inspect.signature(module.forward).parameters if name not in taken]
        if len(given) > len(free):
            raise ExportError(
                f"example_inputs has {len(given)} tensors where forward takes {len(free)} beside states and constants"
            )
        found = dict(zip(free, given, strict=False))
    if not found:
        raise ExportError("example_inputs is empty: expected a tensor, a tuple of them, or a dict by parameter")
    for name in found:
        if name in taken:
            raise ExportError(f"{name!r} is given twice: in example_inputs, and in states or constants")
    return found


def _check_names(draft: Call) -> None:
    given = {*draft.inputs, *draft.states, *draft.constants}
    parameters = inspect.signature(draft.module.forward).parameters
    for name in given:
        if name not in parameters:
            raise ExportError(f"forward has no parameter {name!r} (it has {', '.join(parameters)})")
    for name, parameter in parameters.items():
        if name not in given and parameter.default is parameter.empty and parameter.kind not in _OPEN:
            raise ExportError(f"forward needs {name!r}: give it in example_inputs, states or constants")
    if not draft.sequences or not draft.carried:
        raise ExportError("example_inputs and states hold no tensor")


def _returned(draft: Call, outputs: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of ``count`` returned tensors; the states are the last of them where ``outputs`` names none."""
    states = list(draft.carried)
    if isinstance(outputs, str):
        outputs = [outputs]
    if outputs is None:
        free = count - len(states)
        outputs = ["output"] if free == 1 else [f"output_{i}" for i in range(free)]
    parts = {name: list(_flat({name: value})) for name, value in draft.states.items()}
    names = [part for name in outputs for part in parts.get(name, [name])]
    names += [] if set(names) & set(states) else states
    if len(names) != count or not set(states) <= set(names):
        raise ExportError(
            f"forward returns {count} tensors where these are expected, in this order: {', '.join(names)}; "
            "name all of them with outputs="
        )
    taken = [*draft.sequences, *names]
    if doubles := [name for name in dict.fromkeys(taken) if taken.count(name) > 1]:
        raise ExportError(f"two tensors are called {doubles[0]!r}: give the outputs other names with outputs=")
    return tuple(names)


def _check_states(call: Call, answer: Named) -> None:
    for name, before in call.carried.items():
        after = answer[name]
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ExportError(
                f"state {name!r} goes in as {_text(before)} and comes back as {_text(after)}: "
                "is it another of the tensors that forward returns? name all of them with outputs="
            )


def _answer(draft: Call) -> list[Tensor]:
    """What ``forward`` returns for the example."""
    try:
        return _tried(draft, draft.carried)
    except ExportError:
        raise
    except Exception as error:  # a module of the user's may raise anything
        raise ExportError(
            _other_rows(draft) or f"the module does not run on its example: {first_line(error)}"
        ) from error


def _tried(draft: Call, states: Named) -> list[Tensor]:
    tensors = _copies({**draft.sequences, **states})
    nested = {name: _rebuilt(value, name, tensors) for name, value in {**draft.inputs, **draft.states}.items()}
    return [tensor.clone() for _, tensor in _leaves(draft.module(**nested, **draft.constants), "output")]


def _other_rows(draft: Call) -> str | None:
    """A sentence, where the module runs as soon as the states have as many rows as the inputs."""
    shapes = [tensor.shape for tensor in draft.sequences.values()]
    for rows in dict.fromkeys(lengths[0] for lengths in zip(*shapes, strict=False) if len(set(lengths)) == 1):
        choices = [[(name, axis) for axis in range(tensor.dim())] for name, tensor in draft.carried.items()]
        for axes in itertools.islice(itertools.product(*choices), MOST_TRIALS):
            states = {name: _with_rows(draft.carried[name], axis, rows) for name, axis in axes}
            try:
                answered = [tensor.shape for tensor in _tried(draft, states)]
            except Exception:  # noqa: BLE001, S112 - a wrong guess makes a module raise anything
                continue
            if any(state.shape not in answered for state in states.values()):
                continue
            told = (
                f"{n!r} has {draft.carried[n].shape[a]} on axis {a}"
                for n, a in axes
                if states[n] is not draft.carried[n]
            )
            return f"states must have as many rows as the inputs ({rows}): {', '.join(told)}"
    return None


def _with_rows(state: Tensor, axis: int, rows: int) -> Tensor:
    if state.shape[axis] in (0, rows):
        return state
    return state.index_select(axis, torch.arange(rows) % state.shape[axis])


def _copies(tensors: Mapping[str, Tensor]) -> Named:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _copied(nested: Mapping[str, Nested]) -> dict[str, Nested]:
    """The nest with copies of its tensors."""
    copies = _copies(_flat(nested))
    return {name: _rebuilt(value, name, copies) for name, value in nested.items()}


def _text(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _flat(nested: Mapping[str, Nested]) -> Named:
    return {name: tensor for key, value in nested.items() for name, tensor in _leaves(value, key)}


def _leaves(value: Nested, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nest with their names, in order."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | tuple | list):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(part, f"{name}_{key}")
    else:
        raise ExportError(f"{name!r} is of type {type(value).__name__}, expected a tensor, or tuples or dicts of them")


def _rebuilt(value: Nested, name: str, tensors: Mapping[str, Tensor]) -> Nested:
    """The nest with the tensors of these names in it."""
    if isinstance(value, Tensor):
        return tensors[name]
    if isinstance(value, Mapping):
        return {key: _rebuilt(part, f"{name}_{key}", tensors) for key, part in value.items()}
    parts = [_rebuilt(part, f"{name}_{i}", tensors) for i, part in enumerate(value)]
    if hasattr(value, "_fields"):  # a named tuple takes its parts one by one
        return type(value)(*parts)
    return type(value)(parts)
