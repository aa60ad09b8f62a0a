"""What the gate found, as tables for people. Decides nothing."""

from rich import box
from rich.console import Console
from rich.table import Table

from export.parity import Difference, Report
from service.artifact import Signature

MAX_NAMED = 6  # states
NOT_EXACT = "rows are not bit-exact in this engine: it will neither cut nor fold chunks"


def table(report: Report) -> Table:
    """The largest errors of each way of running, in units, and whether rows came to the same bits as alone."""
    shown = Table(
        title=f"{report.sequences} sequences, {report.steps} steps: largest errors, {report.tolerance:.0e} allowed",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("run as", no_wrap=True)
    pytorch = report.comparisons[0].pytorch is not None
    for reference in (["PyTorch"] if pytorch else []) + ["alone"]:
        shown.add_column(f"outputs\nvs {reference}", justify="right", no_wrap=True)
        shown.add_column(f"states\nvs {reference}", justify="right", no_wrap=True)
    shown.add_column("same\nbits", no_wrap=True)
    for comparison in report.comparisons:
        found = ([comparison.pytorch] if comparison.pytorch else []) + [comparison.alone]
        cells = [cell for difference in found for cell in _cells(difference, report.tolerance)]
        shown.add_row(comparison.way, *cells, "yes" if comparison.identical else "[yellow]no")
    return shown


def heading(signature: Signature) -> str:
    """One line: task, cell, what goes in and out, states, or how many where they are many."""
    parts = [signature.task, *([signature.cell] if signature.cell else [])]
    if signature.vocabulary:
        parts.append(f"{len(signature.vocabulary)} symbols")
    if signature.features:
        parts.append("features " + ", ".join(signature.features))
    if len(signature.states) > MAX_NAMED:
        return ", ".join([*parts, f"{len(signature.states)} states"])
    return ", ".join([*parts, *(f"state {state.input} {list(state.row_shape)}" for state in signature.states)])


def _cells(difference: Difference, tolerance: float) -> tuple[str, str]:
    outputs, states = (
        f"{error:.1e}" if error <= tolerance else f"[red]{error:.1e}"
        for error in (difference.outputs, difference.states)
    )
    return outputs, states


def bits(report: Report) -> str:
    """One sentence on whether rows keep their bits, and what the engine does for it."""
    if not report.bit_exact:
        return NOT_EXACT
    if report.min_rows == 1:
        return "rows are bit-exact in this engine, whatever the batch"
    return f"rows are bit-exact in this engine, whatever the batch, which it fills up to {report.min_rows} rows"


def say(console: Console, sentence: str) -> None:
    """One sentence on a line of its own, as it is: not folded, no markup."""
    console.print(sentence, soft_wrap=True, markup=False, highlight=False)
