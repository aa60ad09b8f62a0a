"""The file that --resume reads: everything a training needs to go on as if it had never stopped.

Owns `training.safetensors`: present and best weights, optimizer, carried state, torch's random state, and a JSON
document with the options and the standing. It is one file, replaced atomically, and needs no other.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.files import read_tensors, write_tensors
from model.options import Options
from model.trainer import Standing, Trainer

SNAPSHOT = "training.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """A stopped training. `cpu_s` is what it has used, `source` the description of its data."""

    options: Options
    standing: Standing
    source: dict[str, Any]
    cpu_s: float
    tensors: dict[str, Tensor]


def save_snapshot(folder: Path, trainer: Trainer, source: Mapping[str, Any], cpu_s: float) -> None:
    """Write the trainer's whole state."""
    carried = zip(trainer.network.cell.states, trainer.carried, strict=True)
    tensors = {"random": torch.get_rng_state()} | {f"carried.{name}": tensor for name, tensor in carried}
    tensors |= {f"network.{name}": tensor for name, tensor in trainer.network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (trainer.best or {}).items()}
    for index, values in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    document = {
        "options": trainer.options.to_json(),
        "standing": asdict(trainer.standing),
        "source": dict(source),
        "cpu_s": cpu_s,
    }
    write_tensors(folder / SNAPSHOT, tensors, document)


def load_snapshot(folder: Path) -> Snapshot:
    """Read a snapshot; CheckpointError where there is none, or it is damaged or of another version."""
    if not (folder / SNAPSHOT).exists():
        raise CheckpointError(f"{folder} holds no training to resume: it has no {SNAPSHOT}")
    tensors, document = read_tensors(folder / SNAPSHOT)
    try:
        options = Options.from_json(document["options"])
        standing = Standing(**document["standing"])
        return Snapshot(options, standing, document["source"], float(document["cpu_s"]), tensors)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / SNAPSHOT} was made by another version of lstm-serve") from error


def restore(trainer: Trainer, snapshot: Snapshot) -> None:
    """Put a freshly built trainer, and torch's random state, where the snapshot left off."""
    tensors = snapshot.tensors
    try:
        trainer.network.load_state_dict(_below(tensors, "network."))
        trainer.best = _below(tensors, "best.") or None
        trainer.carried = tuple(tensors[f"carried.{name}"] for name in trainer.network.cell.states)
        trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": _optimizer_state(tensors)})
        torch.set_rng_state(tensors["random"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"the tensors of {SNAPSHOT} do not fit the training that it describes") from error
    trainer.standing = snapshot.standing


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return state
