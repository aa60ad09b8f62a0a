"""A store is filled with sessions as a long life leaves them, and they can be found and weighed."""

import random
from pathlib import Path

from bench.filling import ROW_BYTES, Sessions, fill, some_ids
from bench.weighing import weighed
from service.state import Record
from service.stores.sqlite import SqliteStore


def test_a_filled_store_holds_sessions_that_go_on(tmp_path: Path) -> None:
    """Each has taken steps, keeps the answer to its last one, and has not expired."""
    path = tmp_path / "s.db"
    fill(path, 20, Sessions("f" * 64))
    ids = some_ids(path, 20, random.Random(0))
    store = SqliteStore(path, fsync=False)
    loaded = store.load(ids)
    assert (store.count(), len(loaded), store.expire(0.0, 10)) == (20, 20, [])
    for known in loaded.values():
        assert isinstance(known, Record)
        assert known.position > 0
        assert [answer.position for answer in known.answers] == [known.position]
        assert len(known.row) == ROW_BYTES
    store.close()


def test_what_sessions_share_is_weighed_once(tmp_path: Path) -> None:
    """The row weighs its bytes; of model and fingerprint, which all have in common, there is one."""
    path = tmp_path / "s.db"
    fill(path, 50, Sessions("f" * 64))
    parts = weighed(path, some_ids(path, 50, random.Random(0)))
    assert ROW_BYTES < parts["row"] < ROW_BYTES + 50
    assert parts["identity"] < 300
    assert set(parts) == {*Record.__struct_fields__, "itself"}
