"""What a user may choose for a training, as one plain value that a checkpoint keeps.

Owns the options and the rule for continuing. Must not import torch: `--help` is quick and works without it.
"""

import math
import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import PurePath
from typing import Any, Literal

from model.errors import CheckpointError, ModelError

# What --resume may change: how long to train and with how many threads, not what is trained.
CHANGEABLE = ("max_seconds", "epochs", "patience", "threads")

_PATHS = ("--out", "--text", "--csv")  # the options that name files

PRECISIONS = ("auto", "float32", "bfloat16")

CELLS = ("rnn", "gru", "lstm", "peephole", "cifg")  # the names in model/cells.py, which needs torch

_LONGEST_MEMORY = 1_000_000  # steps, far beyond what any training reads in one chunk
_LARGEST_SEED = 2**31 - 1
_MOST_THREADS = 1024

Kind = Literal["language", "csv", "sine"]


@dataclass(frozen=True)
class Options:
    """A training, completely: the same options, data, versions and machine give the same weights.

    `kind` says where the data comes from; `text`, `csv`, `target`, `features` and `time` are its own options.
    `sequence` is the length of a chunk in steps, `validation` a share between 0 and 1, `rollout` a number of steps,
    `threads` 0 leaves the choice to torch. `memory_steps` is the longest time for which gates keep to begin with (see
    `model.networks.keep_for`); 0 leaves them as `model.networks.initialise` does. `precision` is that of matrix
    products in training; the weights, the optimizer, the final figures and whatever serves are float32.
    """

    kind: Kind
    hidden: int
    layers: int
    dropout: float
    seed: int
    epochs: int
    batch: int
    sequence: int
    learning_rate: float
    weight_decay: float
    patience: int
    max_seconds: float | None = None
    validation: float = 0.1
    threads: int = 0
    precision: str = "auto"
    cell: str = "lstm"
    memory_steps: int = 0
    embedding: int = 0
    rollout: int = 0
    text: str | None = None
    csv: str | None = None
    target: str = ""
    features: tuple[str, ...] = ()
    time: str | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "epochs", "batch", "sequence", "patience"):
            _require(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        for name, most in (("seed", _LARGEST_SEED), ("threads", _MOST_THREADS)):
            _require(0 <= getattr(self, name) <= most, name, f"must be from 0 to {most:,}", getattr(self, name))
        _require(self.rollout >= 0, "rollout", "must not be negative", self.rollout)
        _require(0 <= self.weight_decay < math.inf, "weight_decay", "must be 0 or above, and finite", self.weight_decay)
        _require(0 < self.learning_rate < math.inf, "learning_rate", "must be above 0, and finite", self.learning_rate)
        _require(self.embedding >= 1 or self.kind != "language", "embedding", "must be at least 1", self.embedding)
        _require(0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1", self.dropout)
        _require(0 < self.validation < 1, "validation", "must be between 0 and 1", self.validation)
        _require(self.precision in PRECISIONS, "precision", f"must be one of {', '.join(PRECISIONS)}", self.precision)
        _require(self.cell in CELLS, "cell", f"must be one of {', '.join(CELLS)}", self.cell)
        _require(self.max_seconds is None or self.max_seconds > 0, "max_seconds", "must be above 0", self.max_seconds)
        _require(self.rollout < self.sequence, "rollout", "must be below --sequence", self.rollout)
        memory = self.memory_steps  # with 2 steps there is nothing to draw: every gate would keep for 2
        rule = f"must be 0 or from 3 to {_LONGEST_MEMORY:,}"
        _require(memory == 0 or 3 <= memory <= _LONGEST_MEMORY, "memory_steps", rule, memory)
        if memory and self.cell == "rnn":
            raise ModelError("--memory-steps is about gates, and the cell rnn has none: choose another --cell")

    def to_json(self) -> dict[str, Any]:
        """The options as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Options":
        """Rebuild options from `to_json`; CheckpointError where they are of another version."""
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint was made by another version of lstm-serve: {error}") from error


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ModelError(f"{flag(name)} {rule}, not {value}")


def flag(name: str) -> str:
    """How an option is spelled on the command line."""
    return "--" + name.replace("_", "-")


def without_folders(command: str) -> str:
    """The command line with each path cut to its last part: what is published must not tell where files lay."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command line at all
        return PurePath(command).name
    for i, word in enumerate(words):
        if i and words[i - 1] in _PATHS:
            words[i] = _last_part(word)
        elif word.startswith(tuple(f"{option}=" for option in _PATHS)):
            option, _, path = word.partition("=")
            words[i] = f"{option}={_last_part(path)}"
    return shlex.join(words)


def _last_part(path: str) -> str:
    return PurePath(path).name or "."


def continued(stored: Options, given: Options, explicit: Collection[str]) -> Options:
    """The options to resume with: the stored ones, and of the `explicit` ones those that may change.

    Raises ModelError for an explicit option that contradicts the checkpoint, since it would not be the same training.
    """
    if given.kind != stored.kind and (stored.kind == "language" or given.kind == "language"):
        raise ModelError(f"the checkpoint is a training of the kind {stored.kind}, not {given.kind}")
    for field in fields(Options):
        name = field.name
        if name in explicit and name not in CHANGEABLE and getattr(given, name) != getattr(stored, name):
            raise ModelError(
                f"{flag(name)} is {getattr(stored, name)} in the checkpoint, so it cannot be resumed with "
                f"{getattr(given, name)}: leave the option out, or train into another folder"
            )
    return replace(stored, **{name: getattr(given, name) for name in CHANGEABLE if name in explicit})
