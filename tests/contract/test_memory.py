"""What only the store in memory promises: that it does not grow with what is over."""

from service.stores.memory import MemoryStore
from tests.support.records import START_S, created, moved


def test_deleted_sessions_are_not_waited_for() -> None:
    """A session that was deleted leaves nothing behind until its ttl; what is kept still expires in time."""
    store = MemoryStore()
    kept = created(store, "a", "b", ttl_s=100.0)
    store.commit([moved(kept[0], b"on", expires_at=START_S + 200.0)])
    for n in range(1_000):
        created(store, f"{n}", ttl_s=1e6)
        store.end(f"{n}", "deleted", START_S)
    assert len(store._due) <= 2 * store.count() + 1
    assert store.expire(START_S + 150.0, 10) == ["b"]
    assert store.expire(START_S + 200.0, 10) == ["a"]


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    """Neither the memory of an ended session nor its place in the order of time."""
    store = MemoryStore()
    created(store, "a", "b")
    for id in ("b", "a"):
        store.end(id, "deleted", 1.0)
    assert store.forget(2.0, 10) == 2
    assert (store._ended, store._over, store._due) == ({}, [], [])
