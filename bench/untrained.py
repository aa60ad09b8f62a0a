"""Untrained language models of any size: what a step costs does not depend on what was learned."""

import hashlib
from pathlib import Path

import numpy as np

import bench.extra  # isort: skip  # noqa: F401 - before what it looks for
from export.graph import build
from export.signature import attach, describe
from export.weights import Language, Layer, Recurrence

SYMBOLS, EMBEDDING = 96, 64


def write(path: Path, layers: int, hidden: int, embedding: int = EMBEDDING) -> str:
    """Write an LSTM of so many layers and units as an artifact; its fingerprint."""
    chance = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return chance.uniform(-(hidden**-0.5), hidden**-0.5, shape).astype(np.float32)

    def layer(width: int) -> Layer:
        return Layer(draw(4 * hidden, width), draw(4 * hidden, hidden), draw(4 * hidden), draw(4 * hidden))

    stack = tuple(layer(hidden if i else embedding) for i in range(layers))
    recurrence = Recurrence("lstm", stack, draw(SYMBOLS, hidden), draw(SYMBOLS))
    weights = Language(recurrence, tuple(chr(32 + i) for i in range(SYMBOLS)), draw(SYMBOLS, embedding))
    content = attach(build(weights), describe(weights, {"data": "random weights"}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
