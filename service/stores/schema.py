"""The tables of the SQLite store, and how a file of an earlier version comes to have them.

Owns what stands in a file; the statements that a store runs over it are its own (``sqlite.py``).
"""

import sqlite3

from service.errors import StoreUnavailable

_VERSION = 2
_APPLICATION_ID = 0x6C73746D  # "lstm": tells a file of ours from any other SQLite database
# The columns that every commit changes stand in no index. Expiry is found by `sweep_at`, which is brought up to
# `expires_at` only when its time comes: one index update per ttl and session instead of one per step.
_TABLES = """
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
INSERT INTO counters VALUES ('sessions', 0), ('checks', 0);
"""
# From each version to the next; a new file goes the same way, so that there is one.
_STEPS = {
    0: _TABLES,
    1: """
ALTER TABLE sessions ADD COLUMN gates INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN trace BLOB NOT NULL DEFAULT x'';
""",
}


def is_new(db: sqlite3.Connection) -> bool:
    """Whether the database has no tables yet; StoreUnavailable where it is none of ours, or of a later version."""
    application, tables = (
        db.execute(query).fetchone()[0] for query in ("PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
    )
    version = _version(db)
    if (application, version, tables) == (0, 0, 0):
        return True
    if application != _APPLICATION_ID:
        raise StoreUnavailable("the file is an SQLite database, but not one of lstm-serve; it was left as it was")
    if not 1 <= version <= _VERSION:
        raise StoreUnavailable(
            f"the session database has format {version} and this version of lstm-serve writes {_VERSION}"
        )
    return False


def migrate(db: sqlite3.Connection) -> None:
    """Bring a new file, or one of an earlier version, to the tables of this one; refuse any other."""
    db.execute("BEGIN IMMEDIATE")
    if is_new(db):
        db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    for version in range(_version(db), _VERSION):
        for statement in _STEPS[version].split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version={version + 1}")
    db.execute("COMMIT")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
