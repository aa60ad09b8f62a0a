"""From options to a task: the data read, the network built, and what to measure and to draw in the end.

Owns the joining of data, networks and losses. Must not know the training loop or the files of a checkpoint.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import plots, sine, table, text
from model.errors import DataError
from model.evaluation import closed_loop, forecast_metrics, language_metrics, wave_metrics
from model.networks import ForecastNetwork, Network, NetworkConfig, build, keep_for
from model.objectives import ForecastLoss, language_loss, typical_change
from model.options import Kind, Options
from model.streams import cut, cut_all, parallel
from model.trainer import Material

# Enough to keep the cores busy; each stream reads its first characters without a context.
_VALIDATION_STREAMS = 16
_FEWEST_ROWS = 50
_LONGEST_FORECAST = 200  # steps drawn where no --rollout says what is of interest


class Task(ABC):
    """A network to train, its material, and the final measures."""

    network: Network
    material: Material
    source: dict[str, Any]  # where the data comes from; a resume compares it

    @abstractmethod
    def finish(self, folder: Path) -> dict[str, Any]:
        """Measure the network with its final weights, in float32, and draw its plots into the folder."""


def prepare(options: Options) -> Task:
    """Read the data and build the network; its initial weights follow from the seed. Raises ModelError."""
    torch.manual_seed(options.seed)
    kinds: dict[Kind, Callable[[Options], Task]] = {"language": LanguageTask, "sine": SineTask, "csv": TableTask}
    task = kinds[options.kind](options)
    if options.memory_steps:
        keep_for(task.network, options.memory_steps)
    return task


class LanguageTask(Task):
    """The next character of a text."""

    def __init__(self, options: Options) -> None:
        content, name = text.read_text(Path(options.text) if options.text else None)
        corpus = text.prepare(content, name, options.validation)
        config = NetworkConfig(
            task="language",
            layers=options.layers,
            hidden=options.hidden,
            dropout=options.dropout,
            cell=options.cell,
            vocabulary=corpus.vocabulary,
            embedding=options.embedding,
        )
        self.network = build(config)
        # Short texts get fewer streams: each must be long enough for its state to mean something.
        streams = max(1, min(options.batch, len(corpus.train) // (2 * options.sequence)))
        validation = cut_all(corpus.validation, _VALIDATION_STREAMS)
        self.material = Material(cut(corpus.train, streams), validation, language_loss)
        self.source = corpus.description

    def finish(self, folder: Path) -> dict[str, Any]:
        """Cross-entropy per character on the validation split."""
        return language_metrics(self.network, self.material.validation)


class SineTask(Task):
    """The classical sine exercise."""

    def __init__(self, options: Options) -> None:
        self._waves = sine.make_waves()
        train, validation = self._waves.train, self._waves.validation
        self.network = _forecaster(options, (sine.FEATURE,), train)
        loss = ForecastLoss(typical_change(train), options.rollout)
        self.material = Material(parallel(train), parallel(validation), loss)
        self.source = {
            "source": "sine exercise",
            "period": sine.PERIOD,
            "length": sine.LENGTH,
            "train_waves": len(train),
            "validation_waves": len(validation),
            "test_waves": len(self._waves.test),
        }

    def finish(self, folder: Path) -> dict[str, Any]:
        """Continue the test waves alone for as long as they were known."""
        known, truth = self._waves.test[:, : sine.LENGTH], self._waves.test[:, sine.LENGTH :]
        forecast = closed_loop(self.network, known, truth.shape[1])
        plots.draw_forecast(folder, known[0, :, 0], truth[0, :, 0], forecast[0, :, 0], sine.FEATURE)
        return wave_metrics(self.network, parallel(known), truth, forecast)


class TableTask(Task):
    """The next row of a CSV file: earlier rows train, the last ones validate."""

    def __init__(self, options: Options) -> None:
        path = Path(options.csv or "")
        content = table.read_table(path, options.target, options.features, options.time)
        rows = torch.tensor(content.rows, dtype=torch.float64).float()  # [rows, features]
        if len(rows) < _FEWEST_ROWS:
            raise DataError(f"{path} has {len(rows)} rows, and at least {_FEWEST_ROWS} are needed")
        first = round(len(rows) * (1 - options.validation))
        if not 2 <= first <= len(rows) - 2:
            raise DataError(f"--validation {options.validation} leaves a split of {path} with fewer than 2 rows")
        train, self._validation = rows[:first], rows[first:]
        self.network = _forecaster(options, content.features, train)
        streams = max(1, min(options.batch, len(train) // (2 * options.sequence)))
        loss = ForecastLoss(typical_change(train[None]), options.rollout)
        self.material = Material(cut(train, streams), parallel(self._validation[None]), loss)
        self._forecast_steps = options.rollout or _LONGEST_FORECAST
        self.source = {
            "source": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "target": options.target,
            "train_rows": len(train),
            "validation_rows": len(self._validation),
        }

    def finish(self, folder: Path) -> dict[str, Any]:
        """One-step error on the validation split; the plot forecasts its end from what precedes it."""
        steps = max(1, min(self._forecast_steps, len(self._validation) // 4))
        known, truth = self._validation[:-steps], self._validation[-steps:]
        forecast = closed_loop(self.network, known[None], steps)[0]  # [steps, features]
        plots.draw_forecast(folder, known[:, 0], truth[:, 0], forecast[:, 0], self.network.config.features[0])
        metrics = forecast_metrics(self.network, self.material.validation)
        rmse = (forecast - truth)[:, 0].double().square().mean().sqrt().item()
        return metrics | {"closed_loop_steps": steps, "closed_loop_rmse": rmse}


def _forecaster(options: Options, features: tuple[str, ...], train: Tensor) -> ForecastNetwork:
    config = NetworkConfig(
        task="forecast",
        layers=options.layers,
        hidden=options.hidden,
        dropout=options.dropout,
        cell=options.cell,
        features=features,
    )
    network = ForecastNetwork(config)
    network.fit_scaling(train)
    return network
