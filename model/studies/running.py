"""One study from options to its files: a figure, and a JSON document with the figures in it and how they were made.

Owns the order of the runs, what is shown meanwhile, and the documents. Must not know the command line.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from model.cells import CELLS
from model.errors import ModelError
from model.files import write_bytes
from model.studies import adding, gradients
from model.studies.figures import draw_adding, draw_gradients
from model.studies.options import AddingOptions, GradientOptions
from model.studies.starts import Start
from model.training import versions

_TOLD_PER_DECADE = 10  # of the steps back that the document tells; the figure shows all of them


def run_adding(options: AddingOptions, folder: Path, command: str, console: Console) -> None:
    """Write adding.png and adding.json; one line per cell and lag is shown."""
    _prepare(folder)
    runs = [(lag, cell) for lag in options.lags for cell in options.cells]
    attempts = []
    with _bar(console) as show:
        for number, (lag, cell) in enumerate(runs):

            def report(updates: int, share: float, number: int = number, label: str = f"lag {lag}, {cell}") -> None:
                done = (number + updates / options.updates) / len(runs)
                show(done, f"{label}: {updates} updates, {share:.1%} solved")

            attempt = adding.attempt(cell, lag, options, report)
            attempts.append(attempt)
            show((number + 1) / len(runs), "")
            _say(
                console,
                f"lag {lag}, {cell}: {attempt.share_solved:.1%} of fresh sequences solved after {attempt.updates} "
                f"updates, mean squared error {attempt.mean_squared_error:.2g}, {attempt.cpu_s:.0f} s",
            )
    found = [asdict(attempt) | {"updates": attempt.updates} for attempt in attempts]
    draw_adding(folder / "adding.png", attempts)
    _write(folder / "adding.json", command, asdict(options), {"attempts": found})
    _say(console, f"wrote {folder / 'adding.png'} and adding.json")


def run_gradients(options: GradientOptions, folder: Path, command: str, console: Console) -> None:
    """Write gradients.png and gradients.json; one line per curve is shown."""
    _prepare(folder)
    starts = {cell: [start for start in get_args(Start) if CELLS[cell].lasting or start != "lag"] for cell in CELLS}
    runs = [(start, cell) for cell in options.cells for start in starts[cell]]  # without gates, none can begin open
    curves: list[gradients.Reach] = []
    with _bar(console) as show:
        for number, (start, cell) in enumerate(runs):

            def report(done: float, number: int = number, label: str = f"{cell}, weights: {start}") -> None:
                show((number + done) / len(runs), label)

            pair = gradients.study(cell, start, options, report)
            curves += pair
            for curve in pair:
                when = "after training" if curve.trained else "at initialisation"
                reach = f"{curve.shares[-1]:.2g} of the gradient reaches {options.steps} steps back"
                _say(console, f"{cell}, weights: {start}, {when}: {reach}, validation {curve.loss:.3f} nats/char")
    told = _told(options.steps)
    found = [asdict(curve) | {"shares": [float(f"{curve.shares[k]:.4g}") for k in told]} for curve in curves]
    draw_gradients(folder / "gradients.png", curves)
    _write(folder / "gradients.json", command, asdict(options), {"steps_back": told, "curves": found})
    _say(console, f"wrote {folder / 'gradients.png'} and gradients.json")


def _told(steps: int) -> list[int]:
    """0, and about ten steps of each decade up to `steps`."""
    powers = range(_TOLD_PER_DECADE * len(str(steps)))
    return sorted({0, steps, *(k for k in (round(10 ** (p / _TOLD_PER_DECADE)) for p in powers) if k < steps)})


def _prepare(folder: Path) -> None:
    """Find out before the work, not after it, whether its results can be kept; matrices this small want one thread."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"--out {folder} cannot be made: {error.strerror}") from error
    torch.set_num_threads(1)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[float, str], None]]:
    """A progress bar; yields the function that moves it to a share of the whole, with a few words."""
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[news]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=1.0, news="")
        yield lambda done, news: progress.update(task, completed=done, news=news)


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _write(path: Path, command: str, options: Mapping[str, Any], found: Mapping[str, Sequence[Any]]) -> None:
    document = {
        "command": command,
        "options": options,
        "versions": versions(),
        "cpu_seconds": round(time.process_time(), 1),
        **found,
    }
    write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
