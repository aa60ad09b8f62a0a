"""`lstm-serve sessions` as a user types it."""

import json
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

import lstm_serve
from service.engine.repository import LoadedModel
from service.state import Record
from service.store_url import parse
from service.stores.base import Ended
from service.stores.opening import open_store
from service.stores.sqlite import SqliteStore
from tests.support.records import created, record

Run = Callable[..., tuple[int, str, str]]
FAR_S = 4e9  # after 2096


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit status, standard output and standard error of a command."""

    def typed(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lstm-serve", "sessions", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            lstm_serve.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return typed


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with three sessions of two owners, and one that has expired; the settings name it."""
    url = f"sqlite:{tmp_path / 'sessions.db'}"
    store = open_store(parse(url), "commit")
    created(store, "a", "b", owner="Ann", ttl_s=FAR_S)
    created(store, "c", owner="Bob", ttl_s=FAR_S, model="other")
    created(store, "old", ttl_s=1.0)
    store.close()
    monkeypatch.setenv("LSTM_SERVE_STORE", url)
    return url


def _known(place: str, id: str) -> object:
    store = open_store(parse(place), "commit")
    known = store.load([id]).get(id)
    store.close()
    return known


def _damage(place: str, id: str) -> None:
    with sqlite3.connect(place.removeprefix("sqlite:")) as db:
        db.execute("UPDATE sessions SET state=x'00' WHERE id=?", (id,))
    db.close()


def test_nothing_is_cut_off(run: Run, place: str) -> None:
    """However narrow the terminal is, or none: ids are copied from there."""
    ids, model = ["0123456789abcdef" * 2, "fedcba9876543210" * 2], "a-model-whose-name-is-long-" * 3
    store = open_store(parse(place), "commit")
    created(store, *ids, owner="Eve", ttl_s=FAR_S, model=model)
    store.close()
    rows = [line.split() for line in run("list", "--owner", "Eve")[1].splitlines()[1:]]
    assert [row[:4] for row in rows] == [[id, "Eve", f"{model}/1", "0"] for id in ids]
    assert all(row[4].endswith("Z") for row in rows)


def test_sessions_are_listed(run: Run, place: str) -> None:
    """Of all or of one owner or model, as a table or as JSON; those that have expired are not."""
    status, table, _ = run("list")
    assert status == 0
    assert [line.split()[:4] for line in table.splitlines()[1:]] == [
        ["a", "Ann", "adder/1", "0"],
        ["b", "Ann", "adder/1", "0"],
        ["c", "Bob", "other/1", "0"],
    ]
    listed = [json.loads(line) for line in run("list", "--json", "--owner", "Ann")[1].splitlines()]
    assert [s["id"] for s in listed] == ["a", "b"]
    assert listed[0] == {
        "id": "a",
        "owner": "Ann",
        "model": "adder",
        "version": "1",
        "created_at": "1970-01-01T00:16:40.000Z",
        "position": 0,
        "expires_at": "2096-10-02T07:23:20.000Z",
    }
    assert [json.loads(line)["id"] for line in run("list", "--json", "--model", "other")[1].splitlines()] == ["c"]


def test_a_long_list_says_that_it_goes_on(run: Run, place: str) -> None:
    """Whoever sees a part knows it."""
    _, out, err = run("list", "--json", "--limit", 2)
    assert (len(out.splitlines()), err) == (2, "the first 2 are listed: --limit lists more\n")
    _, out, err = run("list", "--json", "--limit", 0)
    assert (len(out.splitlines()), err) == (3, "")


def test_a_list_names_what_cannot_be_decoded(run: Run, place: str) -> None:
    """It is not passed over in silence."""
    _damage(place, "b")
    status, out, err = run("list", "--json")
    assert (status, len(out.splitlines())) == (1, 2)
    assert err.startswith("not listed: b: the stored state of the session is damaged")


def test_a_damaged_time_is_listed_as_such(run: Run, place: str) -> None:
    """One owner's list does not read records whole: what stands there is told."""
    with sqlite3.connect(place.removeprefix("sqlite:")) as db:
        db.execute("UPDATE sessions SET expires_at=1e300 WHERE id='b'")
    db.close()
    status, out, _ = run("list", "--owner", "Ann")
    assert (status, "damaged (1e+300)" in out) == (0, True)
    assert run("check")[0] == 1


