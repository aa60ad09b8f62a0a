"""What only the SQLite store promises: its file, its errors, and what survives them."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.errors import StoreUnavailable, UndecodableState
from service.state import Record, checksum
from service.stores import checkpoints, sqlite
from service.stores.base import Ended
from service.stores.sqlite import SqliteStore
from tests.support.records import START_S, ends_none_that_is_damaged, moved, plain, record
from tests.support.server import wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file stands; its folder is made by the store."""
    return tmp_path / "data" / "sessions.db"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteStore]:
    """An empty store that does not wait for locks."""
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_S", 0.0)
    made = SqliteStore(path, fsync=False)
    yield made
    made.close()


def execute(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement over a connection of one's own."""
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(statement, values).fetchall()


# ---- the file


@pytest.mark.parametrize(("fsync", "level"), [(False, 1), (True, 2)])
def test_commits_reach_the_disk_as_the_setting_says(path: Path, fsync: bool, level: int) -> None:
    """WAL always; synchronous NORMAL survives the process, FULL a power cut, on the connection that writes."""
    store = SqliteStore(path, fsync=fsync)
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (level,)
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]
    store.close()


def test_everything_survives_a_reopening(path: Path) -> None:
    """Sessions, memories of ended ones and the count are those of the last commit."""
    store = SqliteStore(path, fsync=False)
    first, second = record("a"), record("b")
    store.create([first, second])
    after = moved(first, b"on")
    store.commit([after])
    store.end("b", "deleted", 5.0)
    store.close()
    again = SqliteStore(path, fsync=True)
    assert plain(again.load(["a"])["a"]) == plain(after)
    assert again.load(["b"]) == {"b": Ended("b", "", "deleted", 5.0)}
    assert again.count() == 1
    again.close()


