"""How sessions end, and how many there are: the second half of the suite over all stores (see test_stores.py)."""

from collections.abc import Sequence

from service.state import Record
from service.stores.base import Ended, Listed, Store
from tests.support.records import START_S, created, kept, moved, plain, walked


def test_an_ended_session_is_remembered_with_the_reason(store: Store) -> None:
    """After its end a session is known as ended: by whom it was owned, why, and when."""
    created(store, "a", owner="me")
    assert store.end("a", "deleted", 7.5)
    assert store.load(["a"]) == {"a": Ended("a", "me", "deleted", 7.5)}


def test_ending_what_is_not_there_says_so(store: Store) -> None:
    """An unknown session cannot be ended, nor one twice; the first reason stays."""
    created(store, "a")
    store.end("a", "deleted", 7.5)
    assert not store.end("a", "expired", 8.5)
    assert not store.end("x", "deleted", 8.5)
    assert store.load(["a", "x"]) == {"a": Ended("a", "", "deleted", 7.5)}


def test_an_ended_session_cannot_be_committed(store: Store) -> None:
    """What is over does not come back by a commit that was under way."""
    (session,) = created(store, "a")
    store.end("a", "deleted", 7.5)
    assert store.commit([moved(session, b"late")]) == [False]
    assert isinstance(store.load(["a"])["a"], Ended)


def expired(store: Store, now: float, limit: int = 100) -> Sequence[str]:
    """What one call ends, in order of ids."""
    return sorted(store.expire(now, limit))


def test_sessions_expire_when_their_time_has_come(store: Store) -> None:
    """Not before ``expires_at``, and at it."""
    created(store, "a", "b", ttl_s=60.0)
    created(store, "c", ttl_s=90.0)
    assert expired(store, START_S + 59.9) == []
    assert expired(store, START_S + 60.0) == ["a", "b"]
    assert store.load(["a"]) == {"a": Ended("a", "", "expired", START_S + 60.0)}
    assert isinstance(store.load(["c"])["c"], Record)
    assert expired(store, START_S + 60.0) == []


def test_a_renewed_session_does_not_expire(store: Store) -> None:
    """A commit puts the end off, again and again; when it does come it is the last one that counts."""
    (session,) = created(store, "a", ttl_s=60.0)
    for n in range(1, 5):
        session = moved(session, b"on", expires_at=START_S + 60.0 + 10 * n)
        store.commit([session])
        assert expired(store, START_S + 60.0 + 10 * n - 1) == []
    assert expired(store, START_S + 100.0) == ["a"]


def test_a_session_may_come_to_expire_sooner(store: Store) -> None:
    """What was committed with an earlier end is ended at the latest when its first end would have come."""
    (session,) = created(store, "a", ttl_s=60.0)
    store.commit([moved(session, b"on", expires_at=START_S + 10.0)])
    assert expired(store, START_S + 60.0) == ["a"]


def test_a_limit_makes_work_short_and_leaves_nothing_out(store: Store) -> None:
    """A call ends about as many as it may; called until it ends none, all are ended."""
    created(store, *[f"{n:03}" for n in range(25)])
    ended: list[str] = []
    while batch := store.expire(START_S + 60.0, 10):
        assert len(batch) <= 10
        ended += batch
    assert sorted(ended) == [f"{n:03}" for n in range(25)]
    assert store.count() == 0


def test_renewed_sessions_do_not_hide_expired_ones(store: Store) -> None:
    """None ended means that none is left, however many with an earlier first end were renewed."""
    renewed = created(store, *[f"{n:03}" for n in range(25)], ttl_s=10.0)
    created(store, "x", ttl_s=20.0)
    store.commit([moved(r, b"on", expires_at=START_S + 100.0) for r in renewed])
    assert store.expire(START_S + 20.0, 10) == ["x"]
    assert store.expire(START_S + 20.0, 10) == []


def test_what_was_forgotten_is_unknown(store: Store) -> None:
    """Memories from before a time are dropped, at most as many as asked for, and counted; later ones stay."""
    created(store, *"abcd")
    for n, id in enumerate("abcd"):
        store.end(id, "deleted", float(n))
    assert store.forget(2.0, 1) == 1
    assert len(store.load([*"abcd"])) == 3
    assert store.forget(2.0, 10) == 1
    assert store.forget(2.0, 10) == 0
    assert set(store.load([*"abcd"])) == {"c", "d"}


def test_forgetting_comes_to_an_end(store: Store) -> None:
    """Called as long as it forgets as many as it may, all are forgotten, in whatever order they ended."""
    created(store, *[f"{n:03}" for n in range(25)])
    for n in range(25):
        store.end(f"{n:03}", "deleted", float(7 * n % 25))
    calls = 1
    while store.forget(100.0, 10) == 10:
        calls += 1
    assert calls == 3
    assert store.load([f"{n:03}" for n in range(25)]) == {}


