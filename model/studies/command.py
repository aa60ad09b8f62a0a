"""`lstm-serve study gradients|adding`: the options and their help. Must not import torch before a study begins."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model.errors import Interrupted
from model.options import without_folders
from model.studies.options import AddingOptions, GradientOptions, numbers, words

app = typer.Typer(
    name="study", help="Measure what the cells differ in: how far gradients and memory reach.", no_args_is_help=True
)

Out = Annotated[Path, typer.Option(help="Folder of the figure and its numbers.", file_okay=False, show_default=False)]
Cells = Annotated[str, typer.Option(help="Cells, with commas between them: of rnn, gru, lstm, peephole, cifg.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and data.")]


@app.command("gradients")
def measure_gradients(
    out: Out,
    cells: Cells = "rnn,gru,lstm",
    steps: Annotated[int, typer.Option(help="How many steps back to look.")] = 1000,
    hidden: Annotated[int, typer.Option(help="Width of the recurrent layer.")] = 128,
    epochs: Annotated[int, typer.Option(help="Passes over the text of the training in between.")] = 2,
    seed: Seed = 0,
) -> None:
    """Draw how much of a gradient reaches a step k steps back, at initialisation and after training.

    The gradient is that of the loss at the last step, with respect to the state of the recurrent layer. Each cell is
    measured with the initial weights of lstm-serve, with those of PyTorch, and with gates that begin by keeping for up
    to --steps; it is trained as a language model on the documentation that every CPython carries.
    """
    options = GradientOptions(steps, words(cells), hidden, epochs, seed)
    from model.studies.running import run_gradients

    with _told_when_stopped():
        run_gradients(options, out, _command(), Console(stderr=True))


@app.command("adding")
def measure_adding(
    out: Out,
    lags: Annotated[
        str, typer.Option(help="Fewest steps between the last number to be added and the answer, with commas.")
    ] = "50,200,500",
    cells: Cells = "rnn,gru,lstm,peephole,cifg",
    hidden: Annotated[int, typer.Option(help="Width of the recurrent layer.")] = 32,
    updates: Annotated[int, typer.Option(help="Updates of a training at most; it ends when 99 % are solved.")] = 1500,
    batch: Annotated[int, typer.Option(help="Sequences of an update.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.01,
    biases: Annotated[
        str,
        typer.Option(
            help="Gate biases to begin with: lag lets the gates keep for up to the length of the sequences, default is "
            "what `lstm-serve train` begins with."
        ),
    ] = "lag",
    seed: Seed = 0,
) -> None:
    """Train each cell on the adding problem of Hochreiter & Schmidhuber (1997), and draw the share that it solves.

    Sequences have 2 to 2.2 times as many steps as the lag. All cells get the same sequences, width and learning rate.
    """
    options = AddingOptions(numbers("lags", lags), words(cells), hidden, updates, batch, learning_rate, biases, seed)
    from model.studies.running import run_adding

    with _told_when_stopped():
        run_adding(options, out, _command(), Console(stderr=True))


@contextmanager
def _told_when_stopped() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise Interrupted("stopped: nothing was written") from interruption


def _command() -> str:
    """The command line that was typed, without the folders in it."""
    return without_folders(shlex.join(["lstm-serve", *sys.argv[1:]]))
