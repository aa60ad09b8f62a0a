"""A checkpoint: the folder that training leaves and export reads.

    weights.safetensors   the best weights, and in its metadata the document below
    checkpoint.json       the document: format, network config, how it was trained
    training.safetensors  what --resume needs; see model/snapshot.py

Owns the first two files. Each is replaced atomically, weights first, and the weights carry their own copy of the
document: whoever kills the writer between the two leaves weights and figures that still belong together. Must not know
how training works.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.errors import CheckpointError, ModelError
from model.files import read_tensors, write_bytes, write_tensors
from model.networks import Network, NetworkConfig, build

FORMAT = 1
WEIGHTS = "weights.safetensors"
DOCUMENT = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network in eval mode with its best validation weights, its config, and how it was made."""

    network: Network
    config: NetworkConfig
    provenance: dict[str, Any]


def save(folder: Path, config: NetworkConfig, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Write the checkpoint of `weights` (a state_dict of `build(config)`); `provenance` is any JSON object."""
    document = {"format": FORMAT, "network": asdict(config), "training": dict(provenance)}
    write_tensors(folder / WEIGHTS, weights, document)
    write_bytes(folder / DOCUMENT, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def exists(folder: Path) -> bool:
    """Whether the folder holds a checkpoint, whole or not."""
    return (folder / DOCUMENT).exists() or (folder / WEIGHTS).exists()


def load(folder: Path) -> Checkpoint:
    """Rebuild the trained network; CheckpointError, in one sentence, for whatever cannot be used."""
    shown = _read_document(folder / DOCUMENT)
    weights, document = read_tensors(folder / WEIGHTS)
    if document.get("network") != shown.get("network"):
        raise CheckpointError(f"{folder / DOCUMENT} and {folder / WEIGHTS} belong to different networks")
    config = _config(folder / WEIGHTS, document)
    network = build(config)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {folder / WEIGHTS} do not fit its network") from error
    return Checkpoint(network.eval(), config, dict(document.get("training", {})))


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is not a checkpoint: it has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON") from error
    if not isinstance(document, dict) or "network" not in document:
        raise CheckpointError(f"{path} is not the document of an lstm-serve checkpoint")
    return document


def _config(path: Path, document: Mapping[str, Any]) -> NetworkConfig:
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {document.get('format')!r}, this version reads {FORMAT}")
    try:
        return NetworkConfig.from_json(document["network"])
    except (ModelError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} describes a network that this version cannot build: {error}") from error
