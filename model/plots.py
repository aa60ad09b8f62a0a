"""PNG plots beside a checkpoint: losses, and a forecast against the truth. Draws what it is given, and knows no more.

matplotlib's Figure is used without pyplot, which would keep global state and look for a display.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

_BEFORE = 2  # how many lengths of the forecast are shown of what precedes it


def draw_losses(folder: Path, history: Sequence[Sequence[float]], unit: str) -> None:
    """Write losses.png from rows of (step, training loss, validation loss, ...); nothing where there are none."""
    if not history:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [row[0] for row in history]
    axes.plot(steps, [row[1] for row in history], label="training")
    axes.plot(steps, [row[2] for row in history], label="validation")
    axes.set(xlabel="step", ylabel=unit, yscale="log")
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks("{x:g}")  # 1.25, not 1.25 x 10^0
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(folder / "losses.png", dpi=120)


def draw_forecast(folder: Path, known: Tensor, truth: Tensor, forecast: Tensor, name: str) -> None:
    """Write forecast.png: the end of `known` [time], then `truth` and the closed-loop `forecast`, each [steps]."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = known[-_BEFORE * len(truth) :].tolist()
    axes.plot(range(-len(shown), 0), shown, color="grey", label="known")
    axes.plot(range(len(truth)), truth.tolist(), color="black", label="truth")
    axes.plot(range(len(truth)), forecast.tolist(), color="tab:red", linestyle="--", label="closed-loop forecast")
    axes.set(xlabel="steps from the last known value", ylabel=name)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(folder / "forecast.png", dpi=120)
