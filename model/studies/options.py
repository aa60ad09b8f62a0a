"""What a user may choose for a study, as plain values. Must not import torch: `--help` works without it."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import ModelError
from model.options import CELLS, flag

_LARGEST_SEED = 2**31 - 1
_LARGEST_TRAINING = 2**26  # lag x sequences x width: about 4 GB in the way back through time


@dataclass(frozen=True)
class AddingOptions:
    """The adding problem: for each lag each cell trains by itself, on the same sequences in the same order.

    `lags` are the fewest steps between the last number to be added and the answer, `updates` the most that a training
    may take, `batch` the sequences of one update. `biases` "lag" begins with gates that keep for about the lag (see
    `model.networks.keep_for`), "default" as every other training here.
    """

    lags: tuple[int, ...]
    cells: tuple[str, ...]
    hidden: int
    updates: int
    batch: int
    learning_rate: float
    biases: str
    seed: int

    def __post_init__(self) -> None:
        _check_cells(self.cells)
        if not self.lags:
            raise ModelError("--lags needs at least one number of steps")
        for lag in self.lags:
            _check("lags", lag, 10, 5000)  # one of the first ten pairs is marked, all of them before the lag begins
        _check("hidden", self.hidden, 1, 1024)
        _check("updates", self.updates, 1, 1_000_000)
        _check("batch", self.batch, 1, 1024)
        _check("seed", self.seed, 0, _LARGEST_SEED)
        if max(self.lags) * self.batch * self.hidden > _LARGEST_TRAINING:
            raise ModelError("the largest of --lags, times --batch, times --hidden needs too much memory: choose less")
        if not 0 < self.learning_rate <= 1:
            raise ModelError(f"--learning-rate must be above 0 and at most 1, not {self.learning_rate}")
        if self.biases not in ("lag", "default"):
            raise ModelError(f"--biases must be lag or default, not {self.biases}")


@dataclass(frozen=True)
class GradientOptions:
    """How far gradients reach: up to `steps` back, before and after `epochs` passes over the text."""

    steps: int
    cells: tuple[str, ...]
    hidden: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        _check_cells(self.cells)
        _check("steps", self.steps, 10, 2000)
        _check("hidden", self.hidden, 1, 1024)
        _check("epochs", self.epochs, 1, 100)
        _check("seed", self.seed, 0, _LARGEST_SEED)


def words(text: str) -> tuple[str, ...]:
    """The parts of `a,b,c`, each once, in their order."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def numbers(name: str, text: str) -> tuple[int, ...]:
    """The whole numbers of `50,200`; ModelError names the option where one is none."""
    try:
        return tuple(int(word) for word in words(text))
    except ValueError as error:
        raise ModelError(f"{flag(name)} must be whole numbers with commas between them, not {text!r}") from error


def _check_cells(cells: Sequence[str]) -> None:
    if not cells or set(cells) - set(CELLS):
        wrong = next((cell for cell in cells if cell not in CELLS), "")
        raise ModelError(f"--cells must be of {', '.join(CELLS)}, with commas between them, not {wrong!r}")


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ModelError(f"{flag(name)} must be from {least:,} to {most:,}, not {value:,}")
