"""PNG figures of the studies. Draws what it is given, and knows no more; colours are those of Okabe & Ito (2008).

matplotlib's Figure is used without pyplot, which would keep global state and look for a display.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from model.files import write_bytes
from model.studies.adding import CHANCE, Attempt
from model.studies.gradients import Reach
from model.studies.starts import Start

# Told apart also by those who do not see red and green as others do, and by their markers where colours fail.
COLOURS = {"rnn": "#D55E00", "gru": "#009E73", "lstm": "#0072B2", "peephole": "#CC79A7", "cifg": "#E69F00"}
MARKERS = {"rnn": "s", "gru": "^", "lstm": "o", "peephole": "D", "cifg": "v"}
NAMES = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM", "peephole": "LSTM with peepholes", "cifg": "LSTM, coupled gates"}
_FAINTEST = 1e-20  # what is below is out of the figure: beside other gradients float32 has lost it long before
_STARTS: dict[Start, tuple[Literal["solid", "dashed", "dotted"], str]] = {
    "ours": ("solid", "as lstm-serve begins"),
    "torch": ("dashed", "as PyTorch begins"),
    "lag": ("dotted", "gates begin open"),
}


def draw_adding(path: Path, attempts: Sequence[Attempt]) -> None:
    """Write the share of solved sequences over the updates, one panel for each lag."""
    lags = list(dict.fromkeys(attempt.lag for attempt in attempts))
    cells = list(dict.fromkeys(attempt.cell for attempt in attempts))
    figure = Figure(figsize=(1.5 + 3.5 * len(lags), 4.2), layout="constrained")
    panels = figure.subplots(1, len(lags), sharey=True, squeeze=False)[0]
    for axes, lag in zip(panels, lags, strict=True):
        for attempt in attempts:
            if attempt.lag == lag:
                updates, shares = zip(*attempt.curve, strict=True)
                axes.plot(updates, shares, color=COLOURS[attempt.cell], linewidth=1.6)
                axes.plot(
                    updates[-1], shares[-1], MARKERS[attempt.cell], color=COLOURS[attempt.cell], markersize=7,
                    clip_on=False, markeredgecolor="white", zorder=3,
                )  # fmt: skip
        axes.axhline(CHANCE, color="grey", linewidth=1, linestyle="dotted")
        axes.set(title=f"lag {lag}", xlabel="updates", ylim=(0, 1.04))
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("fresh sequences solved")
    handles = [
        Line2D([], [], color=COLOURS[cell], marker=MARKERS[cell], markeredgecolor="white", markersize=7)
        for cell in cells
    ]
    handles.append(Line2D([], [], color="grey", linewidth=1, linestyle="dotted"))
    labels = [*(NAMES[cell] for cell in cells), "always answering 0.5"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(lags), frameon=False)
    _save(figure, path)


def draw_gradients(path: Path, curves: Sequence[Reach]) -> None:
    """Write the norms over the steps back, on a logarithmic axis: one panel before training, one after it."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, trained in zip(panels, (False, True), strict=True):
        for curve in curves:
            if curve.trained == trained:
                # A logarithm has no zero: the line ends where float64 does.
                shares = [share if share > 0 else math.nan for share in curve.shares]
                axes.plot(shares, color=COLOURS[curve.cell], linestyle=_STARTS[curve.start][0], linewidth=1.6)
        axes.set(
            title="after training" if trained else "at initialisation",
            xlabel="steps back, k",
            xscale="log",
            xlim=(1, len(curves[0].shares) - 1),
            yscale="log",
            ylim=(_FAINTEST, 10),
        )
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_locator(LogLocator(numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("gradient norm, as a share of that at k = 0")
    cells = list(dict.fromkeys(curve.cell for curve in curves))
    starts = [start for start in _STARTS if any(curve.start == start for curve in curves)]
    handles = [Line2D([], [], color=COLOURS[cell]) for cell in cells]
    handles += [Line2D([], [], color="black", linestyle=_STARTS[start][0]) for start in starts]
    labels = [NAMES[cell] for cell in cells] + [_STARTS[start][1] for start in starts]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path, content.getvalue())
