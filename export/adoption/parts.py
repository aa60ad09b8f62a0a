"""What each input and output of a foreign graph is for: a sequence, a state, a constant, the lengths.

Owns the words that tell lengths, and the values that the user gives by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from export.adoption.pairing import Pair, find_pairs
from export.adoption.ports import Dim, Port, Ports, shape_text
from export.adoption.wishes import ALL, NONE, Wishes
from export.errors import ExportError


@dataclass(frozen=True)
class State:
    """One state pair; ``shape`` is what its input and its output say together, ``first`` its value before any step."""

    before: Port
    after: Port
    shape: tuple[Dim, ...]
    first: np.ndarray | None

    @property
    def open(self) -> list[int]:
        """The axes whose length the graph leaves open."""
        return [axis for axis, n in enumerate(self.shape) if not isinstance(n, int)]


@dataclass(frozen=True)
class Parts:
    """The ports of a graph, told apart."""

    sequences: tuple[Port, ...]
    answers: tuple[Port, ...]
    states: tuple[State, ...]
    constants: Mapping[str, np.ndarray]
    lengths: Port | None


def parts_of(ports: Ports, wishes: Wishes) -> Parts:
    """What is found and what the user says; ExportError names what does not fit."""
    _check_names(ports, wishes)
    constants = {name: _constant(ports.inputs[name], value) for name, value in wishes.constants.items()}
    lengths = _lengths(ports, wishes, set(constants))
    taken = {*constants, *([lengths.name] if lengths else [])}
    pairs = find_pairs(ports, wishes.states, taken)
    _check_states(pairs, wishes, taken)
    states = tuple(_state(ports, pair, wishes) for pair in pairs)
    carried = {i for i, _ in pairs}
    answers = tuple(port for name, port in ports.outputs.items() if name not in {o for _, o in pairs})
    return Parts(
        sequences=tuple(port for name, port in ports.inputs.items() if name not in taken | carried),
        answers=answers or (states[0].after,),  # a cell whose answer is its state
        states=states,
        constants=constants,
        lengths=lengths,
    )


def _check_names(ports: Ports, wishes: Wishes) -> None:
    both = {**ports.inputs, **ports.outputs}
    options: list[tuple[str, Mapping[str, object], Mapping[str, Port]]] = [
        ("constant", wishes.constants, ports.inputs),
        ("initial", wishes.initial, ports.inputs),
        ("lengths", {wishes.lengths: 1} if wishes.lengths not in (None, NONE) else {}, ports.inputs),
        ("batch-axis", wishes.batch_axes, both),
        ("time-axis", wishes.time_axes, both),
    ]
    for option, given, known in options:
        for name in given:
            if name not in known and name != ALL:
                have = ", ".join(known)
                raise ExportError(f"--{option} names {name!r}, which the graph does not have (it has {have})")


def _check_states(pairs: tuple[Pair, ...], wishes: Wishes, taken: set[str]) -> None:
    carried = [before for before, _ in pairs]
    for name in sorted(taken & set(carried)):
        raise ExportError(f"{name!r} is given as a state, and as a constant or as lengths: say one of them")
    for name in sorted(wishes.initial.keys() - set(carried)):
        raise ExportError(f"--initial names {name!r}, which is no state (the states are {', '.join(carried)})")
    for name in sorted(wishes.time_axes.keys() & set(carried)):
        raise ExportError(f"--time-axis names {name!r}, which is a state: it has no axis for steps")


def _lengths(ports: Ports, wishes: Wishes, taken: set[str]) -> Port | None:
    """The input that the user names, or an integer for each row whose name speaks of lengths."""
    given = {name for pair in wishes.states for name in pair} | taken
    for name, port in ports.inputs.items():
        whole = port.dtype in ("int32", "int64") and port.shape is not None and len(port.shape) == 1
        if name == wishes.lengths:
            if not whole:
                raise ExportError(f"--lengths {name} must be int32 or int64 with one axis, the batch: it is {port}")
            return port
        if wishes.lengths is None and whole and port.open and "len" in name.lower() and name not in given:
            return port
    return None


def _constant(port: Port, value: np.ndarray) -> np.ndarray:
    """The value in the type and shape of the graph's input; a number fills the whole tensor."""
    array = _typed("--constant", port, value)
    shape = tuple(n if isinstance(n, int) else 1 for n in port.shape or ())
    if array.ndim == 0:
        return np.full(shape if port.shape is not None else (), array)
    if port.shape is not None and not _fits(array.shape, port.shape):
        raise ExportError(f"--constant {port.name} has the shape {list(array.shape)} where the input is {port}")
    return array


def _typed(option: str, port: Port, value: np.ndarray) -> np.ndarray:
    """The array in the port's type; ExportError where numbers would change."""
    fraction = np.dtype(port.dtype).kind == "f"
    near = (
        {"rtol": 1e-2, "atol": 1e-6} if fraction else {"rtol": 0, "atol": 0}
    )  # whole numbers and truths stay as they are
    with np.errstate(all="ignore"):
        array = value.astype(port.dtype) if value.dtype.kind in "biuf" else None
    if array is None or not np.allclose(array.astype(np.float64), value.astype(np.float64), **near):
        raise ExportError(f"{option} {port.name} cannot be written as {port.dtype}")
    return array


def _fits(shape: tuple[int, ...], dims: tuple[Dim, ...]) -> bool:
    return len(shape) == len(dims) and all(not isinstance(d, int) or n == d for n, d in zip(shape, dims, strict=True))


def _state(ports: Ports, pair: Pair, wishes: Wishes) -> State:
    before, after = ports.inputs[pair[0]], ports.outputs[pair[1]]
    shape = before.shape if before.shape is not None else after.shape
    if shape is None:
        raise ExportError(
            f"the state {before.name!r} has no shape in the graph: give it with --shape {before.name}=..."
        )
    if before.shape is not None and after.shape is not None and len(before.open) > 1:
        # Where the input has one open axis only, that is its batch, whatever an exporter wrote of the output.
        shape = tuple(m if isinstance(m, int) else n for n, m in zip(before.shape, after.shape, strict=True))
    value = wishes.initial.get(before.name)
    state = State(before, after, shape, None)
    return state if value is None else State(before, after, *_first(state, value, wishes))


def _first(state: State, value: np.ndarray, wishes: Wishes) -> tuple[tuple[Dim, ...], np.ndarray]:
    """The state's shape as its first value tells it, and that value.

    The value is one row, with the batch axis of length 1 or without; a batch axis that is not told is an open one.
    """
    array = _typed("--initial", state.before, value)
    if array.ndim == len(state.shape) and _fits(array.shape, state.shape):
        return tuple(
            n if isinstance(d, int) or n != 1 else d for n, d in zip(array.shape, state.shape, strict=True)
        ), array
    wish = wishes.batch_axes.get(state.before.name)
    likely = [wish] if wish is not None else state.open or [axis for axis, n in enumerate(state.shape) if n == 1]
    fitting = [axis for axis in likely if _fits(array.shape, (*state.shape[:axis], *state.shape[axis + 1 :]))]
    if len(fitting) > 1 and state.open:
        raise ExportError(
            f"--initial {state.before.name} fits several readings of {shape_text(state.shape)}: "
            f"say --batch-axis {state.before.name}=AXIS"
        )
    for axis in fitting[:1]:
        return (*array.shape[:axis], state.shape[axis], *array.shape[axis:]), np.expand_dims(array, axis)
    raise ExportError(
        f"--initial {state.before.name} has the shape {list(array.shape)}, "
        f"which is no row of the state's {shape_text(state.shape)}"
    )
