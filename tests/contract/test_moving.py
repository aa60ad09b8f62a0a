"""Sessions move between stores of every kind, and each has one home whatever happens on the way."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

import lstm_serve
from service.admin.moving import Move
from service.admin.walking import BATCH, batches
from service.errors import SettingsError, StoreUnavailable
from service.state import Record
from service.store_url import parse
from service.stores.base import Ended, Store
from service.stores.memory import MemoryStore
from service.stores.opening import open_store
from tests.support.fakes import FaultyStore
from tests.support.records import created, kept, moved, plain
from tests.support.redis import RedisServer

Told = list[tuple[str, str]]


def _move(source: Store, target: Store, *, keep: bool = False, replace: bool = False) -> tuple[int, Told]:
    """How many were moved, and what was told of those that were left."""
    told: Told = []
    move = Move(source, target, lambda id, why: told.append((id, why)), keep=keep, replace=replace)
    move.run(lambda count: None)
    assert move.left == len(told)
    return move.moved, told


class Meddling(FaultyStore):
    """A store in which something happens just before a session is dropped."""

    def __init__(self, store: Store, meddle: Callable[[], object]) -> None:
        super().__init__(store)
        self._meddle = meddle

    def remove(self, id: str, revision: int) -> bool:
        """See ``Store``."""
        self._meddle()
        return super().remove(id, revision)


@pytest.fixture
def elsewhere() -> Iterator[Store]:
    """Another store."""
    store = MemoryStore()
    yield store
    store.close()


def test_all_sessions_move_there_and_back(store: Store, elsewhere: Store) -> None:
    """To and from every kind of store, in more than one batch: the same records, each in one of the two."""
    records = created(elsewhere, *[f"{n:04}" for n in range(BATCH + 10)], owner="Zoë")
    expected = {r.identity.id: plain(r) for r in records}
    for source, target in ((elsewhere, store), (store, elsewhere)):
        assert _move(source, target) == (len(records), [])
        assert {id: plain(known) for id, known in target.load(list(expected)).items()} == expected
        assert source.load(list(expected)) == {}
        assert (source.count(), target.count()) == (0, len(records))
        assert sorted(id for ids in batches(target) for id in ids) == sorted(expected)


def test_a_copy_leaves_the_source_as_it_was(store: Store, elsewhere: Store) -> None:
    """``keep``: both have them; asked again, nothing is written twice."""
    (a, b) = created(store, "a", "b")
    for _ in range(2):
        assert _move(store, elsewhere, keep=True) == (2, [])
        assert [kept(s, id) for s in (store, elsewhere) for id in "ab"] == [plain(a), plain(b)] * 2


def test_a_move_that_was_interrupted_goes_on(store: Store, elsewhere: Store) -> None:
    """What is there already and equal is taken as it is, and dropped at its source."""
    records = created(store, "a", "b", "c")
    elsewhere.create(records[:2])
    store.remove("a", records[0].revision)
    assert _move(store, elsewhere) == (2, [])
    assert [kept(elsewhere, id) for id in "abc"] == [plain(r) for r in records]
    assert store.count() == 0


def test_a_store_is_not_moved_into_itself(store: Store) -> None:
    """By whatever name: its sessions would be taken for copies, and dropped. The probe is gone afterwards."""
    (a,) = created(store, "a")
    with pytest.raises(SettingsError, match="the same store"):
        _move(store, store)
    assert kept(store, "a") == plain(a)
    assert store.count() == 1


def test_a_session_that_was_stepped_meanwhile_is_left(store: Store, elsewhere: Store) -> None:
    """It stays where it was stepped, and the copy is withdrawn; the next move takes it."""
    (a,) = created(store, "a")
    steps = iter([moved(a, b"stepped")])
    assert _move(Meddling(store, lambda: store.commit([*steps])), elsewhere) == (0, [("a", "it was stepped meanwhile")])
    assert elsewhere.count() == 0
    assert _move(store, elsewhere) == (1, [])
    assert kept(elsewhere, "a") == plain(moved(a, b"stepped"))


def test_a_session_that_was_ended_meanwhile_is_ended_there(store: Store, elsewhere: Store) -> None:
    """A deletion that was acknowledged is not undone: the copy ends with the same reason."""
    created(store, "a")
    assert _move(Meddling(store, lambda: store.end("a", "deleted", 7.0)), elsewhere) == (0, [])
    assert elsewhere.load(["a"]) == store.load(["a"]) == {"a": Ended("a", "", "deleted", 7.0)}


def test_a_session_that_another_move_took_stays_where_it_went(store: Store, elsewhere: Store) -> None:
    """Of two moves at once neither takes back what the other relies on."""
    (a,) = created(store, "a")
    assert _move(Meddling(store, lambda: store.remove("a", 0)), elsewhere) == (1, [])
    assert kept(elsewhere, "a") == plain(a)


def test_a_session_that_was_stepped_in_both_is_told(store: Store, elsewhere: Store) -> None:
    """Nobody can say which is right: neither is touched, and the sentence says that there are two."""
    (a,) = created(store, "a")

    def step_both() -> None:
        for each in (store, elsewhere):
            each.commit([moved(a, b"stepped")])

    assert _move(Meddling(store, step_both), elsewhere) == (
        0,
        [("a", "it was stepped in both stores meanwhile, and is in both")],
    )
    assert kept(store, "a") == kept(elsewhere, "a") == plain(moved(a, b"stepped"))


def test_a_session_that_the_destination_has_otherwise_is_left(store: Store, elsewhere: Store) -> None:
    """An older copy is replaced only where that is asked for; one that has moved on, or ended, never is."""
    a, b, _ = created(store, "a", "b", "c")
    elsewhere.create([a, moved(b, b"theirs")])
    created(elsewhere, "c")
    elsewhere.end("c", "deleted", 5.0)
    store.commit([moved(a, b"ours")])
    moved_count, told = _move(store, elsewhere)
    assert (moved_count, sorted(told)) == (
        0,
        [
            ("a", "the destination has an earlier copy, at position 0: --replace replaces it"),
            ("b", "the destination has it at position 1, this store at 0"),
            ("c", "it has ended (deleted) at the destination"),
        ],
    )
    moved_count, told = _move(store, elsewhere, replace=True)
    assert moved_count == 1
    assert {id for id, _ in told} == {"b", "c"}
    assert kept(elsewhere, "a") == plain(moved(a, b"ours"))
    assert kept(elsewhere, "b") == plain(moved(b, b"theirs"))
    assert set(store.load([*"abc"])) == {"b", "c"}


def test_a_copy_that_went_further_is_left(store: Store, elsewhere: Store) -> None:
    """Revisions leap at random: of two histories the one with the smaller revision may be the longer one."""
    (a,) = created(store, "a")
    ours, theirs = moved(a, b"ours"), moved(a, b"theirs", steps=3)
    elsewhere.create([theirs])
    store.commit([replace(ours, revision=ours.revision + 100, leap=101)])
    left = "the destination has it at position 3, this store at 1"
    assert _move(store, elsewhere, replace=True) == (0, [("a", left)])
    assert kept(elsewhere, "a") == plain(theirs)


def test_a_destination_that_cannot_be_written_costs_nothing(store: Store) -> None:
    """Nothing is dropped that was not read back."""
    (a,) = created(store, "a")
    broken = FaultyStore(MemoryStore())
    broken.create = lambda records: None  # type: ignore[method-assign]  # it says that it keeps, and keeps nothing
    assert _move(store, broken) == (0, [("a", "what was read back at the destination is not what was written")])
    failing = FaultyStore(MemoryStore())
    failing.commits_fail = True
    with pytest.raises(StoreUnavailable):
        _move(store, failing)
    assert kept(store, "a") == plain(a)


def test_from_a_file_to_redis_and_back(redis_server: RedisServer, tmp_path: Path) -> None:
    """As it is typed: the same sessions, and what cannot be decoded is named and left where it is."""
    with redis_server.client() as client:
        client.flushall()
    before, after = f"sqlite:{tmp_path / 'before.db'}", f"sqlite:{tmp_path / 'after.db'}"
    file = open_store(parse(before), "commit")
    records = created(file, *"abcde")
    file.close()
    run = CliRunner().invoke
    there = run(lstm_serve.app, ["sessions", "move", before, redis_server.url])
    assert (there.exit_code, there.stdout) == (0, "5 sessions moved, 0 left\n")
    assert "warning: " in there.stderr  # the server has no log of its own
    with redis_server.client() as client:
        key = "lstm-serve:session:c"
        client.set(key, client.get(key)[:-1] + b"!")
    back = run(lstm_serve.app, ["sessions", "move", redis_server.url, after])
    assert (back.exit_code, back.stdout) == (1, "4 sessions moved, 1 left\n")
    assert "left: c: the stored state of the session is damaged" in back.stderr
    file, redis = open_store(parse(after), "commit"), open_store(parse(redis_server.url), "commit")
    expected = {r.identity.id: plain(r) for r in records if r.identity.id != "c"}
    assert {id: plain(known) for id, known in file.load([*"abcde"]).items()} == expected
    assert not isinstance(redis.load(["c"])["c"], Record)
    file.close()
    redis.close()
