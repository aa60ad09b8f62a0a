"""Records for tests of stores, and how to compare them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.errors import UndecodableState
from service.state import Answer, Identity, Record
from service.stores.base import Store

START_S = 1_000.0


def record(
    id: str = "a", *, owner: str = "", model: str = "adder", ttl_s: float = 60.0, row: bytes = b"row", position: int = 0
) -> Record:
    """A new session's record, with an answer in every shape that answers come in."""
    identity = Identity(id, owner, model, "1", "f" * 64, ttl_s, START_S, gates=3)
    answers = (
        Answer(0, 2, b"digest", START_S + 1, {"y": np.arange(6, dtype=np.float32).reshape(2, 3)}, None),
        Answer(2, 1, b"\0\1", START_S + 2, {"n": np.array(7), "b": np.array([True]), "e": np.empty((0, 2))}, 2**63 - 1),
        Answer(3, 9, b"", START_S + 3, None),
    )
    return Record(identity, position, 0, row, b"output", answers, START_S + ttl_s, b"trace")


def moved(before: Record, row: bytes, *, steps: int = 1, expires_at: float | None = None) -> Record:
    """The record that follows another."""
    return Record(
        before.identity,
        before.position + steps,
        before.revision + 1,
        row,
        before.output,
        before.answers,
        before.expires_at if expires_at is None else expires_at,
        b"trace of " + row if before.trace else b"",
    )


def plain(known: object) -> Any:  # noqa: ANN401 - for comparisons only
    """A record or answer as plain values, so that ``==`` compares arrays by type, shape and bytes."""
    if isinstance(known, Record):
        fields = known.identity, known.position, known.revision, known.row, known.output, known.expires_at, known.trace
        return (*fields, tuple(map(plain, known.answers)))
    if isinstance(known, Answer):
        outputs = known.outputs
        shown = None if outputs is None else {k: (a.dtype.str, a.shape, a.tobytes()) for k, a in outputs.items()}
        return known.start, known.steps, known.digest, known.expires_at, shown, known.seed
    return known


def kept(store: Store, id: str) -> object:
    """What a store knows of one id, as plain values; None when nothing."""
    return plain(store.load([id]).get(id))


def created(store: Store, *ids: str, ttl_s: float = 60.0, owner: str = "", model: str = "adder") -> list[Record]:
    """New sessions, kept in one call."""
    records = [record(id, ttl_s=ttl_s, owner=owner, model=model) for id in ids]
    store.create(records)
    return records


def walked(store: Store) -> set[str]:
    """Every session that a walk meets, a few at a time."""
    met: set[str] = set()
    cursor = ""
    for _ in range(1_000):
        ids, cursor = store.walk(cursor, 3)
        met |= set(ids)
        if not cursor:
            return met
    raise AssertionError("the walk did not come to an end")


def ends_none_that_is_damaged(store: Store, damage: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """``damage`` makes session b seem due: it is named, once a day, and can be ended by hand; the others end."""
    store.create([record("a"), record("b", ttl_s=1e6), record("c")])
    damage()
    for _ in range(2):
        assert store.expire(START_S + 30.0, 10) == []
    assert sorted(store.expire(START_S + 60.0, 10)) == ["a", "c"]
    assert [r.message for r in caplog.records if "damaged" in r.message] == [
        "session b is damaged: it is not ended, though its time seems to be over"
    ]
    assert isinstance(store.load(["b"])["b"], UndecodableState)
    assert store.expire(START_S + 90_000.0, 10) == []
    assert store.end("b", "deleted", START_S)
