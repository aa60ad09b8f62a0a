"""A store as a long life leaves it: many resting sessions, each with a row, an output and its last answer.

Owns what such sessions look like. They are created through the store's own interface.
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from bench.untrained import SYMBOLS
from service.state import Answer, Identity, Record
from service.stores.sqlite import SqliteStore

MODEL, LAYERS, HIDDEN = "yardstick", 2, 128
ROW_BYTES = 2 * LAYERS * HIDDEN * 4  # h and c
TTL_S = 86_400.0
_GENERATION = 250_000  # sessions that are made in the order of their ids: at random, every page would be written anew
_AT_ONCE = 2_000  # sessions of one transaction
_POOL_BYTES = 2**24  # of numbers that rows are cut from


class Sessions:
    """Records of sessions that have taken steps: numbers as a state has them, positions and times as they come."""

    def __init__(self, fingerprint: str, seed: int = 0) -> None:
        self._fingerprint = fingerprint
        self._chance = random.Random(seed)
        pool = np.random.default_rng(seed).uniform(-1, 1, _POOL_BYTES // 4)
        self._pool = pool.astype(np.float32).tobytes()

    def record(self, id: str, row_bytes: int = ROW_BYTES) -> Record:
        """One session, last stepped within the first half of its ttl."""
        chance, now = self._chance, time.time()
        position, stepped = chance.randrange(1, 5_000), now - chance.random() * TTL_S / 2
        identity = Identity(id, "", MODEL, "1", self._fingerprint, TTL_S, stepped - position, 0)
        expires_at = stepped + TTL_S
        shown: dict[str, np.ndarray] = {
            "tokens": np.array([position % SYMBOLS], np.uint8),
            "logprobs": np.array([-4.5], np.float32),
        }
        answer = Answer(position - 1, 1, chance.randbytes(16), expires_at, shown)
        row, output = self._cut(row_bytes), self._cut(4 * SYMBOLS)
        return Record(identity, position, position, row, output, (answer,), expires_at)

    def _cut(self, size: int) -> bytes:
        start = 4 * self._chance.randrange((len(self._pool) - size) // 4)
        return self._pool[start : start + size]


def fill(path: Path, sessions: int, made: Sessions) -> None:
    """A new store with so many sessions."""
    with closing(SqliteStore(path, fsync=False)) as store:
        for batch in _batches(sessions):
            store.create([made.record(id) for id in batch])
            store.maintain()


def _batches(sessions: int) -> Iterator[list[str]]:
    for generation in range(0, sessions, _GENERATION):
        ids = sorted(os.urandom(16).hex() for _ in range(min(_GENERATION, sessions - generation)))
        for start in range(0, len(ids), _AT_ONCE):
            yield ids[start : start + _AT_ONCE]


def some_ids(path: Path, count: int, chance: random.Random) -> list[str]:
    """Ids of sessions of a store, by chance among all."""
    with closing(SqliteStore(path, fsync=False)) as store:
        found: dict[str, None] = {}
        while len(found) < count:  # whoever stands beyond a random id
            page = store.page("", None, f"{chance.getrandbits(128):032x}", 1, 0.0)
            found |= {listed.identity.id: None for listed in page}
    return list(found)
