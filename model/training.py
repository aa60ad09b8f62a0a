"""One training from options to a finished checkpoint: prepare or resume, train, measure, draw, save.

Owns the order of these and what a checkpoint tells of its making.

A training that is bounded by steps (`--epochs`) and resumed after Ctrl-C or a kill gives, bit for bit, the weights of
one that was never stopped: weights, optimizer, carried state, random state and position are all kept. With
`--max-seconds` the learning rate also follows the clock. The seconds that were spent are part of the checkpoint, so a
resumed training anneals over what is left of the same budget, but no two runs by the clock are alike to the bit.
"""

import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from model import checkpoint, plots
from model.display import Display
from model.errors import CheckpointError, Interrupted, ModelError
from model.options import Options
from model.snapshot import Snapshot, restore, save_snapshot
from model.tasks import Task, prepare
from model.trainer import Trainer, computes_bfloat16

_LOSS_UNITS = {"language": "nats per character", "forecast": "squared error, repeating the last value = 1"}

# What torch says when an allocation is refused, and when a size is beyond 64 bits: in bytes, or by itself.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "size calculation overflow", "argument 'size' failed")


@dataclass(frozen=True)
class Run:
    """Where a training is kept, and the command that it can be told by."""

    folder: Path
    command: str
    resume_hint: str


def start(options: Options, run: Run, console: Console) -> dict[str, Any]:
    """Train from scratch and return the metrics; refuses a folder that already holds a checkpoint."""
    if checkpoint.exists(run.folder):
        raise CheckpointError(f"{run.folder} already holds a checkpoint: add --resume, or choose another --out")
    return _train(replace(options, precision=choose_precision(options)), run, console, None)


def resume(options: Options, snapshot: Snapshot, run: Run, console: Console) -> dict[str, Any]:
    """Go on from a snapshot, with `options` that agree with its own, and return the metrics."""
    return _train(options, run, console, snapshot)


@contextmanager
def _within_memory() -> Iterator[None]:
    """Torch tells of memory that it cannot get by an error like any other; here it becomes a sentence."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise
        rule = "choose a smaller --hidden, --layers, --batch or --sequence"
        raise ModelError(f"the network does not fit into memory: {rule}") from error


@_within_memory()
def _train(options: Options, run: Run, console: Console, snapshot: Snapshot | None) -> dict[str, Any]:
    if options.threads:
        torch.set_num_threads(options.threads)
    task = prepare(options)
    trainer = Trainer(task.network, task.material, options)
    cpu_before_s = 0.0
    if snapshot is not None:
        if snapshot.source != task.source:
            raise CheckpointError(f"the data is not what the training in {run.folder} was begun with")
        restore(trainer, snapshot)
        if trainer.finished and not _waits_for_its_figures(run.folder):
            raise ModelError(_used_up(trainer, run.folder))  # nothing is written: too small a limit must not stick
        cpu_before_s = snapshot.cpu_s
    console.print(_introduction(task, trainer), highlight=False, soft_wrap=True)

    def save() -> None:
        _save(task, trainer, run, cpu_before_s, {})

    with stop_on_signals() as stopped, Display(trainer, console) as display:
        finished = trainer.run(display.report, save, stopped)
    unit = _LOSS_UNITS[task.network.config.task]
    plots.draw_losses(run.folder, trainer.standing.history, unit, options.dropout)
    if not finished:
        raise Interrupted(f"stopped after {trainer.standing.step} steps; go on with: {run.resume_hint}")
    if trainer.best is not None:
        task.network.load_state_dict(trainer.best)
    metrics = task.finish(run.folder)
    _save(task, trainer, run, cpu_before_s, metrics)
    return metrics


def _waits_for_its_figures(folder: Path) -> bool:
    """Whether a training came to its end, and was stopped before it was measured: a resume makes up for that."""
    made = checkpoint.load(folder).provenance
    return bool(made.get("finished")) and not made.get("metrics")


def _used_up(trainer: Trainer, folder: Path) -> str:
    """What a training has done, and which of its limits must be raised before it can do more."""
    standing, options = trainer.standing, trainer.options
    limits = [
        ("--max-seconds", math.ceil(standing.elapsed_s), standing.elapsed_s >= (options.max_seconds or math.inf)),
        ("--epochs", standing.step // trainer.chunks_per_epoch, standing.step >= trainer.total_steps),
        ("--patience", standing.stale, standing.stale >= options.patience),
    ]
    raised = " and ".join(f"{name} above {value}" for name, value, reached in limits if reached)
    done = f"{standing.step:,} steps in {standing.elapsed_s:.1f} s"
    return f"the training in {folder} has already made {done}, and limits count from its beginning: give {raised}"


def _introduction(task: Task, trainer: Trainer) -> str:
    parameters = sum(p.numel() for p in task.network.parameters())
    bound = trainer.options.max_seconds
    limit = "" if bound is None else f", or {bound:g} s"
    return f"{task.source['source']}: {parameters:,} parameters, {trainer.total_steps:,} steps{limit}"


def _save(task: Task, trainer: Trainer, run: Run, cpu_before_s: float, metrics: Mapping[str, Any]) -> None:
    cpu_s = cpu_before_s + time.process_time()
    weights = trainer.best or task.network.state_dict()  # stopped before the first validation: what there is
    provenance = _provenance(task, trainer, run, cpu_s) | {"metrics": dict(metrics)}
    checkpoint.save(run.folder, task.network.config, weights, provenance)
    save_snapshot(run.folder, trainer, task.source, cpu_s)


def _provenance(task: Task, trainer: Trainer, run: Run, cpu_s: float) -> dict[str, Any]:
    standing = trainer.standing
    # Where the data lay is no one's business but the maker's; its name and hash are in `data`.
    options = {k: v for k, v in trainer.options.to_json().items() if k not in ("text", "csv")}
    return {
        "data": task.source,
        "seed": trainer.options.seed,
        "steps": standing.step,
        "finished": trainer.finished,
        "losses": {
            "unit": _LOSS_UNITS[task.network.config.task],
            "best_validation": standing.best_loss,
            "best_step": standing.best_step,
        },
        "options": options,
        "versions": versions(),
        "command": run.command,
        "cpu_seconds": round(cpu_s, 1),
        "wall_seconds": round(standing.elapsed_s, 1),
    }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    try:
        own = version("lstm-serve")
    except PackageNotFoundError:
        own = "source tree"
    return {"python": platform.python_version(), "torch": str(torch.__version__), "lstm-serve": own}


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """While it lasts, a first SIGINT or SIGTERM is noted, not obeyed; yields the function that tells of it.

    Whoever has sent one is obeyed by then, so afterwards SIGINT is ignored: another Ctrl-C while the interpreter ends
    would only break into the last words. Without one, both signals do again what they did before.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:  # whoever asks twice does not want to wait for the step
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if received and number == signal.SIGINT else handler)


def choose_precision(options: Options) -> str:
    """What `auto` means here: bfloat16 where it is quicker and does no harm, float32 elsewhere.

    Matrix units (AMX) make an LSTM of a language network two to three times as quick and the other gated cells a third
    or more, but the simple network's products are too small to gain. A forecast's closed loop lives on digits that
    bfloat16 does not have.
    """
    if options.precision == "bfloat16" and not computes_bfloat16():
        raise ModelError("--precision bfloat16: this processor cannot compute it; leave it out, or say float32")
    if options.precision != "auto":
        return options.precision
    quick = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return "bfloat16" if quick and options.kind == "language" and options.cell != "rnn" else "float32"
