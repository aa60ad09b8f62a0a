"""One suite over all stores: each sentence of ``service/stores/base.py``, held to the letter."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from service.state import Record
from service.stores.base import Ended, Store
from tests.support.records import created, kept, moved, plain, record


def test_what_was_created_is_loaded_as_it_was(store: Store) -> None:
    """Every field comes back: identity, position, revision, bytes, answers of every shape, expiry."""
    records = [record("a", owner="Zoë", row=bytes(range(256)), position=2**40), record("b", row=b"", ttl_s=0.125)]
    store.create(records)
    assert [kept(store, r.identity.id) for r in records] == [plain(r) for r in records]


def test_answers_come_without_their_ordinals(store: Store) -> None:
    """An ordinal belongs to a live session and means nothing to the next one."""
    before = record("a")
    numbered = [replace(answer, ordinal=5 + n) for n, answer in enumerate(before.answers)]
    store.create([replace(before, answers=tuple(numbered))])
    loaded = store.load(["a"])["a"]
    assert isinstance(loaded, Record)
    assert {answer.ordinal for answer in loaded.answers} == {-1}


def test_a_load_answers_for_what_it_was_asked(store: Store) -> None:
    """Each known id once, and nothing for ids that nobody knows."""
    created(store, "a", "b", "c")
    assert set(store.load(["a", "c", "x"])) == {"a", "c"}
    assert store.load(["x"]) == {}
    assert store.load([]) == {}


def test_many_sessions_are_loaded_at_once(store: Store) -> None:
    """As many as the arena asks for in one call."""
    ids = [f"{n:04}" for n in range(300)]
    created(store, *ids)
    store.end("0007", "deleted", 5.0)
    found = store.load([*ids, "unknown"])
    assert len(found) == 300
    assert isinstance(found["0007"], Ended)
    assert sum(isinstance(known, Record) for known in found.values()) == 299


def test_loaded_sessions_have_their_names_in_common(store: Store) -> None:
    """Of the model and the fingerprint, which thousands of live sessions share, memory holds one each."""
    created(store, "a", "b")
    found = [known.identity for known in store.load(["a", "b"]).values() if isinstance(known, Record)]
    assert [len({id(getattr(i, name)) for i in found}) for name in ("model", "fingerprint")] == [1, 1]
    assert len(found) == 2


def test_an_expired_session_that_was_not_swept_is_loaded(store: Store) -> None:
    """Time is the caller's: a store ends nothing by itself."""
    created(store, "a", ttl_s=-1_000_000.0)
    assert isinstance(store.load(["a"])["a"], Record)


def test_a_commit_keeps_the_next_record(store: Store) -> None:
    """What was committed is what is loaded: all of it, and nothing of the record before."""
    (before,) = created(store, "a")
    after = all_changed(before)
    assert store.commit([after]) == [True]
    assert kept(store, "a") == plain(after)


def all_changed(before: Record) -> Record:
    """The next record, with every part that can change changed."""
    return Record(before.identity, 77, before.revision + 1, b"next", b"out", before.answers[:1], 5_000.0)


def test_a_commit_of_a_session_that_has_moved_keeps_nothing(store: Store) -> None:
    """Compare and set: of two that started from one record the second is refused, and nothing of it is seen."""
    (before,) = created(store, "a")
    winner, loser = moved(before, b"winner"), moved(before, b"loser")
    assert store.commit([winner]) == [True]
    assert store.commit([loser]) == [False]
    assert kept(store, "a") == plain(winner)


@pytest.mark.parametrize("revision", [0, 2, 9])
def test_a_commit_names_the_next_revision(store: Store, revision: int) -> None:
    """A revision that is not one more than the kept one is refused, also one from the future, also a repeat."""
    (before,) = created(store, "a")
    other = Record(before.identity, 1, revision, b"other", b"", (), 9.0)
    assert store.commit([other]) == [False]
    assert kept(store, "a") == plain(before)


def test_revisions_may_leap(store: Store) -> None:
    """What a commit names is the revision that it started from, however far the next one is."""
    (before,) = created(store, "a")
    far = replace(moved(before, b"far"), revision=2**40, leap=2**40)
    other = replace(moved(before, b"other"), revision=2**40, leap=2**40 - 1)
    assert store.commit([other]) == [False]
    assert store.commit([far]) == [True]
    assert kept(store, "a") == plain(far)


def test_revisions_are_compared_and_not_positions(store: Store) -> None:
    """A session that was reset stands at position 0 again, and still refuses who started before."""
    (before,) = created(store, "a")
    forward = moved(before, b"forward")
    back = moved(forward, b"back", steps=-1)
    assert store.commit([forward]) == [True]
    assert store.commit([back]) == [True]
    assert back.position == before.position
    assert store.commit([moved(before, b"late")]) == [False]


def test_in_a_batch_only_those_that_moved_are_refused(store: Store) -> None:
    """Each record of a commit stands for itself: the others are kept, whatever the order."""
    records = created(store, *"abcde")
    store.commit([moved(records[1], b"elsewhere")])
    store.end("d", "deleted", 5.0)
    stranger = record("x")
    batch = [*[moved(r, b"mine") for r in records], moved(stranger, b"mine")]
    assert store.commit(batch) == [True, False, True, False, True, False]
    assert [known.row for known in store.load([*"abc", "e"]).values() if isinstance(known, Record)] == [
        b"mine",
        b"elsewhere",
        b"mine",
        b"mine",
    ]
    assert isinstance(store.load(["d"])["d"], Ended)
    assert store.load(["x"]) == {}


def test_a_large_batch_is_one_commit(store: Store) -> None:
    """A full tick of sessions is kept in one call."""
    records = created(store, *[f"{n:03}" for n in range(256)])
    assert store.commit([moved(r, b"next") for r in records]) == [True] * 256


def test_of_concurrent_writers_one_wins_each_time(store: Store) -> None:
    """From several threads at once: every commit that was told to be kept is in the final revision, once."""
    (session,) = created(store, "a")
    created(store, *"bcd")
    wins: list[int] = []
    start = threading.Barrier(4)

    def write(writer: int) -> None:
        start.wait(timeout=10)
        for _ in range(20):
            seen = store.load(["a"])["a"]
            assert isinstance(seen, Record)
            if store.commit([moved(seen, bytes([writer]))]) == [True]:
                wins.append(writer)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(write, n) for n in range(4)]:
            done.result(timeout=30)
    final = store.load(["a"])["a"]
    assert isinstance(final, Record)
    assert final.revision == session.revision + len(wins)
    assert len(wins) >= 20


def test_readers_do_not_see_half_a_commit(undivided: Store) -> None:
    """Sessions committed together are seen together moved, or neither."""
    pair = created(undivided, "a", "b")
    stop = threading.Event()
    torn: list[tuple[int, int]] = []

    def read() -> None:
        while not stop.is_set():
            found = undivided.load(["a", "b"])
            one, other = found["a"], found["b"]
            assert isinstance(one, Record)
            assert isinstance(other, Record)
            if one.revision != other.revision:
                torn.append((one.revision, other.revision))

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        for _ in range(50):
            pair = [moved(r, b"next") for r in pair]
            undivided.commit(pair)
        stop.set()
        reading.result(timeout=10)
    assert torn == []