def test_a_page_leaves_out_what_has_expired(store: Store) -> None:
    """Whether it was swept or not; a page is as long as it may be for all that, and without a time it shows all."""
    created(store, "a", "c", ttl_s=10.0)
    created(store, "b", "d", "e", ttl_s=20.0)
    assert [s.identity.id for s in store.page("", None, "", 2, START_S + 10.0)] == ["b", "d"]
    assert [s.identity.id for s in store.page("", "adder", "d", 2, START_S + 10.0)] == ["e"]
    assert [s.identity.id for s in store.page("", None, "", 2, START_S + 9.9)] == ["a", "b"]
    assert len(store.page("", None, "", 10, 0.0)) == 5


def test_an_id_that_is_over_stays_over_until_it_is_forgotten(store: Store) -> None:
    """Live sessions are never touched by forgetting."""
    created(store, "a")
    store.forget(1e12, 10)
    assert isinstance(store.load(["a"])["a"], Record)


def test_pages_go_through_an_owners_sessions_in_the_order_of_their_ids(store: Store) -> None:
    """Each session once, from the first beyond the cursor on, whoever else has sessions."""
    ids = [f"{n:02x}" for n in range(10)]
    created(store, *reversed(ids), owner="me")
    created(store, "03x", owner="you")
    pages, after = [], ""
    while page := store.page("me", None, after, 4, 0.0):
        pages.append([listed.identity.id for listed in page])
        after = pages[-1][-1]
    assert pages == [ids[:4], ids[4:8], ids[8:]]


def test_a_page_can_be_narrowed_to_a_model(store: Store) -> None:
    """The model counts beside the owner and the cursor."""
    created(store, "a", "c", "e", model="adder")
    created(store, "b", "d", model="poison")
    created(store, "f", model="adder", owner="you")
    assert [s.identity.id for s in store.page("", "adder", "a", 10, 0.0)] == ["c", "e"]
    assert [s.identity.id for s in store.page("", "poison", "", 1, 0.0)] == ["b"]
    assert store.page("", "nobody", "", 10, 0.0) == []
    assert store.page("nobody", None, "", 10, 0.0) == []


def test_a_page_shows_what_is_committed(store: Store) -> None:
    """Identity, position and expiry as of the last commit; ended sessions are gone."""
    first, _ = created(store, "a", "b")
    after = moved(first, b"on", steps=3, expires_at=5_000.0)
    store.commit([after])
    store.end("b", "deleted", 1.0)
    assert store.page("", None, "", 10, 0.0) == [Listed(first.identity, 3, 5_000.0)]


def test_the_count_is_that_of_sessions_kept(store: Store) -> None:
    """Creating counts up; ending, twice too, and expiring count down; commits do not count."""
    assert store.count() == 0
    records = created(store, *"abcd", ttl_s=60.0)
    store.commit([moved(records[0], b"on", expires_at=START_S + 600.0)])
    assert store.count() == 4
    store.end("b", "deleted", 1.0)
    store.end("b", "deleted", 1.0)
    assert store.count() == 3
    store.expire(START_S + 60.0, 10)
    assert store.count() == 1


def test_housekeeping_and_checks_change_nothing(store: Store) -> None:
    """An open store is fine, and stays as it is."""
    (session,) = created(store, "a")
    store.check()
    store.maintain()
    assert kept(store, "a") == plain(session)
    assert store.count() == 1


def test_a_walk_meets_every_session_once_at_least(store: Store) -> None:
    """Whoever owns it; what has ended is not met."""
    ids = [f"{n:02x}" for n in range(25)]
    created(store, *ids[:9], owner="me")
    created(store, *ids[9:])
    store.end("03", "deleted", 1.0)
    assert walked(store) == {*ids} - {"03"}


def test_a_walk_through_an_empty_store_ends(store: Store) -> None:
    """There is nothing to meet."""
    assert walked(store) == set()


def test_what_was_removed_is_unknown(store: Store) -> None:
    """No memory of it stays, nor a place in a listing, nor in the count."""
    records = created(store, "a", "b")
    assert store.remove("a", records[0].revision)
    assert set(store.load(["a", "b"])) == {"b"}
    assert [s.identity.id for s in store.page("", None, "", 10, 0.0)] == ["b"]
    assert (store.count(), walked(store)) == (1, {"b"})
    assert store.expire(START_S + 60.0, 10) == ["b"]


def test_only_what_has_not_moved_is_removed(store: Store) -> None:
    """A session at another revision stays as it is, as does the memory of one that has ended."""
    (session,) = created(store, "a")
    store.commit([moved(session, b"on")])
    assert not store.remove("a", session.revision)
    assert isinstance(store.load(["a"])["a"], Record)
    store.end("a", "deleted", 1.0)
    assert not store.remove("a", 1)
    assert isinstance(store.load(["a"])["a"], Ended)
    assert not store.remove("x", 0)
