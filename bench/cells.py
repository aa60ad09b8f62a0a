"""The five cells side by side: as many recurrent parameters, the same data, the same CPU time of training, both tasks.

    python -m bench.cells --out docs [--seconds 120] [--seed 0]

Writes cells.json into the folder, and the tables into its cells.md, between two marks. Each network is trained through
the trainer of `lstm-serve train`, exported through its gate, and timed through the service's engine. Machines are
shared and their speed swings: all times are CPU times of one thread, and the cells of a task take turns of a second,
in training as in timing, so that what disturbs one disturbs all.
"""

import bench.extra  # isort: skip  # noqa: F401 - before what it looks for
import argparse
import json
import re
import shlex
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from export.freezing import export_checkpoint
from model import checkpoint
from model.cells import CELLS
from model.options import Options, without_folders
from model.tasks import prepare
from model.trainer import Trainer
from model.training import versions
from service.engine.probe import probe, random_chunk
from service.engine.runtime import load_engine
from service.settings import load_settings

TURN_S = 1.0
VALIDATIONS = 20  # per training; the best weights of them are kept
REPEATS, BATCH = 25, 64
STEPS = {1: 200, BATCH: 30}  # timed at once, by rows
SCALE = {"language": "validation, nats per character", "forecast": "RMSE one step ahead | RMSE alone for 1,000 steps"}
MARKS = ("<!-- table: python -m bench.cells writes it -->", "<!-- end of the table -->")

# `hidden` is that of the LSTM; the other cells get the width that brings them to the same number of parameters.
LANGUAGE = Options(
    kind="language", hidden=128, layers=2, dropout=0.2, embedding=64, seed=0, epochs=10**6, batch=32, sequence=64,
    learning_rate=0.004, weight_decay=0.01, patience=10**6, precision="float32",
)  # fmt: skip
FORECAST = Options(
    kind="sine", hidden=64, layers=2, dropout=0.0, seed=0, epochs=10**6, batch=32, sequence=300, rollout=200,
    learning_rate=0.003, weight_decay=0.0, patience=10**6, precision="float32",
)  # fmt: skip


@dataclass
class Row:
    """What is measured of one cell at one task; times are of one session's step, CPU, in microseconds."""

    task: str
    cell: str
    hidden: int
    recurrent_parameters: int
    updates: int
    losses: tuple[float, ...]
    artifact_bytes: int = 0
    state_bytes: int = 0
    least_rows: int = 0  # to so many rows the engine fills up, to be bit-exact: what "alone" costs depends on it
    alone_us: float = float("inf")
    batched_us: float = float("inf")


def parameters(cell: str, width: int, hidden: int, layers: int) -> int:
    """How many numbers the recurrent layers learn; torch's two biases are both counted, as ONNX keeps both."""
    with torch.device("meta"):
        module = CELLS[cell].make(width, hidden, layers, batch_first=True, dropout=0.0)
    return sum(parameter.numel() for parameter in module.parameters())


def hidden_for(cell: str, width: int, layers: int, budget: int) -> int:
    """The width of the layers with which a cell's parameters come closest to the budget."""

    def count(hidden: int) -> int:
        return parameters(cell, width, hidden, layers)

    above = 1 + bisect_left(range(1, budget), budget, key=count)
    return min((max(1, above - 1), above), key=lambda hidden: abs(count(hidden) - budget))


