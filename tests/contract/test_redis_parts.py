"""Several Redis servers: a cluster that changes, and a master that is replaced. Against real servers."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.crc import key_slot

from service.errors import OutcomeUnknown, StoreUnavailable
from service.store_url import parse
from service.stores import redis_node
from service.stores.base import Store
from service.stores.opening import open_store
from service.stores.redis import PREFIX
from tests.support.records import created, kept, moved, plain
from tests.support.redis import RedisServer, Sentinel, cluster, eventually


@pytest.fixture
def servers(redis_cluster: list[RedisServer]) -> list[RedisServer]:
    """Three masters, empty."""
    for server in redis_cluster:
        with server.client() as client:
            client.flushall()
    return redis_cluster


@pytest.fixture
def store(servers: list[RedisServer]) -> Iterator[Store]:
    """A store over them that knows one of them."""
    opened = open_store(parse(f"redis+cluster://127.0.0.1:{servers[0].port}"), "commit")
    yield opened
    opened.close()


def test_sessions_lie_in_all_parts(store: Store, servers: list[RedisServer]) -> None:
    """Each has one key, and so a slot of its own."""
    created(store, *(f"{n:02}" for n in range(64)))
    for server in servers:
        with server.client() as client:
            assert 5 < len(client.keys(f"{PREFIX}:session:*")) < 40


def test_a_slot_that_moves_is_followed(store: Store, servers: list[RedisServer]) -> None:
    """While it is moved, and after, its sessions are loaded and committed as ever, each commit once."""
    key = f"{PREFIX}:session:a"
    slot = key_slot(key.encode())
    (session,) = created(store, "a")
    homes = [server for server in servers if _has(server, key)]
    source = homes[0]
    target = next(server for server in servers if server is not source)
    with source.client() as old, target.client() as new:
        there, here = (client.execute_command("CLUSTER", "MYID").decode() for client in (new, old))
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
        old.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        session, before = moved(session, b"sent on"), session
        assert store.commit([session]) == [True]
        assert store.commit([moved(before, b"again")]) == [False]
        for server in servers:
            with server.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", there)
        assert kept(store, "a") == plain(session)
        assert store.commit([moved(session, b"at home")]) == [True]
        new.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", here)  # back, for the other tests
        old.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", there)
        new.execute_command("MIGRATE", "127.0.0.1", source.port, key, 0, 5000)
        for server in servers:
            with server.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", here)


def test_a_part_that_is_down_fails_its_own_sessions(tmp_path: Path) -> None:
    """The sessions of the other parts are served; the service stays ready; afterwards all are there again."""
    with cluster(tmp_path) as servers:
        store = open_store(parse(f"redis+cluster://127.0.0.1:{servers[0].port}"), "commit")
        records = created(store, *(f"{n:02}" for n in range(32)))
        lost = [_has(servers[2], f"{PREFIX}:session:{r.identity.id}") for r in records]
        servers[2].kill()
        after = [moved(r, b"on") for r in records]
        told = store.commit(after)
        assert [isinstance(kept, StoreUnavailable) for kept in told] == lost
        assert {kept for kept in told if not isinstance(kept, StoreUnavailable)} == {True}
        found = store.load([r.identity.id for r in records])
        assert [isinstance(found[r.identity.id], StoreUnavailable) for r in records] == lost
        store.check()
        store.close()


def test_a_master_that_dies_is_replaced(tmp_path: Path) -> None:
    """Sentinels name the replica instead: what was acknowledged is there, and scripts are known again."""
    for name in ("master", "replica", "sentinel"):
        (tmp_path / name).mkdir()
    with (
        RedisServer(tmp_path / "master", repl_diskless_sync_delay=0) as master,
        RedisServer(tmp_path / "replica", replicaof=f"127.0.0.1 {master.port}") as replica,
        Sentinel(tmp_path / "sentinel", "main", master) as sentinel,
    ):
        replica.follows()
        sentinel.knows_a_replica("main")
        store = open_store(parse(f"redis+sentinel://127.0.0.1:{sentinel.port}/main"), "commit", replicas=1)
        (session,) = eventually(lambda: created(store, "a"))
        assert store.commit([moved(session, b"on")]) == [True]
        store.close()
        store = open_store(parse(f"redis+sentinel://127.0.0.1:{sentinel.port}/main"), "commit")
        session = moved(session, b"on")
        assert store.commit([moved(session, b"stay")]) == [True]
        master.kill()
        with pytest.raises(StoreUnavailable):
            store.load(["a"])
        eventually(store.check)
        found = eventually(lambda: store.load(["a"]))["a"]
        assert plain(found) in (plain(session), plain(moved(session, b"stay")))  # the last one was not waited for
        assert store.commit([moved(found, b"there")]) == [True]  # type: ignore[arg-type]
        with replica.client() as client:
            assert client.role()[0] == b"master"
        store.close()


def test_a_server_that_hangs_holds_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call waits for its limit; those that come meanwhile or soon after are refused at once."""
    monkeypatch.setitem(redis_node._LIMITS, "socket_timeout", 0.2)
    monkeypatch.setattr(redis_node, "PAUSE_S", 1.0)
    with RedisServer(tmp_path) as server:
        store = open_store(parse(server.url), "commit")
        (session,) = created(store, "a")
        server.signal(signal.SIGSTOP)
        with pytest.raises(OutcomeUnknown):
            store.commit([moved(session, b"on")])
        for _ in range(20):
            with pytest.raises(StoreUnavailable, match="a moment ago"):
                store.load(["a"])
        server.signal(signal.SIGCONT)
        eventually(store.check)
        found = store.load(["a"])["a"]
        assert plain(found) in (plain(session), plain(moved(session, b"on")))  # what was sent waited in its socket
        store.close()


def _has(server: RedisServer, key: str) -> bool:
    with server.client() as client:
        return key.encode() in client.keys(f"{PREFIX}:session:*")