def test_a_commit_is_in_the_file_when_it_returns(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    """A copy of the files made after a commit, as a kill would leave them, holds the commit."""
    session = record("a")
    store.create([session])
    store.commit([moved(session, b"on")])
    copy = tmp_path / "copy"
    shutil.copytree(path.parent, copy)
    again = SqliteStore(copy / path.name, fsync=False)
    assert plain(again.load(["a"])["a"]) == plain(moved(session, b"on"))
    again.close()


def test_housekeeping_copies_the_log_back(
    store: SqliteStore, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the log is large, its content is in the file itself; before, it is left alone."""
    store.create([record("a")])
    store.maintain()
    shutil.copy(path, tmp_path / "before.db")
    monkeypatch.setattr(checkpoints, "_SOME_BYTES", 0)
    store.maintain()
    shutil.copy(path, tmp_path / "after.db")
    tables = "SELECT count(*) FROM sqlite_master WHERE name='sessions'"
    assert execute(tmp_path / "before.db", tables) == [(0,)]
    assert execute(tmp_path / "after.db", "SELECT id FROM sessions") == [("a",)]


def test_two_processes_share_a_file(store: SqliteStore, path: Path) -> None:
    """Each sees what the other committed, and of two that started from one record one is refused."""
    other = SqliteStore(path, fsync=False)
    session = record("a")
    store.create([session])
    loaded = other.load(["a"])["a"]
    assert isinstance(loaded, Record)
    assert other.commit([moved(loaded, b"there")]) == [True]
    assert store.commit([moved(session, b"here")]) == [False]
    assert other.end("a", "deleted", 1.0)
    assert (store.count(), store.expire(START_S + 100.0, 10)) == (0, [])
    other.close()


# ---- damage


DAMAGE = {
    "row": "UPDATE sessions SET state=CAST(x'00' || substr(state, 2) AS BLOB) WHERE id='b'",
    "shorter row": "UPDATE sessions SET state=substr(state, 2) WHERE id='b'",
    "output": "UPDATE sessions SET output=CAST(x'00' || substr(output, 2) AS BLOB) WHERE id='b'",
    "answers": "UPDATE sessions SET answers=CAST(substr(answers, 2) || x'00' AS BLOB) WHERE id='b'",
    "trace": "UPDATE sessions SET trace=CAST(x'00' || substr(trace, 2) AS BLOB) WHERE id='b'",
    "expiry": "UPDATE sessions SET expires_at=1e300 WHERE id='b'",
    "ttl": "UPDATE sessions SET ttl_s=1 WHERE id='b'",
    "model": "UPDATE sessions SET model='other' WHERE id='b'",
    "fingerprint": "UPDATE sessions SET fingerprint='e' || substr(fingerprint, 2) WHERE id='b'",
    "gates": "UPDATE sessions SET gates=gates+1 WHERE id='b'",
    "checksum": "UPDATE sessions SET checksum=checksum+1 WHERE id='b'",
}


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_bytes_are_found_and_left_as_they_are(store: SqliteStore, path: Path, statement: str) -> None:
    """A flipped byte makes the session an error with a name, never zeros; others load, and it can still be ended."""
    records = [record(id) for id in "abc"]
    store.create(records)
    execute(path, statement)
    bytes_of = "SELECT state, output, answers, trace, checksum FROM sessions WHERE id='b'"
    damaged = execute(path, bytes_of)
    found = store.load([*"abc"])
    assert isinstance(found["b"], UndecodableState)
    assert [plain(found[id]) for id in "ac"] == [plain(records[0]), plain(records[2])]
    assert execute(path, bytes_of) == damaged
    assert [listed.identity.id for listed in store.page("", None, "", 10, 0.0)] == [*"abc"]
    assert store.end("b", "deleted", 1.0)


def test_a_damaged_time_ends_no_session(store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is it forgotten."""
    statement = "UPDATE sessions SET expires_at=1, sweep_at=1 WHERE id='b'"
    ends_none_that_is_damaged(store, lambda: execute(path, statement), caplog)


def test_a_row_that_stands_under_another_id_is_not_served(store: SqliteStore, path: Path) -> None:
    """As one does where the index is damaged: it is whole, and another's."""
    store.create([record("a"), record("b", row=b"its")])
    columns = "position, revision, expires_at, checksum, output, answers, state, trace"
    execute(path, f"UPDATE sessions SET ({columns}) = (SELECT {columns} FROM sessions WHERE id='b') WHERE id='a'")  # noqa: S608
    found = store.load(["a", "b"])
    assert isinstance(found["a"], UndecodableState)
    assert plain(found["b"]) == plain(record("b", row=b"its"))


def test_values_of_other_types_fail_their_own_session() -> None:
    """As they are read from a damaged header of a row."""
    row = ["a", "", "adder", "1", "f" * 64, 60.0, 1.0, 0, 1, 1, 61.0, 7, b"", b"", b"row", b""]
    for at in range(len(row)):
        for strange in (None, 7, 0.5, "text", b"bytes", 2**62):
            damaged = [*row[:at], strange, *row[at + 1 :]]
            assert isinstance(sqlite._decoded(tuple(damaged)), UndecodableState)


def test_a_link_to_the_file_is_followed(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    """Its log stands beside the file, not beside the link."""
    link = tmp_path / "link.db"
    link.symlink_to(path)
    other = SqliteStore(link, fsync=False)
    other.create([record("a")])
    assert other.commit([moved(record("a"), b"on")]) == [True]
    assert plain(store.load(["a"])["a"]) == plain(moved(record("a"), b"on"))
    other.close()


def test_answers_of_another_format_are_named(store: SqliteStore, path: Path) -> None:
    """Bytes with a good checksum that are no answers are refused, not guessed at."""
    store.create([record("a"), record("b")])
    check = checksum(record("b"), b"\xc1")
    execute(path, "UPDATE sessions SET answers=x'c1', checksum=? WHERE id='b'", check)
    found = store.load(["a", "b"])
    assert isinstance(found["a"], Record)
    assert isinstance(found["b"], UndecodableState)


def test_text_that_is_no_text_harms_its_own_session_only(store: SqliteStore, path: Path) -> None:
    """Damaged bytes in a name are found like others, and the other sessions of the load come back."""
    store.create([record("a"), record("b")])
    execute(path, "UPDATE sessions SET fingerprint=CAST(x'ff' AS TEXT) WHERE id='b'")
    found = store.load(["a", "b"])
    assert isinstance(found["a"], Record)
    assert isinstance(found["b"], UndecodableState)


# ---- what goes wrong underneath


WRITES: dict[str, Callable[[SqliteStore, Record], object]] = {
    "create": lambda store, r: store.create([record("new")]),
    "commit": lambda store, r: store.commit([moved(r, b"x" * 10_000)]),
    "end": lambda store, r: store.end("a", "deleted", 1.0),
    "expire": lambda store, r: store.expire(START_S + 100.0, 10),
    "forget": lambda store, r: store.forget(10.0, 10),
    "check": lambda store, r: store.check(),
}


@pytest.fixture
def session(store: SqliteStore) -> Record:
    """One session that is kept, and one that is remembered."""
    sessions = record("a"), record("over")
    store.create(sessions)
    store.end("over", "deleted", 5.0)
    return sessions[0]


def assert_nothing_has_happened(store: SqliteStore, session: Record) -> None:
    """The store holds what it held, and can be written again."""
    assert plain(store.load(["a"])["a"]) == plain(session)
    assert isinstance(store.load(["over"])["over"], Ended)
    assert "new" not in store.load(["new"])
    assert store.count() == 1
    assert store.commit([moved(session, b"again")]) == [True]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_locked_database_is_unavailable(
    store: SqliteStore, session: Record, path: Path, write: Callable[[SqliteStore, Record], object]
) -> None:
    """Nothing of the call is kept; reading goes on meanwhile, and when the lock is gone so does writing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
            write(store, session)
        assert plain(store.load(["a"])["a"]) == plain(session)
        other.execute("ROLLBACK")
    assert_nothing_has_happened(store, session)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_read_only_database_is_unavailable(
    store: SqliteStore, session: Record, write: Callable[[SqliteStore, Record], object]
) -> None:
    """A file that cannot be written answers by name; what was committed can be read."""
    store._writer.execute("PRAGMA query_only=ON")
    with pytest.raises(StoreUnavailable, match="SQLITE_READONLY"):
        write(store, session)
    assert plain(store.load(["a"])["a"]) == plain(session)
    store._writer.execute("PRAGMA query_only=OFF")
    assert_nothing_has_happened(store, session)


def test_a_full_disk_is_unavailable(store: SqliteStore, session: Record) -> None:
    """What does not fit is refused whole: of a batch whose last record is too much, the first is not kept either."""
    second = record("b")
    store.create([second])
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
        store.commit([moved(session, b"small"), moved(second, b"x" * 100_000)])
    with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
        store.create([record("new"), record("large", row=b"x" * 100_000)])
    store._writer.execute("PRAGMA max_page_count=1000000")
    store.end("b", "deleted", 1.0)
    assert_nothing_has_happened(store, session)


def test_the_client_learns_the_kind_and_the_log_the_whole(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No path and no statement of ours reaches a client."""
    store._writer.execute("PRAGMA query_only=ON")
    with pytest.raises(StoreUnavailable) as refused:
        store.create([record("a")])
    assert refused.value.detail == "the session database cannot commit now (SQLITE_READONLY)"
    assert "attempt to write a readonly database" in caplog.text
    assert str(path) not in refused.value.detail


@pytest.mark.parametrize("read", ["load", "page", "count"])
def test_a_database_that_cannot_be_read_is_unavailable(store: SqliteStore, path: Path, read: str) -> None:
    """Reading fails by the same name."""
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: store.load(["a"]),
        "page": lambda: store.page("", None, "", 1, 0.0),
        "count": store.count,
    }
    store.create([record("a")])
    execute(path, "DROP TABLE sessions")
    execute(path, "DROP TABLE counters")
    with pytest.raises(StoreUnavailable, match="SQLITE_ERROR"):
        calls[read]()


def test_a_file_that_is_no_database_is_not_opened(path: Path) -> None:
    """Whatever stands at the path is not overwritten."""
    path.parent.mkdir()
    path.write_text("precious notes, not a database" * 100)
    with pytest.raises(StoreUnavailable, match="SQLITE_NOTADB"):
        SqliteStore(path, fsync=False)
    assert path.read_text().startswith("precious notes")


def test_a_newer_format_is_not_touched(path: Path) -> None:
    """A database of a later version of the service is refused, with both versions."""
    SqliteStore(path, fsync=False).close()
    execute(path, "PRAGMA user_version=3")
    with pytest.raises(StoreUnavailable, match=r"format 3 .* writes 2"):
        SqliteStore(path, fsync=False)
    assert execute(path, "PRAGMA user_version") == [(3,)]


@pytest.mark.parametrize("obstacle", ["folder", "file"])
def test_a_path_that_cannot_be_had_is_named(path: Path, obstacle: str) -> None:
    """A folder where the file should be, or a file where its folder should be."""
    if obstacle == "folder":
        path.mkdir(parents=True)
    else:
        path.parent.write_text("in the way")
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        SqliteStore(path, fsync=False)


def test_a_locked_file_is_not_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process holds the new file, the start fails by name; a second try finds the tables whole."""
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_S", 0.0)
    SqliteStore(path, fsync=False).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
            SqliteStore(path, fsync=False)
        other.execute("ROLLBACK")
    store = SqliteStore(path, fsync=False)
    store.create([record("a")])
    assert store.count() == 1
    store.close()


def test_the_log_does_not_grow_while_sessions_are_stepped(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits ask for checkpoints themselves, however often housekeeping comes; each lets the log begin anew."""
    monkeypatch.setattr(checkpoints, "_MOST_BYTES", 400_000)
    session = record("a", row=bytes(20_000))
    store.create([session])
    for _ in range(20):  # 8 MB in all
        for n in range(20):
            session = moved(session, bytes([n]) * 20_000)
            assert store.commit([session]) == [True]
        wait_until(lambda: not store._checkpoints._asked)  # the disk may be slow
    assert path.with_name(path.name + "-wal").stat().st_size < 4_000_000
    assert plain(store.load(["a"])["a"]) == plain(session)


def test_a_checkpoint_that_fails_fails_no_commit(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next one may go well."""
    session = record("a")
    store.create([session])

    def broken(_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(checkpoints.Checkpoints, "_copy", broken)
    monkeypatch.setattr(checkpoints, "_MOST_BYTES", 1)
    for _ in range(3):
        session = moved(session, b"on")
        assert store.commit([session]) == [True]
    store._checkpoints._thread.submit(lambda: None).result(timeout=10)
    assert "cannot checkpoint" in caplog.text