class Training:
    """One network in training, a turn at a time; only steps count as training time, validations do not."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.task = prepare(options)
        self.trainer = Trainer(self.task.network, self.task.material, options)

    def turn(self) -> bool:
        """Train for a second of CPU time; False when the training is over."""
        trainer, ends = self.trainer, self.trainer.standing.elapsed_s + TURN_S
        while trainer.done < 1 and trainer.standing.elapsed_s < ends:
            began = time.process_time()
            trainer.step()
            trainer.standing.elapsed_s += time.process_time() - began
            if trainer.done >= (len(trainer.standing.history) + 1) / VALIDATIONS:
                trainer.validate()
        return trainer.done < 1

    def finish(self, folder: Path) -> Row:
        """Take the best weights, measure the network, and leave its checkpoint in the folder."""
        network, options = self.task.network, self.options
        if self.trainer.best is not None:
            network.load_state_dict(self.trainer.best)
        folder.mkdir(parents=True)
        losses = _losses(self.task.finish(folder))
        checkpoint.save(folder, network.config, network.state_dict(), {"options": options.to_json()})
        count = sum(parameter.numel() for parameter in network.recurrent.parameters())
        task = network.config.task
        return Row(task, options.cell, options.hidden, count, self.trainer.standing.step, losses)


def _losses(metrics: Mapping[str, Any]) -> tuple[float, ...]:
    if "validation_nats_per_character" in metrics:
        return (metrics["validation_nats_per_character"],)
    waves = metrics["test_closed_loop_rmse"]
    return metrics["test_one_step_mse"] ** 0.5, sum(waves) / len(waves)


def train(base: Options, folder: Path) -> list[Row]:
    """All cells at one task, with as many parameters as the LSTM of the width in `base`."""
    width = base.embedding or 1
    budget = parameters("lstm", width, base.hidden, base.layers)
    chosen = {cell: hidden_for(cell, width, base.layers, budget) for cell in CELLS}
    runs = [Training(replace(base, cell=cell, hidden=hidden)) for cell, hidden in chosen.items()]
    training = list(runs)
    while training:
        training = [run for run in training if run.turn()]
    rows = []
    for run in runs:
        rows.append(run.finish(folder / run.options.cell))
        print(f"{rows[-1].task}, {rows[-1].cell}: {rows[-1].losses}, {rows[-1].updates} updates", flush=True)
    return rows


class Timing:
    """An artifact in the engine of the service, as it would serve it here: filled up to be bit-exact."""

    def __init__(self, path: Path, row: Row) -> None:
        self._engine = load_engine(path, load_settings(provider="cpu", threads=1))
        probe(self._engine)
        self._chunk = random_chunk(self._engine.signature, 1, np.random.default_rng(0))
        self._row = row
        row.artifact_bytes, row.state_bytes = path.stat().st_size, self._engine.layout.row_bytes
        row.least_rows = self._engine.min_rows

    def measure(self) -> None:
        """Time steps alone and in a batch, each from the state that the one before it left; keep the best."""
        self._row.alone_us = min(self._row.alone_us, self._time(1))
        self._row.batched_us = min(self._row.batched_us, self._time(BATCH))

    def _time(self, rows: int) -> float:
        state, chunks = [self._engine.initial_row] * rows, [self._chunk] * rows
        began = time.process_time()
        for _ in range(STEPS[rows]):
            state = self._engine.run(state, chunks).rows
        return (time.process_time() - began) / STEPS[rows] / rows * 1e6


def measure(base: Options, folder: Path) -> list[Row]:
    """Train, export and time all cells at one task."""
    rows = train(base, folder)
    quiet = Console(quiet=True)
    timings = []
    for row in rows:
        version_folder = folder / "models" / row.cell / "1"
        export_checkpoint(folder / row.cell, version_folder, quiet)
        timings.append(Timing(version_folder / "model.onnx", row))
    for _ in range(REPEATS):
        for timing in timings:
            timing.measure()
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows of one task as Markdown."""
    task = rows[0].task
    head = f"| {task} | width | recurrent parameters | updates made | {SCALE[task]} "
    head += f"| artifact, KB | µs per step alone | µs per step, {BATCH} together | state, bytes per session |"
    lines = [head, "|---|" + "---:|" * (head.count("|") - 2)]
    for r in rows:
        losses = " | ".join(f"{loss:.3f}" if task == "language" else f"{loss:.4f}" for loss in r.losses)
        lines.append(
            f"| `{r.cell}` | {r.hidden} | {r.recurrent_parameters:,} | {r.updates:,} | {losses} "
            f"| {r.artifact_bytes / 1e3:.0f} | {r.alone_us:.0f} | {r.batched_us:.1f} | {r.state_bytes:,} |"
        )
    return "\n".join(lines)


def write(folder: Path, command: str, base: Sequence[Options], rows: Sequence[Row]) -> None:
    """cells.json, and the tables between the marks of cells.md (a new file where there is none)."""
    document = {
        "command": command,
        "versions": versions() | {"onnxruntime": version("onnxruntime")},
        "cpu_seconds": round(time.process_time(), 1),
        "options": [options.to_json() for options in base],
        "rows": [asdict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cells.json").write_text(json.dumps(document, indent=1) + "\n")
    tasks = dict.fromkeys(row.task for row in rows)
    tables = "\n\n".join(table([row for row in rows if row.task == task]) for task in tasks)
    page, (first, last) = folder / "cells.md", MARKS
    text = page.read_text() if page.exists() else f"{first}\n{last}\n"
    pattern = f"{re.escape(first)}.*{re.escape(last)}"
    page.write_text(re.sub(pattern, lambda _: f"{first}\n{tables}\n{last}", text, flags=re.DOTALL))


def main() -> None:
    """Both tasks, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of cells.md and cells.json")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of training per cell and task")
    parser.add_argument("--seed", type=int, default=0, help="of weights, dropout and order")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # a second one would be another amount of CPU time
    base = [replace(options, seed=chosen.seed, max_seconds=chosen.seconds) for options in (LANGUAGE, FORECAST)]
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for options in base for row in measure(options, Path(scratch) / options.kind)]
    command = without_folders(shlex.join(["python", "-m", "bench.cells", *sys.argv[1:]]))
    write(chosen.out, command, base, rows)
    print(f"wrote {chosen.out / 'cells.json'} and the tables of {chosen.out / 'cells.md'}")


if __name__ == "__main__":
    main()
