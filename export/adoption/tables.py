"""What adoption found, as tables for people. Decides nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from export.adoption.proving import NOT_FINITE
from service.artifact import Proof, Shape, Signature, Tensor


def ports(signature: Signature) -> Table:
    """Every tensor of the graph: what it is taken for, its shape, and the axes that count rows and steps."""
    shown = _table("what", "input", "output", "type", "shape", "batch\naxis", "time\naxis", "value")
    for spec in signature.inputs:
        shown.add_row(
            "input", escape(spec.name), "", spec.dtype, *_axes(spec.shape, spec.batch_axis, spec.time_axis), ""
        )
    for spec in signature.outputs:
        shown.add_row(
            "output", "", escape(spec.name), spec.dtype, *_axes(spec.shape, spec.batch_axis, spec.time_axis), ""
        )
    for state in signature.states:
        axes = _axes(state.shape, state.batch_axis, None)
        shown.add_row(
            "state",
            escape(state.input),
            escape(state.output),
            state.dtype,
            *axes,
            "given" if state.initial else "zeros",
        )
    for name, value in signature.constants.items():
        shown.add_row("constant", escape(name), "", value.dtype, escape(str(list(value.shape))), "", "", _value(value))
    if signature.lengths is not None:
        shown.add_row("lengths", escape(signature.lengths), "", "", "\\[?]", "0", "", "")
    return shown


def proof(found: Proof, tolerance: float) -> Table:
    """What was shown by running, with the largest differences."""
    title = f"differences in units (1, or the value where that is larger), {tolerance:.0e} allowed"
    shown = _table("shown by running", "", "largest difference", title=title)
    exact = "never" if found.bit_exact_from is None else f"from {found.bit_exact_from} rows on"
    shown.add_row("rows do not influence each other", _yes(found.rows_independent), "")
    shown.add_row("a row in a batch equals the row alone", "yes", f"{found.batch_error:.1e}")
    shown.add_row("the same bits, whatever the batch", exact, "")
    shown.add_row("a sequence may be cut into chunks", _yes(found.chunked), chunk_error(found, ".1e"))
    shown.add_row("an exported state continues elsewhere", _yes(found.continues), "the same bits")
    return shown


def chunk_error(found: Proof, form: str) -> str:
    """The largest difference between chunks and the whole, for people."""
    return "not finite" if found.chunk_error == NOT_FINITE else format(found.chunk_error, form)


def placement(found: Mapping[str, Counter[str]]) -> Table:
    """Which operators run on which execution provider, and how many nodes of each."""
    shown = _table("execution provider", "nodes", "operators")
    for provider, operators in sorted(found.items()):
        names = ", ".join(f"{name} {count}" for name, count in sorted(operators.items()))
        shown.add_row(provider, str(operators.total()), names)
    return shown


def _table(*columns: str, title: str | None = None) -> Table:
    shown = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in shown.columns:
        column.overflow = "fold"
    return shown


def _axes(shape: Shape, batch: int | None, time: int | None) -> Sequence[str]:
    lengths = ", ".join("?" if n is None else str(n) for n in shape)
    return f"\\[{lengths}]", *("-" if axis is None else str(axis) for axis in (batch, time))


def _value(value: Tensor) -> str:
    array = value.array()
    return str(array.ravel()[0]) if array.size and np.all(array == array.ravel()[0]) else "given"


def _yes(holds: bool) -> str:
    return "yes" if holds else "[yellow]no"
