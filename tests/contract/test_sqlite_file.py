"""What the SQLite store makes of a file that is not, or no longer, its own."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from service.errors import StoreUnavailable
from service.stores.sqlite import SqliteStore
from tests.support.records import moved, record


def replaced(path: Path) -> None:
    """Another file at the same path."""
    path.rename(path.with_name("moved.db"))
    path.write_bytes(path.with_name("moved.db").read_bytes())


def without_log(path: Path) -> None:
    """The database without its latest commits."""
    path.with_name(path.name + "-wal").unlink()


LOSSES: dict[str, Callable[[Path], object]] = {"removed": Path.unlink, "replaced": replaced, "no log": without_log}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("reopened", [False, True])
def test_nothing_is_acknowledged_that_a_restart_would_lose(
    tmp_path: Path, loss: Callable[[Path], object], reopened: bool
) -> None:
    """Once the file at the path is not the one that is open, every write and check and the housekeeping says so."""
    path = tmp_path / "sessions.db"
    if reopened:
        SqliteStore(path, fsync=False).close()
    with closing(SqliteStore(path, fsync=False)) as store:
        session = record("a")
        store.create([session])
        store.check()
        store.maintain()
        loss(path)
        for call in (
            lambda: store.create([record("b")]),
            lambda: store.commit([moved(session, b"on")]),
            lambda: store.end("a", "deleted", 1.0),
            store.check,
            store.maintain,
        ):
            with pytest.raises(StoreUnavailable, match="removed or replaced while it was open"):
                call()
        assert "b" not in store.load(["a", "b"])


def test_a_store_goes_on_beside_others_that_come_and_go(tmp_path: Path) -> None:
    """Other processes that open and close the file do not look like a loss."""
    path = tmp_path / "sessions.db"
    with closing(SqliteStore(path, fsync=False)) as store:
        store.create([record("a")])
        with closing(SqliteStore(path, fsync=False)) as other:
            other.create([record("b")])
            other.maintain()
        store.create([record("c")])
        store.check()
        assert store.count() == 3


FOREIGN = {
    "tables": "CREATE TABLE notes(text)",
    "tables and WAL": "PRAGMA journal_mode=WAL; CREATE TABLE notes(text)",
    "another application": "PRAGMA application_id=7",
    "an early format": "CREATE TABLE sessions(id); PRAGMA user_version=1",
}


@pytest.mark.parametrize("script", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_database_is_refused_and_left_as_it_was(tmp_path: Path, script: str) -> None:
    """One sentence; not a byte of it is changed, its journal mode included."""
    path = tmp_path / "notes.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match="not one of lstm-serve"):
        SqliteStore(path, fsync=False)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    """A file made beforehand, to set its owner and mode, is used; and names that mean something in a URI are names."""
    path = tmp_path / "what? #1 100%.db"
    path.touch()
    SqliteStore(path, fsync=False).close()
    with closing(SqliteStore(path, fsync=False)) as store:
        assert store.count() == 0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
