"""The default store: one SQLite file in WAL mode.

Owns the statements and the pragmas (``schema.py`` the tables, ``checkpoints.py`` the log's); sqlite3's errors do not
leave these modules. One connection writes, one reads, one makes checkpoints, each behind its own lock: readers do not
wait for a commit, nor commits for more than the end of a checkpoint.
"""

import logging
import os
import sqlite3
import struct
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from service.errors import StoreUnavailable, UndecodableState
from service.state import Identity, Record, checksum, encode_answers, whole
from service.stores.base import LOOK_AGAIN_S, Ended, EndReason, Listed, Store, named_damaged
from service.stores.checkpoints import Checkpoints
from service.stores.schema import is_new, migrate
from service.stores.transactions import Transaction, errors_mapped

log = logging.getLogger(__name__)

_IDENTITY = "id, owner, model, version, fingerprint, ttl_s, created_at, gates"
_WIDTH = _IDENTITY.count(",") + 1
_STATE = "position, revision, expires_at, checksum, output, answers, state, trace"
_CREATE = f"INSERT INTO sessions({_IDENTITY}, sweep_at, {_STATE}) \
VALUES ({', '.join('?' * (_WIDTH + 9))})"  # noqa: S608 - made of constants
_LOAD = f"SELECT {_IDENTITY}, {_STATE} FROM sessions WHERE id IN "  # noqa: S608
_COMMIT = (
    "UPDATE sessions SET position=?, revision=?, expires_at=?, checksum=?, output=?, answers=?, state=?, trace=? "
    "WHERE id=? AND revision=?"
)
_BUSY_TIMEOUT_S = 2.0
_CACHE_KIB = 16_384  # of the connection that writes: pages that a tick finds no room for are written twice
_CHECKPOINT_PAGES = 16_384  # SQLite's own checkpoint, inside a commit: only where ours cannot keep up
_MOVED_PAGES = 8  # of the table and its indices, that a session changes when it comes or goes
_MOST_FAULTS = 20  # of the file that are told
_LOG_BYTES = 2**26  # that the log's file keeps where it had to grow larger, as behind a reader that took its time


# sqlite3 asks for adapters of every parameter of another type than its own few, bytes among them: that lookup costs
# more than the copy that a bytearray is.
_blob = bytearray


class _SomeMoved(Exception):
    """A session of the batch was moved by another process: the batch is rolled back."""