def test_a_list_that_goes_round_comes_to_an_end(run: Run, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the index of a damaged file may."""
    page = SqliteStore.page
    monkeypatch.setattr(SqliteStore, "page", lambda store, owner, model, _, *more: page(store, owner, model, "", *more))
    assert len(run("list", "--owner", "Ann", "--limit", 0)[1].splitlines()) == 3


def test_a_path_that_cannot_be_looked_at_is_a_sentence(run: Run, tmp_path: Path) -> None:
    """Not a traceback."""
    status, _, err = run("list", "--store", f"sqlite:{tmp_path / ('x' * 300)}")
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot be looked at: File name too long" in err


def test_a_session_is_shown_without_its_state(run: Run, place: str) -> None:
    """Whose it is, where it stands and what it takes, and nothing of what it holds."""
    status, out, _ = run("show", "a", "--json")
    shown = json.loads(out)
    assert status == 0
    assert (shown["owner"], shown["position"], shown["revision"]) == ("Ann", 0, 0)
    assert (shown["state_bytes"], shown["output_bytes"], shown["trace_bytes"], shown["answers_kept"]) == (3, 6, 5, 3)
    status, out, _ = run("show", "a")
    assert status == 0
    assert "state bytes" in out
    assert "digest" not in out


def test_what_is_not_there_is_told(run: Run, place: str) -> None:
    """An unknown session and a damaged one are a sentence and status 1; an ended one is shown with its reason."""
    _damage(place, "b")
    assert run("show", "nobody") == (1, "", "lstm-serve: the store has no session nobody\n")
    status, _, err = run("show", "b")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("lstm-serve: b: the stored state of the session is damaged")
    run("expire", "c")
    assert json.loads(run("show", "c", "--json")[1])["ended"] == "expired"


def test_those_that_have_expired_are_ended(run: Run, place: str) -> None:
    """As a server does by itself, and no other."""
    assert run("expire")[:2] == (0, "1 sessions had expired, and were ended\n")
    assert isinstance(_known(place, "old"), Ended)
    assert isinstance(_known(place, "a"), Record)
    assert run("expire")[:2] == (0, "0 sessions had expired, and were ended\n")


def test_one_session_is_ended_by_its_name(run: Run, place: str) -> None:
    """Whatever its time, and also where it cannot be decoded; twice is told."""
    _damage(place, "b")
    for id in "ab":
        assert run("expire", id)[:2] == (0, f"ended {id}\n")
        assert isinstance(_known(place, id), Ended)
    assert run("expire", "a") == (1, "", "lstm-serve: the store has no session a, or it has ended\n")


def test_a_check_names_what_is_damaged(run: Run, place: str) -> None:
    """Every session is read; the status tells whether all are whole."""
    assert run("check")[:2] == (0, "4 sessions checked, 0 bad\n")
    _damage(place, "b")
    status, out, err = run("check")
    assert (status, out) == (1, "4 sessions checked, 1 bad\n")
    assert "bad: b: the stored state of the session is damaged: its checksum does not fit\n" in err


def test_a_check_names_a_damaged_index(run: Run, place: str) -> None:
    """The session is whole, and would not be found."""
    with sqlite3.connect(place.removeprefix("sqlite:"), isolation_level=None) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name='sqlite_autoindex_sessions_1'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    path = Path(place.removeprefix("sqlite:"))
    content = bytearray(path.read_bytes())
    at = content.index(b"old", (page - 1) * size)
    assert at < page * size
    content[at] ^= 1
    path.write_bytes(content)
    assert _known(place, "old") is None
    status, _, err = run("check")
    assert status == 1
    assert re.search(r"bad: the file: row \d+ missing from index sqlite_autoindex_sessions_1\n", err)


def test_a_check_holds_rows_against_their_models(
    run: Run, place: str, repository: Path, loaded: list[LoadedModel]
) -> None:
    """A row of another size would not be served; sessions of models that are not there are counted, not blamed."""
    fingerprint, size = loaded[0].engine.fingerprint, loaded[0].engine.layout.row_bytes
    store = open_store(parse(place), "commit")
    for id, row in (("fits", bytes(size)), ("short", bytes(size - 1))):
        made = record(id, ttl_s=FAR_S, row=row)
        store.create([replace(made, identity=replace(made.identity, fingerprint=fingerprint))])
    store.close()
    status, out, err = run("check", "--model-repository", repository)
    told = f"6 sessions checked, 1 bad, 4 of models that are not in {repository}\n"
    assert (status, out) == (1, told)
    assert f"bad: short: its row has {size - 1} bytes where its model's rows have {size}\n" in err


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:nowhere.db", "there is no session database at nowhere.db"),
        ("redis://me:secret@", r"store 'redis://\.\.\.@' is none of sqlite:PATH"),
        ("redis://me:secret@127.0.0.1:1/0", "the session store cannot"),
        ("redis://127.0.0.1:1/0", r"the session store cannot \w+( of itself)? now \(ConnectionError\): Error 111"),
    ],
)
def test_a_wrong_store_is_one_sentence(run: Run, url: str, sentence: str, place: str) -> None:
    """Without a stack of calls, without a password, and no file is made where there was none."""
    for command in (["list", "--store", url], ["move", url, place], ["check", "--store", url]):
        status, out, err = run(*command)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert re.match(f"lstm-serve: {sentence}", err)
        assert "secret" not in err
    assert not Path("nowhere.db").exists()


def test_replicas_are_those_of_one_redis(run: Run, place: str, tmp_path: Path) -> None:
    """Asked for elsewhere, they would be promised in silence."""
    status, _, err = run("move", place, f"sqlite:{tmp_path / 'there.db'}", "--replicas", 1)
    assert (status, err) == (2, "lstm-serve: --replicas (1) is for one Redis, not for sqlite\n")


def test_a_file_that_is_no_database_is_one_sentence(run: Run, tmp_path: Path) -> None:
    """It is left as it is."""
    (file := tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at" * 50)
    status, _, err = run("check", "--store", f"sqlite:{file}")
    assert (status, err.count("\n")) == (2, 1)
    assert file.read_text().startswith("not a database")


def test_a_move_between_files(run: Run, place: str, tmp_path: Path) -> None:
    """The count is told, and the file at the destination is made."""
    there = f"sqlite:{tmp_path / 'new' / 'there.db'}"
    assert run("move", place, there)[:2] == (0, "4 sessions moved, 0 left\n")
    assert run("check", "--store", there)[:2] == (0, "4 sessions checked, 0 bad\n")
    assert run("move", there, place, "--keep")[:2] == (0, "4 sessions copied, 0 left\n")
    status, _, err = run("move", place, f"sqlite:{tmp_path / 'new' / '..' / 'sessions.db'}")
    assert (status, err) == (2, "lstm-serve: both are the same store: there is nothing to move\n")
