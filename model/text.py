"""Text as training data for the task language: characters, their vocabulary, and the split.

Owns reading and encoding. Must not know networks or training.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.errors import DataError

_FEWEST_CHARACTERS = 1000  # below this, neither split says anything


@dataclass(frozen=True)
class Text:
    """A corpus, split in the order of reading: the first part trains, the last part validates."""

    vocabulary: tuple[str, ...]  # every character of the whole corpus, sorted
    train: Tensor  # int64 [n]
    validation: Tensor  # int64 [n]
    description: dict[str, Any]


def read_text(path: Path | None) -> tuple[str, str]:
    """The text and the name of its source: a UTF-8 file, or the documentation that every CPython carries."""
    if path is None:
        return default_corpus(), "pydoc_data.topics"
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: the byte at offset {error.start} cannot be decoded") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return text, path.name


def default_corpus() -> str:
    """The language reference in `pydoc_data.topics`, topic after topic in the order of their names."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name].strip() + "\n" for name in sorted(topics))


def prepare(text: str, source: str, validation_share: float) -> Text:
    """Encode a text and split it; raises DataError where it is too short to be split."""
    if len(text) < _FEWEST_CHARACTERS:
        raise DataError(f"{source} has {len(text)} characters, and at least {_FEWEST_CHARACTERS} are needed")
    vocabulary, tokens = encode(text)
    if len(vocabulary) < 2:
        raise DataError(f"{source} repeats a single character, which leaves nothing to learn")
    train = round(len(tokens) * (1 - validation_share))
    if not 2 <= train <= len(tokens) - 2:
        raise DataError(f"--validation {validation_share} leaves a split of {source} with fewer than 2 characters")
    description = {
        "source": source,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "characters": len(text),
        "train_characters": train,
        "validation_characters": len(text) - train,
    }
    return Text(vocabulary, tokens[:train], tokens[train:], description)


def encode(text: str) -> tuple[tuple[str, ...], Tensor]:
    """The characters of a text, sorted, and the text as their numbers, int64 [n]."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    symbols, tokens = np.unique(codes, return_inverse=True)
    return tuple(chr(code) for code in symbols), torch.from_numpy(tokens.astype(np.int64))