class SqliteStore(Store):
    """Sessions in the SQLite file at ``path``; ``fsync``: every commit reaches the disk before it returns."""

    def __init__(self, path: Path, *, fsync: bool) -> None:
        with errors_mapped(f"be opened at {path}"):
            self._path = path = path.resolve()  # of a link, SQLite has its log beside what the link leads to
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_foreign(path)
            self._writer = _connect(path, fsync=fsync)
            migrate(self._writer)
            self._writer.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            self._reader = _connect(path, fsync=fsync)
            self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
            self._checkpoints = Checkpoints(_connect(path, fsync=fsync), self._write_lock)
            self._paths = str(path), str(_log_of(path))  # as they are asked for at every commit
            self._files = _files(self._paths)

    def create(self, records: Sequence[Record]) -> None:
        with self._transaction() as db:
            self._checkpoints.written(_MOVED_PAGES * len(records), _bytes(records))
            db.executemany(_CREATE, [_creation(r) for r in records])
            _add_to_count(db, len(records))

    def load(self, ids: Sequence[str]) -> Mapping[str, Record | Ended | UndecodableState]:
        marks = f"({', '.join('?' * len(ids))})"
        with errors_mapped("load"), self._read_lock:
            rows = self._reader.execute(_LOAD + marks, ids).fetchall()
            found: dict[str, Record | Ended | UndecodableState] = {row[0]: _decoded(row) for row in rows}
            if len(found) < len(ids):
                query = f"SELECT id, owner, reason, at FROM ended WHERE id IN {marks}"  # noqa: S608
                found |= {row[0]: Ended(*row) for row in self._reader.execute(query, ids) if row[0] not in found}
        return found

    def commit(self, records: Sequence[Record]) -> list[bool]:
        updates = [_update(record) for record in records]
        try:
            with self._transaction() as db:
                self._checkpoints.written(len(records), _bytes(records))
                if db.executemany(_COMMIT, updates).rowcount != len(updates):
                    raise _SomeMoved
        except _SomeMoved:  # which is rare: find out which, one by one
            with self._transaction() as db:
                return [db.execute(_COMMIT, update).rowcount == 1 for update in updates]
        return [True] * len(updates)

    def end(self, id: str, reason: EndReason, now: float) -> bool:
        with self._transaction() as db:
            self._checkpoints.written(_MOVED_PAGES)
            return _end(db, [id], reason, now) == 1

    def expire(self, now: float, limit: int) -> list[str]:
        expired: list[str] = []
        while not expired and self._due(now):  # those that were renewed are put off, a short transaction at a time
            with self._transaction() as db:
                due = db.execute(
                    "SELECT id, expires_at FROM sessions WHERE sweep_at <= ? ORDER BY sweep_at LIMIT ?", (now, limit)
                ).fetchall()
                renewed = [(id,) for id, at in due if at > now]
                db.executemany("UPDATE sessions SET sweep_at=expires_at WHERE id=?", renewed)
                expired = _believed(db, [id for id, at in due if at <= now], now)
                self._checkpoints.written(_MOVED_PAGES * len(due))
                _end(db, expired, "expired", now)
        return expired

    def _due(self, now: float) -> bool:
        """Whether a session may have expired; mostly not, and then there is no write transaction either."""
        with errors_mapped("expire"), self._read_lock:
            row = self._reader.execute("SELECT 1 FROM sessions WHERE sweep_at <= ? LIMIT 1", (now,)).fetchone()
        return row is not None

    def forget(self, before: float, limit: int) -> int:
        with self._transaction() as db:
            old = "SELECT id FROM ended WHERE at < ? ORDER BY at LIMIT ?"
            return db.execute(f"DELETE FROM ended WHERE id IN ({old})", (before, limit)).rowcount  # noqa: S608

    def page(self, owner: str, model: str | None, after: str, limit: int, now: float) -> list[Listed]:
        where, values = "owner=? AND id>?", [owner, after]
        if model is not None:
            where, values = "owner=? AND model=? AND id>?", [owner, model, after]
        columns = f"{_IDENTITY}, position, expires_at"
        query = f"SELECT {columns} FROM sessions WHERE {where} AND expires_at>? ORDER BY id LIMIT ?"  # noqa: S608
        with errors_mapped("list"), self._read_lock:
            rows = self._reader.execute(query, (*values, now, limit)).fetchall()
        return [Listed(Identity(*row[:_WIDTH]), *row[_WIDTH:]) for row in rows]

    def walk(self, cursor: str, limit: int) -> tuple[list[str], str]:
        with errors_mapped("list"), self._read_lock:
            query = "SELECT id FROM sessions WHERE id>? ORDER BY id LIMIT ?"
            ids = [row[0] for row in self._reader.execute(query, (cursor, limit))]
        return ids, ids[-1] if len(ids) == limit else ""

    def remove(self, id: str, revision: int) -> bool:
        with self._transaction() as db:
            gone = db.execute("DELETE FROM sessions WHERE id=? AND revision=?", (id, revision)).rowcount
            _add_to_count(db, -gone)
        return gone == 1

    def count(self) -> int:
        with errors_mapped("count"), self._read_lock:
            return int(self._reader.execute("SELECT value FROM counters WHERE name='sessions'").fetchone()[0])

    def maintain(self) -> None:
        self._check_files()
        self._checkpoints.now_and_then()

    def check(self) -> None:
        with self._transaction() as db:
            # A real change: SQLite writes nothing where a row stays as it is, and would not meet the full disk.
            db.execute("UPDATE counters SET value=value+1 WHERE name='checks'")

    def damage(self) -> list[str]:
        with errors_mapped("be checked"), self._read_lock:
            told = self._reader.execute(f"PRAGMA integrity_check({_MOST_FAULTS})").fetchall()
        found = [" ".join(row[0].split()) for row in told]
        return [] if found == ["ok"] else found

    def _check_files(self) -> None:
        """StoreUnavailable when what is written would go into files that nobody can open any more."""
        try:
            if _files(self._paths) == self._files:
                return
        except FileNotFoundError:
            pass
        log.error("the database file %s was removed or replaced while it was open", self._path)
        raise StoreUnavailable("the database file was removed or replaced while it was open")

    def close(self) -> None:
        self._checkpoints.close()
        for connection in (self._reader, self._writer):
            connection.close()

    def _transaction(self) -> "Transaction":
        """A write transaction: committed at the end, rolled back on any error."""
        return Transaction(self._writer, self._write_lock, self._check_files)


