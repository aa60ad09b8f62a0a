"""What a user sees of a training: a progress bar, one line per validation, its figures in the end. Changes nothing."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from model.trainer import Trainer

_WHOLE = 1000  # parts of the bar
_UNITS = {"language": "nats/char", "forecast": "x the squared error of repeating the last value"}

# What is told of the final figures: a line for each group of them, under the first of its names.
_FIGURES = {
    "validation_nats_per_character": "validation: {validation_nats_per_character} nats per character "
    "({validation_bits_per_character} bits)",
    "validation_mse": "validation, one step ahead: RMSE {validation_rmse} (MSE {validation_mse}); "
    "repeating the last value has RMSE {validation_rmse_of_repeating}",
    "closed_loop_steps": "closed loop: the last {closed_loop_steps} steps forecast from what precedes them, each "
    "prediction fed back as the next input: RMSE {closed_loop_rmse}",
    "test_one_step_mse": "test waves, one step ahead: MSE {test_one_step_mse}",
    "test_closed_loop_steps": "test waves, closed loop: {test_closed_loop_steps} steps, each prediction fed back as "
    "the next input: RMSE {test_closed_loop_rmse}, one for each wave",
}


class Display:
    """A context manager whose `report` is called after every step."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        self._trainer = trainer
        self._unit = _UNITS[trainer.network.config.task]
        self._first_step, self._first_s = trainer.standing.step, trainer.standing.elapsed_s
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[news]}"),
            console=console,
        )
        self._task = self._progress.add_task("training", total=_WHOLE, completed=round(_WHOLE * trainer.done), news="")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, validated: bool) -> None:
        """Move the bar; after a validation, also leave a line."""
        standing, done = self._trainer.standing, self._trainer.done
        seconds = standing.elapsed_s - self._first_s
        pace = (standing.step - self._first_step) / seconds if seconds > 0 else 0.0
        left = standing.elapsed_s * (1 - done) / done if done > 0 else 0.0
        if standing.loss_count:
            loss = standing.loss_sum / standing.loss_count
            news = f"loss {loss:.4g} · {pace:.1f} steps/s · {_clock(left)} left"
            self._progress.update(self._task, completed=round(_WHOLE * done), news=news)
        if validated:
            self._progress.update(self._task, completed=round(_WHOLE * done))
            self._progress.console.print(self._line(pace, left), highlight=False, soft_wrap=True)

    def _line(self, pace: float, left: float) -> str:
        step, loss, validation, _ = self._trainer.standing.history[-1]
        best = " (best)" if self._trainer.standing.best_step == step else ""
        return (
            f"step {step:.0f}: loss {loss:.4g}, validation {validation:.4g} {self._unit}{best}, "
            f"{pace:.1f} steps/s, {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """The final figures as a user reads them, a line for each group that a task has."""
    figures = {name: _figure(value) for name, value in metrics.items()}
    return [line.format(**figures) for first, line in _FIGURES.items() if first in figures]


def _figure(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_figure(item) for item in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)
