"""Which axis counts rows and which counts steps: by the names of open axes, and by what varies when the graph runs.

Exporters name open axes as they please, or each tensor's own way, so that a choice by names is a guess until the
graph has run with different numbers of rows and steps, and all shapes that came back agree.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from export.adoption.parts import Parts, State
from export.adoption.ports import Dim, Port
from export.adoption.wishes import ALL, Axes, Wishes
from export.errors import ExportError

# Rows and steps to run with; what a graph refuses may still be a graph of one row or of one step.
SIZES = ((3, 5), (1, 5), (3, 1), (1, 1))
_ROWS = {"batch", "b", "n", "bs", "rows", "bsz", "batchsize"}
_STEPS = {"time", "t", "seq", "sequence", "length", "len", "steps", "step", "frames", "l", "seqlen"}

# The lengths of all axes of all inputs -> the shape of every output; ExportError where the graph cannot run so.
Run = Callable[[Mapping[str, tuple[int, ...]], int], Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Places:
    """Where a tensor counts rows and steps; None: nowhere."""

    batch: int | None
    time: int | None


@dataclass(frozen=True)
class Layout:
    """The places of every tensor, the shapes of what is answered, and how many rows and steps ran: 1, or several.

    ``refused`` says what came of more rows and steps, where those failed.
    """

    places: Mapping[str, Places]
    shapes: Mapping[str, tuple[int, ...]]
    rows: int
    steps: int
    refused: str | None = None


def find_layout(parts: Parts, wishes: Wishes, run: Run) -> Layout:
    """The first reading of the axes with which the graph runs and hands back its states in their own shapes.

    Raises:
        ExportError: there is none, or a batch axis of a fixed length above 1.
    """
    symbol = _batch_symbol(parts)
    states = {s.before.name: Places(_state_axis(s, symbol, wishes), None) for s in parts.states}
    rowed = any(p.batch is not None for p in states.values())
    if not rowed and wishes.batch_axes.get(ALL, 0) is not None:
        _refuse_frozen(parts)
        states = {s.before.name: Places(_one(s.shape, None), None) for s in parts.states}
    options = [_options(port, symbol if rowed else None, rowed, wishes) for port in parts.sequences]
    first: ExportError | None = None
    for rows, steps in SIZES if rowed else ((1, 5), (1, 1)):
        for choice in itertools.islice(itertools.product(*options), 64):
            places = states | dict(zip((p.name for p in parts.sequences), choice, strict=True))
            try:
                found = _tried(parts, wishes, run, places, rows, steps)
                return replace(found, refused=str(first)) if first else found
            except ExportError as error:
                first = first or error
    loose = [p.name for p in parts.sequences if len(p.open) > 1 and p.name not in wishes.shapes]
    if first is not None and loose:
        raise ExportError(
            f"{first} ({UNROLLED}; or give an open axis that takes one length only: --shape {loose[0]}=..., ? for the "
            "others)"
        )
    raise first or ExportError("no reading of the axes was tried")


def _batch_symbol(parts: Parts) -> str | None:
    """The name of an open axis that states and sequences share, and that does not speak of time."""
    tensors = [s.shape for s in parts.states] + [p.shape or () for p in parts.sequences]
    names = {n for s in parts.states for n in s.shape if isinstance(n, str) and not _speaks(n, _STEPS)}
    counts = {n: sum(n in shape for shape in tensors) for n in sorted(names)}
    shared = [n for n in counts if any(n in (p.shape or ()) for p in parts.sequences)]
    return max(shared, key=lambda n: (_speaks(n, _ROWS), counts[n]), default=None)


def _speaks(name: Dim, words: set[str]) -> bool:
    return isinstance(name, str) and any(w in words for w in re.findall(r"[a-z]+", name.lower()))


def _wish(port: Port, axes: Axes, option: str) -> tuple[bool, int | None]:
    """Whether the user says where the axis of a sequence is, and where."""
    name = port.name if port.name in axes else ALL
    if name not in axes:
        return False, None
    axis = axes[name]
    if axis is not None and port.shape is not None and not 0 <= axis < len(port.shape):
        raise ExportError(f"--{option} {axis} is none of the {len(port.shape)} axes of {port}")
    return True, axis


def _state_axis(state: State, symbol: str | None, wishes: Wishes) -> int | None:
    for port in (state.before, state.after):
        if port.name in wishes.batch_axes:
            return _checked_open(state, _wish(port, wishes.batch_axes, "batch-axis")[1])
    if wishes.batch_axes.get(ALL, 0) is None:
        return _checked_open(state, None)
    named = [a for a in state.open if symbol is not None and state.shape[a] == symbol]
    spoken = [a for a in state.open if _speaks(state.shape[a], _ROWS)]
    if not state.open:
        return None
    if not named and not spoken and len(state.open) > 1:
        raise ExportError(_open_state(state, state.open[1]))
    return _checked_open(state, (named or spoken or state.open)[0])


def _checked_open(state: State, batch: int | None) -> int | None:
    for axis in state.open:
        if axis != batch:
            raise ExportError(_open_state(state, axis))
    return batch


def _open_state(state: State, axis: int) -> str:
    name = state.before.name
    return (
        f"the state {state.before} leaves the length of axis {axis} open: give its first value with "
        f"--initial {name}=FILE.npy, its shape with --shape {name}=..., or say --batch-axis {name}=AXIS"
    )


def _refuse_frozen(parts: Parts) -> None:
    """ExportError where every tensor has the same fixed length, above 1, on its first or second axis."""
    shapes = [s.shape for s in parts.states] + [p.shape or () for p in parts.sequences]
    if any(len(shape) < 2 for shape in shapes):
        return
    for n in sorted(set.intersection(*({d for d in shape[:2] if isinstance(d, int)} for shape in shapes)) - {1}):
        raise ExportError(
            f"the batch axis is frozen at {n}: re-export with a dynamic batch axis ({HOW}), or with a batch of 1; "
            "where no axis counts rows, say --batch-axis none"
        )


FIXED = "the exporter has probably unrolled the steps of the example and fixed their number"
UNROLLED = f"{FIXED}: export again with an open time axis, or use export.from_torch"
HOW = "torch.onnx.export takes dynamic_shapes or dynamic_axes"


def _one(shape: Sequence[Dim], time: int | None) -> int | None:
    """The first axis of the fixed length 1, of two axes or more: where a frozen batch stands."""
    ones = [axis for axis, n in enumerate(shape) if n == 1 and axis != time]
    return ones[0] if ones and len(shape) > 1 else None


def _options(port: Port, symbol: str | None, rowed: bool, wishes: Wishes) -> list[Places]:
    """Readings of a sequence, the likeliest first."""
    if port.shape is None:
        raise ExportError(f"the input {port.name!r} has no shape in the graph: give it with --shape {port.name}=...")
    given, axis = _wish(port, wishes.batch_axes, "batch-axis")
    if given:
        batches = [axis]
    elif symbol in port.shape and symbol is not None:
        batches = [port.shape.index(symbol)]
    else:
        batches = list(_likely(port, rowed))
    timed, time = _wish(port, wishes.time_axes, "time-axis")
    return [_read(port, batch, given, timed, time) for batch in batches]


def _likely(port: Port, rowed: bool) -> Iterator[int | None]:
    shape = port.shape or ()
    if rowed or len(port.open) > 1 or (port.open == [0] and len(shape) > 1 and _speaks(shape[0], _ROWS - {"n"})):
        yield from sorted(port.open, key=lambda a: (not _speaks(shape[a], _ROWS), _speaks(shape[a], _STEPS), a))
    if len(port.open) < 2:
        yield None


def _read(port: Port, batch: int | None, given: bool, timed: bool, time: int | None) -> Places:
    shape = port.shape or ()
    rest = [axis for axis in port.open if axis != batch]
    if not timed and rest:
        spoken = [axis for axis in rest if _speaks(shape[axis], _STEPS)]
        time = (spoken or rest)[0]
    if any(axis != time for axis in rest):
        axis = next(axis for axis in rest if axis != time)
        raise ExportError(
            f"the input {port} leaves the length of axis {axis} open, which counts neither rows nor steps: "
            f"give it with --shape {port.name}=... (? for an open axis)"
        )
    batch = _one(shape, time) if batch is None and not given else batch
    return Places(batch, time if timed or time is not None else _single_step(shape, batch))


def _single_step(shape: Sequence[int | Dim], batch: int | None) -> int | None:
    """An axis of the fixed length 1 among the first two, of three or more: where a frozen time stands."""
    ones = [axis for axis in (0, 1) if len(shape) > 2 and shape[axis] == 1 and axis != batch]
    return ones[0] if ones else None


def _tried(parts: Parts, wishes: Wishes, run: Run, places: dict[str, Places], rows: int, steps: int) -> Layout:
    base = _run(parts, run, places, rows, steps)
    more = _run(parts, run, places, rows + 1, steps) if rows > 1 else base
    longer = _run(parts, run, places, rows, steps + 2) if steps > 1 else base
    answers = {p.name: _answer(p, wishes, base[p.name], more[p.name], longer[p.name], places) for p in parts.answers}
    for name, place in answers.items():
        shape = base[name]
        if place.time is not None and steps > 1:
            for held, went in ((shape[place.time], steps), (longer[name][place.time], steps + 2)):
                if held != went:
                    raise ExportError(f"the output {name!r} holds {held} steps where {went} went in")
        if place.batch is not None and rows > 1 and shape[place.batch] != rows:
            raise ExportError(f"the output {name!r} holds {shape[place.batch]} rows where {rows} went in")
    return Layout(places | answers, base, rows, steps)


def _run(parts: Parts, run: Run, places: Mapping[str, Places], rows: int, steps: int) -> Mapping[str, tuple[int, ...]]:
    fed = {p.name: _lengths_of(p.shape or (), places[p.name], rows, steps) for p in parts.sequences}
    fed |= {s.before.name: _lengths_of(s.shape, places[s.before.name], rows, 1) for s in parts.states}
    if parts.lengths is not None:
        fed[parts.lengths.name] = (rows,)
    shapes = run(fed, steps)
    for state in parts.states:
        if shapes[state.after.name] != fed[state.before.name]:
            raise ExportError(
                f"the state {state.before.name!r} goes in as {list(fed[state.before.name])} and comes back, as "
                f"{state.after.name!r}, as {list(shapes[state.after.name])}: a state keeps its shape"
            )
    return shapes


def _lengths_of(shape: Sequence[Dim], place: Places, rows: int, steps: int) -> tuple[int, ...]:
    open_ones = {place.batch: rows, place.time: steps}
    return tuple(n if isinstance(n, int) else open_ones[axis] for axis, n in enumerate(shape))


def _answer(
    port: Port,
    wishes: Wishes,
    base: tuple[int, ...],
    more: tuple[int, ...],
    longer: tuple[int, ...],
    places: Mapping[str, Places],
) -> Places:
    """The places of an output: the axes that grow with the rows, and with the steps."""
    ranked = Port(port.name, port.dtype, base)
    time = _grown(port, base, longer, "steps")
    batch = _grown(port, base, more, "rows")
    if batch is None and more is base and any(p.batch is not None for p in places.values()):
        batch = _one(base, time)
    if time is None:
        time = _single_step(base, batch)
    if port.name in wishes.batch_axes:
        batch = _wish(ranked, wishes.batch_axes, "batch-axis")[1]
    if port.name in wishes.time_axes:
        time = _wish(ranked, wishes.time_axes, "time-axis")[1]
    return Places(batch, time)


def _grown(port: Port, base: tuple[int, ...], other: tuple[int, ...], what: str) -> int | None:
    if len(base) != len(other):
        raise ExportError(f"the output {port.name!r} has another number of axes for other {what}")
    axes = [axis for axis, (a, b) in enumerate(zip(base, other, strict=True)) if a != b]
    if len(axes) > 1:
        raise ExportError(f"the output {port.name!r} has several axes that grow with the number of {what}")
    return axes[0] if axes else None