def _connect(path: Path, *, fsync: bool) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    db.text_factory = partial(
        str, encoding="utf-8", errors="replace"
    )  # damaged text fails its own session, not the load
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
    db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
    return db


def _log_of(path: Path) -> Path:
    """The write-ahead log of a database: it is there as long as a connection is open."""
    return path.with_name(path.name + "-wal")


def _files(paths: Iterable[str]) -> list[tuple[int, int]]:
    """Which files stand at the database's two paths; FileNotFoundError where there is none."""
    return [(status.st_dev, status.st_ino) for status in map(os.stat, paths)]


def _check_foreign(path: Path) -> None:
    """Refuse a database that is not ours before anything is changed in it, its journal mode included."""
    if path.exists() and (path.is_dir() or path.stat().st_size > 0):
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as db:
            is_new(db)


def _bytes(records: Sequence[Record]) -> int:
    """About how much these records put into the log, beside a page each."""
    return sum(len(r.row) + len(r.trace) for r in records)


def _creation(r: Record) -> tuple[object, ...]:
    answers, i = encode_answers(r.answers), r.identity
    check = checksum(r, answers)
    # Every session looks due only after its ttl, so a burst of new ones costs the sweeper nothing before.
    return (
        *(i.id, i.owner, i.model, i.version, i.fingerprint, i.ttl_s, i.created_at, i.gates, r.expires_at),
        *(r.position, r.revision, r.expires_at, check, *map(_blob, (r.output, answers, r.row, r.trace))),
    )


def _update(r: Record) -> tuple[object, ...]:
    answers = encode_answers(r.answers)
    told = _blob(r.output), _blob(answers), _blob(r.row), _blob(r.trace)
    return r.position, r.revision, r.expires_at, checksum(r, answers), *told, r.identity.id, r.revision - r.leap


def _decoded(row: tuple[Any, ...]) -> Record | UndecodableState:
    *identity, position, revision, expires_at, check, output, answers, state, trace = row
    owner = identity[1] if isinstance(identity[1], str) else ""
    try:
        # Thousands may be live that have owner, model, version and fingerprint in common.
        identity[1:5] = map(sys.intern, identity[1:5])
        record = Record(Identity(*identity), position, revision, state, output, (), expires_at, trace)
        return whole(record, answers, check)
    except UndecodableState as error:
        return UndecodableState(error.detail, owner)
    except (TypeError, ValueError, struct.error) as error:  # a damaged header of a row: values of other types
        return UndecodableState(f"the stored state of the session cannot be decoded ({type(error).__name__})", owner)


def _believed(db: sqlite3.Connection, ids: Sequence[str], now: float) -> list[str]:
    """Those whose time can be believed to be over; damaged ones are looked at again later."""
    rows = db.execute(f"{_LOAD}({', '.join('?' * len(ids))})", ids)
    damaged = named_damaged({row[0]: _decoded(row) for row in rows})
    again = now + LOOK_AGAIN_S
    db.executemany("UPDATE sessions SET sweep_at=? WHERE id=?", [(again, id) for id in damaged])
    return [id for id in ids if id not in damaged]


def _end(db: sqlite3.Connection, ids: Sequence[str], reason: EndReason, now: float) -> int:
    """Move sessions to the memory of ended ones; how many were there."""
    db.executemany(
        "INSERT OR REPLACE INTO ended SELECT id, owner, ?, ? FROM sessions WHERE id=?",
        [(reason, now, id) for id in ids],
    )
    gone = db.executemany("DELETE FROM sessions WHERE id=?", [(id,) for id in ids]).rowcount
    _add_to_count(db, -gone)
    return gone


def _add_to_count(db: sqlite3.Connection, change: int) -> None:
    db.execute("UPDATE counters SET value=value+? WHERE name='sessions'", (change,))
