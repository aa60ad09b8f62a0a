"""Files that are either the old one or the new one, never half of each. Knows no networks and no training."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import CheckpointError

_DOCUMENT = "lstm_serve"  # the key of the JSON document in the metadata of a tensor file


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` in one step: a process killed at any moment leaves the previous file whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the new name and lose the content
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document as one safetensors file, so that the two can never disagree."""
    owned = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(owned, {_DOCUMENT: json.dumps(document)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_tensors` back; CheckpointError when it is missing, damaged or of another program."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        document = json.loads(metadata[_DOCUMENT])
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file") from error
    except KeyError as error:
        raise CheckpointError(f"{path} was not written by lstm-serve") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} was not written by lstm-serve")
    return tensors, document
