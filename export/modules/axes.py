"""Which axis of each tensor counts the rows and which the steps: found by running the module at other sizes.

Shapes alone do not tell (a state [1, 1, 64] may hold its rows on either axis), names even less; the module itself
knows. Knows nothing of exporters or ONNX.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from export.errors import ExportError
from export.modules.calling import MOST_TRIALS, Call, Named, first_line

ROWS, STEPS = 3, 5
NOT_FINITE = "the module itself answers NaN or infinity for inputs like its example's"

Axis = int | None | Mapping[str, int | None] | Literal["auto"]  # of every input, or by the names of inputs and states


@dataclass(frozen=True)
class Axes:
    """The axes by the names of inputs, outputs and states; None: the tensor has no such axis.

    ``batch`` holds every tensor, ``time`` inputs and outputs. ``cut``: whether a call takes any number of steps.
    """

    batch: Mapping[str, int | None]
    time: Mapping[str, int | None]
    cut: bool

    def sized(self, tensors: Mapping[str, Tensor], rows: int, steps: int, first: int = 0) -> Named:
        """Tensors with so many rows and steps, those of the given ones over and over, from row ``first`` on."""
        return {
            name: _stretched(_stretched(tensor, self.batch[name], rows, first), self.time.get(name), steps, 0)
            for name, tensor in tensors.items()
        }


def find_axes(call: Call, batch_axis: Axis, time_axis: Axis, tolerance: float) -> Axes:
    """The axes of a call, those told and those found; ExportError where the module does not run with other sizes."""
    batch = _rows(call, batch_axis)
    guesses, uncut = _guesses(call, time_axis), False
    for time in guesses:
        if (outputs := _through(call, batch, time)) is not None:
            axes = Axes(batch, {**time, **outputs}, cut=True)
            if _chunked(call, axes, tolerance):
                return axes
            uncut = True
    if uncut:
        raise ExportError(
            "a sequence cut into chunks is answered otherwise than the whole: the module needs more than its "
            "states to go on; with time_axis=None each call of the example's length is one step"
        )
    if time_axis == "auto":
        _refuse_doubt(call, batch)
        return Axes(batch, dict.fromkeys([*call.sequences, *call.outputs]), cut=False)
    return _one_step(call, batch, guesses[0])


def largest_difference(have: Tensor, want: Tensor) -> float:
    """In units of 1, or of the value where that is larger; NaN where one of the two is not finite."""
    a, b = have.double(), want.double()
    return float(((a - b).abs() / b.abs().clamp(min=1)).max()) if b.numel() else 0.0


def _rows(call: Call, batch_axis: Axis) -> dict[str, int | None]:
    """The batch axis of every tensor."""
    problem = "no axis fits"
    if batch_axis is None:
        _refuse_many(call)
    for inputs in _guesses(call, batch_axis):
        if all(axis is None for axis in inputs.values()):
            return dict.fromkeys([*call.sequences, *call.carried, *call.outputs])
        count = _count(call.sequences, inputs, "batch_axis")
        choices = [_choices(name, tensor, batch_axis, count) for name, tensor in call.carried.items()]
        for axes in itertools.islice(itertools.product(*choices), MOST_TRIALS):
            batch = {**inputs, **dict(zip(call.carried, axes, strict=True))}
            try:
                few, many = (_run(call, batch, {}, rows, 0) for rows in (ROWS, ROWS + 1))
            except Exception as error:  # noqa: BLE001 - a wrong guess makes a module raise anything
                problem = first_line(error)
                continue
            if (outputs := _grown(call, few, many, ROWS)) is not None:
                return {**batch, **outputs}
    raise ExportError(
        f"the module does not run with {ROWS} rows instead of its example's ({problem}): say where the rows lie with "
        "batch_axis= (by name, inputs and states), or batch_axis=None for a module that takes one row at a time"
    )


def _refuse_many(call: Call) -> None:
    """ExportError where one row at a time is asked for with an example of several, of which any number would do."""
    for axis in range(min(tensor.dim() for tensor in call.sequences.values()) - 1):  # the last one is a row's own
        try:
            _rows(call, dict.fromkeys(call.sequences, axis))
        except ExportError:
            continue
        if (count := _count(call.sequences, dict.fromkeys(call.sequences, axis), "batch_axis")) > 1:
            name, tensor = next(iter(call.sequences.items()))
            raise ExportError(
                f"batch_axis=None takes one row at a time, but the example has {count} of them on axis {axis}: leave "
                f"batch_axis out, give an example of one row, or say batch_axis={{{name!r}: None}} if all of "
                f"{list(tensor.shape)} is one row"
            )


def _guesses(call: Call, axis: Axis) -> list[dict[str, int | None]]:
    """For each possibility the axis of every input, the first ones first."""
    inputs = call.sequences
    if axis == "auto":
        least = min(tensor.dim() for tensor in inputs.values())
        return [dict.fromkeys(inputs, guess) for guess in range(least)]
    if not isinstance(axis, Mapping):
        axis = dict.fromkeys(inputs, axis)
    for name, at in axis.items():
        tensors = {**inputs, **call.carried}
        if not (at is None or isinstance(at, int)):
            raise ExportError(f"an axis is {at!r}, expected a number, None, or a dict of them by name")
        if name not in tensors or not (at is None or 0 <= at < tensors[name].dim()):
            raise ExportError(f"axis {at} of {name!r} does not exist: the axes of inputs and states count from 0")
    return [{name: axis.get(name) for name in inputs}]


def _choices(name: str, tensor: Tensor, axis: Axis, rows: int) -> list[int]:
    told = axis.get(name) if isinstance(axis, Mapping) else None
    return [told] if told is not None else [i for i, n in enumerate(tensor.shape) if n == rows]


def _count(tensors: Mapping[str, Tensor], axes: Mapping[str, int | None], option: str) -> int:
    """How many rows or steps an example has."""
    found = {name: tensors[name].shape[axis] for name, axis in axes.items() if axis is not None}
    if len(set(found.values())) > 1:
        raise ExportError(f"the example inputs differ in their length along {option}: {found}")
    return next(iter(found.values()))


def _through(
    call: Call, batch: Mapping[str, int | None], time: Mapping[str, int | None]
) -> dict[str, int | None] | None:
    """The time axes of the outputs, where steps go in and come out one for one."""
    if not call.outputs or any(axis in (None, batch[name]) for name, axis in time.items()):
        return None
    try:
        few, many = (_run(call, batch, time, ROWS, steps) for steps in (STEPS, STEPS + 1))
    except Exception:  # noqa: BLE001 - a module that does not run with other lengths has no time axis
        return None
    return _grown(call, few, many, STEPS)


def _run(call: Call, batch: Mapping[str, int | None], time: Mapping[str, int | None], rows: int, steps: int) -> Named:
    """What comes of the example at another size; ExportError where a state changes its shape."""
    feed = Axes(batch, time, cut=True).sized({**call.sequences, **call.carried}, rows, steps)
    answer = call(feed)
    for name in call.carried:
        if answer[name].shape != feed[name].shape:
            raise ExportError(f"state {name!r} changes its shape")
    return answer


def _grown(call: Call, few: Named, many: Named, count: int) -> dict[str, int | None] | None:
    """The one axis of each output that has ``count`` entries in ``few`` and one more in ``many``."""
    axes: dict[str, int | None] = {}
    for name in call.outputs:
        sizes = list(enumerate(zip(few[name].shape, many[name].shape, strict=False)))
        changed = [(axis, *size) for axis, size in sizes if size[0] != size[1]]
        if len(changed) != 1 or changed[0][1:] != (count, count + 1):
            return None
        axes[name] = changed[0][0]
    return axes


def _chunked(call: Call, axes: Axes, tolerance: float) -> bool:
    """Whether a sequence may be cut: else it is no sequence, but one step with a shape of its own."""
    feed = draw(call, axes, ROWS, STEPS)
    whole = call(feed)
    if not all(tensor.isfinite().all() for tensor in whole.values()):
        raise ExportError(NOT_FINITE)
    parts: list[Named] = []
    for start, end in ((0, 1), (1, STEPS)):
        cut = {name: feed[name].narrow(axes.time[name] or 0, start, end - start) for name in call.sequences}
        states = {name: parts[-1][name] if parts else feed[name] for name in call.carried}
        parts.append(call({**cut, **states}))
    joined = {name: torch.cat([part[name] for part in parts], dim=axes.time[name] or 0) for name in call.outputs}
    joined |= {name: parts[-1][name] for name in call.carried}
    return all(largest_difference(joined[name], whole[name]) <= tolerance for name in call.returned)


def _refuse_doubt(call: Call, batch: Mapping[str, int | None]) -> None:
    """ExportError where inputs, all or one of them, can be longer or shorter, and so may well be sequences.

    Of fractions, an axis is left for the values of one step: [batch, 512] is taken for 512 of them, such as audio.
    """
    inputs = call.sequences
    guesses: list[dict[str, int | None]] = _guesses(call, "auto") if len(inputs) > 1 else []
    guesses += [{name: axis} for name, tensor in inputs.items() for axis in range(tensor.dim())]
    for axes in guesses:
        if not all(_leaves_values(inputs[name], axis, batch[name]) for name, axis in axes.items()):
            continue
        try:
            for steps in (STEPS, STEPS + 1):
                _run(call, batch, axes, ROWS, steps)
        except Exception:  # noqa: BLE001, S112 - a module that does not run with other lengths has no time axis
            continue
        raise ExportError(
            f"the module takes inputs of any length along {axes}, so that they may be sequences: with "
            f"time_axis={axes} each call is one step, of length 1 there; with time_axis=None each call of the "
            "example's length is one step"
        )


def _leaves_values(tensor: Tensor, time: int | None, batch: int | None) -> bool:
    """Whether an axis is no batch axis, and another one is left for values, which whole numbers do without."""
    others = tensor.dim() - 1 - (batch is not None)
    return time != batch and others >= (1 if tensor.is_floating_point() else 0)


def _one_step(call: Call, batch: dict[str, int | None], time: Mapping[str, int | None]) -> Axes:
    """The user names no time axis, or one that the outputs have not: a call is one step, of length 1 there."""
    try:
        _run(call, batch, time, ROWS, 1)
    except Exception as error:  # the module says what is wrong
        raise ExportError(f"the module does not run with one step in a call: {first_line(error)}") from error
    return Axes(batch, {**time, **dict.fromkeys(call.outputs)}, cut=False)


def draw(call: Call, axes: Axes, rows: int, steps: int, seed: int = 0) -> Named:
    """Inputs like the example's, drawn anew, and its states."""
    random, examples = torch.Generator().manual_seed(seed), call.sequences
    sized = axes.sized({**examples, **call.carried}, rows, steps, first=seed)
    return {name: _drawn(t, examples[name], random) if name in examples else t for name, t in sized.items()}


def _drawn(sized: Tensor, example: Tensor, random: torch.Generator) -> Tensor:
    """Values like the example's: whole numbers between its least and its largest, fractions of the sizes in ``sized``.

    Their sign changes only where the example has negative ones: a module may well take logarithms. An example of
    zeros says nothing: fractions are drawn from a standard normal distribution then.
    """
    if example.is_floating_point():
        noise = torch.randn(sized.shape, generator=random, dtype=torch.float64)
        if not example.any():
            return noise.to(example.dtype)
        signs = torch.randint(0, 2, sized.shape, generator=random) * 2 - 1 if (example < 0).any() else 1
        return (sized * torch.exp(noise / 4) * signs).to(example.dtype)
    low, high = (0, 1) if example.dtype == torch.bool else (int(example.min()), int(example.max()))
    return torch.randint(low, high + 1, sized.shape, generator=random).to(example.dtype)


def _stretched(tensor: Tensor, axis: int | None, size: int, first: int) -> Tensor:
    if axis is None:
        return tensor
    return tensor.index_select(axis, (first + torch.arange(size)) % tensor.shape[axis])
