"""PNG plots beside a checkpoint: losses, and a forecast against the truth. Draws what it is given, and knows no more.

matplotlib's Figure is used without pyplot, which would keep global state and look for a display.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

_BEFORE = 2  # how many lengths of the forecast are shown of what precedes it


def draw_losses(folder: Path, history: Sequence[Sequence[float]], unit: str, dropout: float) -> None:
    """Write losses.png from rows of (step, training loss, validation loss, ...); nothing where there are none.

    Dropout raises the training loss only, so a curve drawn with it says so: else validation would look too good.
    """
    if not history:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [row[0] for row in history]
    axes.plot(steps, [row[1] for row in history], label="training (with dropout)" if dropout else "training")
    axes.plot(steps, [row[2] for row in history], label="validation")
    axes.set(xlabel="step", ylabel=unit, yscale="log")
    _label_logarithm(axes, [loss for row in history for loss in row[1:3]])
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(folder / "losses.png", dpi=120)


def _label_logarithm(axes: Axes, values: Iterable[float]) -> None:
    """Ticks of a logarithmic y axis: at least about four of them labelled, however narrow the range."""
    positive = [value for value in values if value > 0]
    spread = max(positive) / min(positive) if positive else 1.0
    if spread < 10:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
    elif spread < 1e4:  # beyond it, powers of ten are enough
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")  # 1.25, not 1.25 x 10^0


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
