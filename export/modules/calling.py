"""A module of the user's own as a pure function of named tensors.

Owns the names: of what ``forward`` takes (its parameters, ``state_0`` and ``state_1`` inside of a ``state`` that is a
tuple), of what it returns, and of new states. Knows nothing of axes, exporters or ONNX.
"""

import inspect
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
    _check_repeats(draft, answer)
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
        answer = draft.module(**_copied(draft.inputs), **_copied(draft.states), **draft.constants)
        return [tensor.clone() for _, tensor in _leaves(answer, "output")]
    except ExportError:
        raise
    except Exception as error:  # a module of the user's may raise anything
        raise ExportError(f"the module does not run on its example: {first_line(error)}") from error


def _check_repeats(draft: Call, answer: Sequence[Tensor]) -> None:
    """The same question, the same answer: all that a module remembers must go in and come back."""
    before = _copies(dict(draft.module.named_buffers()))
    again = _answer(draft)
    if all(((a == b) | (a != a)).all() for a, b in zip(again, answer, strict=True)):
        return
    changed = [name for name, kept in draft.module.named_buffers() if not torch.equal(kept, before[name])]
    kept = f"keeps a state in its buffer {changed[0]!r}" if changed else "draws random numbers, or keeps a state"
    raise ExportError(
        f"the module answers the same question differently each time: it {kept}, where a state must be a parameter of "
        "forward and be returned"
    )


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
