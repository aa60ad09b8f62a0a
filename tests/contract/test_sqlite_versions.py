"""Session databases of earlier versions of the service go on working."""

import sqlite3
import struct
import zlib
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace

from service.errors import UndecodableState
from service.state import Record, encode_answers
from service.stores.base import Ended
from service.stores.sqlite import SqliteStore
from tests.support.records import moved, plain, record

VERSION_1 = """
CREATE TABLE sessions(
    id TEXT PRIMARY KEY NOT NULL, owner TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
    fingerprint TEXT NOT NULL, ttl_s REAL NOT NULL, created_at REAL NOT NULL, sweep_at REAL NOT NULL,
    position INTEGER NOT NULL, revision INTEGER NOT NULL, expires_at REAL NOT NULL, checksum INTEGER NOT NULL,
    output BLOB NOT NULL, answers BLOB NOT NULL, state BLOB NOT NULL
) STRICT;
CREATE INDEX sessions_by_owner ON sessions(owner, id);
CREATE INDEX sessions_by_model ON sessions(owner, model, id);
CREATE INDEX sessions_by_sweep ON sessions(sweep_at);
CREATE TABLE ended(
    id TEXT PRIMARY KEY NOT NULL, owner TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX ended_by_time ON ended(at);
CREATE TABLE counters(name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('sessions', 1), ('checks', 0);
INSERT INTO ended VALUES ('over', '', 'deleted', 5.0);
PRAGMA application_id=1819505773;
PRAGMA user_version=1;
PRAGMA journal_mode=WAL;
"""


def _checksum(position: int, revision: int, *parts: bytes) -> int:
    """As earlier versions made it."""
    return zlib.crc32(struct.pack("<qq", position, revision) + b"".join(parts))


def test_a_flipped_bit_under_an_earlier_checksum_is_found(tmp_path: Path) -> None:
    """Until the next step seals the session anew."""
    path = tmp_path / "sessions.db"
    of_version_1(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE sessions SET state=x'00'")
    with closing(SqliteStore(path, fsync=False)) as store:
        assert isinstance(store.load(["a"])["a"], UndecodableState)


def of_version_1(path: Path) -> Record:
    """A database as the first version of the service left it, with one session: its record."""
    session = record("a")
    session = replace(session, identity=replace(session.identity, gates=0), trace=b"")
    i, answers = session.identity, encode_answers(session.answers)
    told = session.position, session.revision, session.expires_at
    check = _checksum(session.position, session.revision, session.row, session.output, answers)
    row = (i.id, i.owner, i.model, i.version, i.fingerprint, i.ttl_s, i.created_at, session.expires_at, *told, check)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(VERSION_1)
        db.execute(
            f"INSERT INTO sessions VALUES ({', '.join('?' * 15)})",  # noqa: S608 - made of constants
            (*row, session.output, answers, session.row),
        )
    return session


def test_sessions_of_version_1_go_on(tmp_path: Path) -> None:
    """They load as they were, take steps, and stand beside new ones, also after the next start."""
    path = tmp_path / "sessions.db"
    session, new = of_version_1(path), record("b")
    after = moved(session, b"on")
    with closing(SqliteStore(path, fsync=False)) as store:
        assert plain(store.load(["a"])["a"]) == plain(session)
        assert store.load(["over"])["over"] == Ended("over", "", "deleted", 5.0)
        store.create([new])
        assert store.commit([after]) == [True]
        assert store.count() == 2
    with closing(SqliteStore(path, fsync=False)) as store:
        assert plain(store.load(["a"])["a"]) == plain(after)
        assert plain(store.load(["b"])["b"]) == plain(new)


def test_a_replica_of_version_1_that_still_runs_goes_on(tmp_path: Path) -> None:
    """What it creates and commits in the file that was brought forward under its feet is whole."""
    path = tmp_path / "sessions.db"
    of_version_1(path)
    with closing(sqlite3.connect(path)) as old, closing(SqliteStore(path, fsync=False)) as store, old:
        answers, other = encode_answers(()), record("c")
        check = _checksum(0, 0, b"row", b"", answers)
        old.execute(
            "INSERT INTO sessions(id, owner, model, version, fingerprint, ttl_s, created_at, sweep_at, position, "
            "revision, expires_at, checksum, output, answers, state) "
            "VALUES ('c', '', 'adder', '1', 'f', 60, 1, 61, 0, 0, 61, ?, x'', ?, ?)",
            (check, answers, other.row),
        )
        old.commit()
        found = store.load(["c"])["c"]
        assert isinstance(found, Record)
        assert (found.identity.gates, found.trace, found.row) == (0, b"", other.row)


def test_a_new_file_and_one_brought_forward_have_the_same_tables(tmp_path: Path) -> None:
    """There is one form of a database, however it came to be."""
    of_version_1(tmp_path / "old.db")
    columns = []
    for name in ("old.db", "new.db"):
        SqliteStore(tmp_path / name, fsync=False).close()
        with closing(sqlite3.connect(tmp_path / name)) as db:
            columns.append(db.execute("SELECT * FROM pragma_table_info('sessions')").fetchall())
            assert db.execute("PRAGMA user_version").fetchone() == (2,)
    assert columns[0] == columns[1]
