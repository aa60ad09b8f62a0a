"""What the Redis store promises beyond the contract, against a real server."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import OutcomeUnknown, StoreUnavailable, UndecodableState
from service.items import Item, Part, Stepped, next_record
from service.state import Record
from service.store_url import parse
from service.stores import redis_server, redis_value
from service.stores.base import Ended, Store
from service.stores.opening import open_store
from service.stores.redis import SPARE_S
from service.views import View
from tests.support.records import START_S, created, ends_none_that_is_damaged, kept, moved, plain, record, walked
from tests.support.redis import RedisServer, eventually, free_port
from tests.support.tcp import Proxy


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    """The server that these tests share, empty."""
    with redis_server.client() as client:
        client.flushall()
        client.script_flush()
    return redis_server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """The way to it."""
    with Proxy(server.port) as running:
        yield running


@pytest.fixture
def store(proxy: Proxy) -> Iterator[Store]:
    """A store over the proxy."""
    opened = open_store(parse(f"redis://127.0.0.1:{proxy.port}"), "commit")
    yield opened
    opened.close()


def test_a_tick_is_one_round_trip(store: Store, proxy: Proxy) -> None:
    """However many sessions are committed, or loaded, the server is asked once."""
    records = created(store, *(f"{n:03}" for n in range(64)))
    store.commit([moved(r, b"on") for r in records])  # makes the scripts known
    before = proxy.round_trips
    assert store.commit([moved(moved(r, b"on"), b"and on") for r in records]) == [True] * 64
    assert proxy.round_trips == before + 1
    assert len(store.load([r.identity.id for r in records])) == 64
    assert proxy.round_trips == before + 2


def test_an_answer_that_is_lost_is_told_as_such(store: Store, proxy: Proxy) -> None:
    """The commit came through, nobody knows; the store is asked again at once, and tells."""
    (session,) = created(store, "a")
    after = moved(session, b"on")
    proxy.cut = "after"
    with pytest.raises(OutcomeUnknown, match="may have been applied"):
        store.commit([after])
    proxy.cut = None
    assert kept(store, "a") == plain(after)
    assert store.commit([after]) == [False]


def test_a_commit_that_never_arrived_is_told_the_same(store: Store, proxy: Proxy) -> None:
    """It cannot be told apart; the session stays as it was, and the commit can be sent again."""
    (session,) = created(store, "a")
    proxy.cut = "before"
    with pytest.raises(OutcomeUnknown):
        store.commit([moved(session, b"on")])
    with pytest.raises(StoreUnavailable) as lost:
        store.load(["a"])
    assert not isinstance(lost.value, OutcomeUnknown)
    proxy.cut = None
    eventually(store.check)
    assert kept(store, "a") == plain(session)
    assert store.commit([moved(session, b"on")]) == [True]


def test_a_server_that_forgot_the_scripts_is_taught_them(store: Store, server: RedisServer) -> None:
    """After a restart or a failover a script is unknown: it is loaded, and what was asked is done once."""
    (session,) = created(store, "a")
    with server.client() as client:
        client.script_flush()
    assert store.commit([moved(session, b"on")]) == [True]


def test_a_connection_that_went_stale_is_made_anew(store: Store, server: RedisServer) -> None:
    """What the server closed while nobody spoke, costs no request."""
    (session,) = created(store, "a")
    with server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
        while len(client.client_list()) > 1:  # it says yes before it has closed them
            time.sleep(0.001)
    assert store.commit([moved(session, b"on")]) == [True]


def test_the_server_drops_by_itself_what_is_long_over(store: Store, server: RedisServer) -> None:
    """Should no service run, a session leaves the server a day after its ttl; each commit renews that."""
    (session,) = created(store, "a", ttl_s=60.0)
    with server.client() as client:
        (key,) = client.keys("*:session:a")
        client.pexpire(key, 1000)
        store.commit([moved(session, b"on")])
        assert SPARE_S < client.pttl(key) / 1000 <= SPARE_S + 60.0


def test_names_of_sessions_that_the_server_dropped_are_tidied_up(store: Store, server: RedisServer) -> None:
    """A sweep takes what has gone by itself out of every index."""
    created(store, "a", owner="me")
    with server.client() as client:
        client.delete(*client.keys("*:session:a"))
        assert store.expire(START_S + 60.0, 10) == []
        assert [key for key in client.keys("*") if b":letters:" not in key] == []
    assert store.count() == 0


def test_an_end_whose_rest_was_lost_is_finished_by_the_sweep(store: Store, server: RedisServer) -> None:
    """A memory that no index names would stay for ever: the sweep notes it when the session's time has come."""
    created(store, "a", owner="me")
    with server.client() as client:
        before = {
            key: client.zrange(key, 0, -1, withscores=True)
            for key in client.keys("*")
            if b":ses" not in key and b":letters:" not in key
        }
        store.end("a", "deleted", START_S)
        client.delete(*client.keys("*:over:*"))
        for key, members in before.items():
            client.zadd(key, dict(members))
    assert store.expire(START_S + 60.0, 10) == []
    assert store.page("me", None, "", 10, 0.0) == []
    assert (store.count(), store.forget(START_S + 100.0, 10)) == (0, 1)
    assert store.load(["a"]) == {}


@pytest.mark.parametrize("value", [b"", b"garbage", b"S" + b"\0" * 40, b"E123"])
def test_foreign_bytes_are_named(store: Store, server: RedisServer, value: bytes) -> None:
    """What stands under a session's key and is no session, is an error and is left alone."""
    created(store, "a", "b")
    with server.client() as client:
        (key,) = client.keys("*:session:a")
        client.set(key, value)
        found = store.load(["a", "b"])
        assert isinstance(found["a"], UndecodableState)
        assert plain(found["b"]) == plain(record("b"))
        assert client.get(key) == value


def test_a_server_that_fell_back_is_not_overwritten(tmp_path: Path) -> None:
    """A replica that has what the server lost finds no revision of its own there, however far others went on."""
    with RedisServer(tmp_path) as server, server.client() as client:
        stale, fresh = (open_store(parse(server.url), "commit") for _ in range(2))
        (lost,) = created(stale, "a")
        (key,) = client.keys("*:session:a")
        before = client.get(key)
        lost = _stepped(lost, b"lost")
        assert stale.commit([lost]) == [True]
        client.set(key, before)  # as after a failover, or a restart from a snapshot
        found = fresh.load(["a"])["a"]
        assert isinstance(found, Record)
        acknowledged = _stepped(found, b"acknowledged")
        assert fresh.commit([acknowledged]) == [True]
        assert acknowledged.position == lost.position
        assert stale.commit([_stepped(lost, b"more")]) == [False]
        assert kept(fresh, "a") == plain(acknowledged)
        stale.close()
        fresh.close()


def _stepped(before: Record, row: bytes) -> Record:
    """The next record as the service makes it."""
    item = Item(row=row, parts=(Part(1, View(), b"digest"),))
    return next_record(before, item, Stepped(row, b"output", ({},)), START_S, 1000)


def test_a_key_of_another_type_fails_its_own_session_only(store: Store, server: RedisServer) -> None:
    """A script that stopped there would have kept what came before it, and would tell all that nothing was."""
    before, foreign, behind = created(store, "a", "b", "c")
    with server.client() as client:
        (key,) = client.keys("*:session:b")
        client.delete(key)
        client.lpush(key, "not ours")
        assert store.commit([moved(r, b"on") for r in (before, foreign, behind)]) == [True, False, True]
        assert [plain(r) for r in store.load(["a", "b", "c"]).values()] == [
            plain(moved(r, b"on")) for r in (before, behind)
        ]
        assert not store.end("b", "deleted", START_S)
        assert store.expire(START_S + 1e6, 10) == ["a", "c"]
        assert client.lrange(key, 0, -1) == [b"not ours"]


def test_flipped_bytes_are_noticed(store: Store, server: RedisServer) -> None:
    """A row of which one bit has flipped does not pass its checksum."""
    created(store, "a")
    with server.client() as client:
        (key,) = client.keys("*:session:a")
        value = client.get(key)
        at = value.index(b"row")
        client.setrange(key, at, bytes([value[at] ^ 1]))
    assert isinstance(store.load(["a"])["a"], UndecodableState)


def test_a_damaged_time_ends_no_session(store: Store, server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is it forgotten."""

    def damage() -> None:
        with server.client() as client:
            client.setrange("lstm-serve:session:b", 17, redis_value.time(1.0))  # in its head
            (key,) = [key for key in client.keys("*:due:*") if client.zscore(key, "b adder/") is not None]
            client.zadd(key, {"b adder/": 1.0})

    ends_none_that_is_damaged(store, damage, caplog)


def test_a_full_server_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    """At maxmemory with noeviction commits are refused by name; nothing is dropped, and all is as it was."""
    with RedisServer(tmp_path) as server, server.client() as client:
        store = open_store(parse(server.url), "commit")
        (session,) = created(store, "a")
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="OutOfMemory") as full:
            store.commit([moved(session, b"on")])
        assert not isinstance(full.value, OutcomeUnknown)
        with pytest.raises(StoreUnavailable):
            store.check()
        assert kept(store, "a") == plain(session)
        client.config_set("maxmemory", 0)
        assert store.commit([moved(session, b"on")]) == [True]
        store.close()


def test_a_full_server_can_be_emptied(tmp_path: Path) -> None:
    """Sessions end there all the same, which makes the room that the memory of their end takes."""
    with RedisServer(tmp_path) as server, server.client() as client:
        store = open_store(parse(server.url), "commit")
        store.create([record(id, row=bytes(200_000)) for id in "abc"])
        store.check()
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 100_000)
        with pytest.raises(StoreUnavailable, match="OutOfMemory"):
            store.check()
        assert store.end("a", "deleted", START_S)
        store.check()
        client.config_set("maxmemory", 1)
        assert store.end("b", "deleted", START_S)  # it has ended, and is not noted yet
        with pytest.raises(StoreUnavailable, match="OutOfMemory"):
            store.expire(START_S + 1000.0, 10)
        assert all(isinstance(store.load([id])[id], Ended) for id in "bc")
        client.config_set("maxmemory", 0)
        assert store.expire(START_S + 1000.0, 10) == []  # the rest is done
        assert store.forget(START_S + 2000.0, 10) == 3
        assert client.keys("*:session:*") == client.keys("*:due:*") == []
        store.close()


def test_names_that_are_none_of_ours_are_taken_out(store: Store, server: RedisServer) -> None:
    """Of the sets that are swept, once: whatever somebody put there, or in another set than we would."""
    created(store, "a", "b")
    with server.client() as client:
        found = [(key, name) for key in client.keys("*:due:*") for name in client.zrange(key, 0, -1)]
        bucket, of_a = next((key, name) for key, name in found if name.startswith(b"a"))
        others = [key for n in range(16) if (key := f"lstm-serve:due:{n}").encode() != bucket]
        for key in others[:3]:
            client.zadd(key, {b"garbage": 1, b"\xff\xfe": 2, of_a: 3})
            client.zadd(key.replace("due", "over"), {b"garbage": 1, b"\xff\xfe": 2, b"a": 3})
        assert {"a", "b"} <= walked(store)
        assert sorted(store.expire(START_S + 1000.0, 100)) == ["a", "b"]
        assert store.expire(START_S + 1000.0, 100) == []
        assert store.forget(START_S + 2000.0, 100) == 2
        assert client.keys("*:due:*") == client.keys("*:over:*") == []


def test_what_may_lose_sessions_is_warned_of(tmp_path: Path) -> None:
    """Eviction, missing persistence and replicas that are not there are named, each in a sentence."""
    with RedisServer(tmp_path) as server, server.client() as client:
        store = open_store(parse(server.url), "commit", replicas=2)
        client.config_set("maxmemory-policy", "allkeys-lru")
        evicts, forgets, replicas = store.warnings()
        assert "maxmemory-policy is allkeys-lru" in evicts
        assert "nothing on disk" in forgets
        assert "0 connected replicas" in replicas
        store.close()
        store = open_store(parse(server.url), "commit")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("save", "60 1")
        assert ["snapshots only" in warning for warning in store.warnings()] == [True]
        client.config_set("appendonly", "yes")
        assert store.warnings() == []
        client.config_set("appendfsync", "no")
        assert ["appendfsync is no" in warning for warning in store.warnings()] == [True]
        store.close()


def test_settings_that_may_not_be_looked_at_are_named(tmp_path: Path) -> None:
    """Where CONFIG is forbidden, the warning says that it could not be asked."""
    with RedisServer(tmp_path) as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-config")
        store = open_store(parse(f"redis://app:secret@127.0.0.1:{server.port}"), "commit")
        assert ["cannot be asked for" in warning for warning in store.warnings()] == [True]
        store.close()


def test_fsync_is_refused_where_the_server_does_not_promise_it(tmp_path: Path) -> None:
    """Nothing is committed, and the service is not ready, until the server syncs its log at every commit."""
    with RedisServer(tmp_path, appendonly="yes", appendfsync="everysec") as server, server.client() as client:
        store = open_store(parse(server.url), "fsync")
        with pytest.raises(StoreUnavailable, match="appendfsync always"):
            store.check()
        with pytest.raises(StoreUnavailable, match="appendfsync always"):
            created(store, "a")
        (warning,) = store.warnings()
        assert "appendfsync always" in warning
        assert "no step can be acknowledged" in warning
        client.config_set("appendfsync", "always")
        store.check()
        assert store.warnings() == []
        client.config_set("appendfsync", "everysec")
        assert "no step can be acknowledged" in store.warnings()[0]  # as at every sweep
        with pytest.raises(StoreUnavailable, match="appendfsync always"):
            store.create([record("b")])
        client.config_set("appendfsync", "always")
        store.create([record("b")])
        (session,) = created(store, "a")
        assert store.commit([moved(session, b"on")]) == [True]
        store.close()


def test_replicas_have_what_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without enough of them nothing is acknowledged, not even by reading what was committed; with them it is."""
    monkeypatch.setattr(redis_server, "WAIT_MS", 50)
    for name in ("master", "replica"):
        (tmp_path / name).mkdir()
    with RedisServer(tmp_path / "master", repl_diskless_sync_delay=0) as master:
        store = open_store(parse(master.url), "commit", replicas=1)
        alone = open_store(parse(master.url), "commit")
        (session,) = created(alone, "a")
        with pytest.raises(OutcomeUnknown, match="0 of the 1 replicas"):
            store.commit([moved(session, b"on")])
        for call in (lambda: store.load(["a"]), store.check):
            with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
                call()
        with RedisServer(tmp_path / "replica", replicaof=f"127.0.0.1 {master.port}") as replica:
            replica.follows()
            eventually(store.check)  # it acknowledges at the latest a second after it follows
            assert kept(store, "a") == plain(moved(session, b"on"))
            assert store.commit([moved(moved(session, b"on"), b"and on")]) == [True]
            store.check()
        store.close()
        alone.close()


def test_what_the_docs_ask_for_in_an_acl_is_enough(tmp_path: Path) -> None:
    """A user who may do what docs/redis.md lists, and nothing else, can be the service's."""
    text = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    allowed = re.findall(r"\+[\w|]+", text[text.index("An ACL needs") : text.index("## What an ack")])
    with RedisServer(tmp_path) as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~lstm-serve:*", *allowed)
        store = open_store(parse(f"redis://app:secret@127.0.0.1:{server.port}/1"), "commit")
        store.check()
        first, second, third = created(store, "a", "b", "c")
        assert store.commit([moved(first, b"on")]) == [True]
        assert store.end("a", "deleted", START_S)
        assert store.remove("b", second.revision)
        assert [listed.identity for listed in store.page("", None, "", 10, 0.0)] == [third.identity]
        assert store.walk("", 10)[0] + store.expire(START_S + 60.0, 10) != []
        assert (store.forget(START_S + 100.0, 10), store.count(), len(store.warnings())) == (2, 0, 1)
        store.close()


def test_tls_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose certificate no known authority has signed is not spoken to; with the right one it is."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    request += ["-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", *request], cwd=tmp_path, check=True, capture_output=True)
    cert = tmp_path / "cert.pem"
    secure = {"tls_cert_file": cert, "tls_key_file": tmp_path / "key.pem", "tls_ca_cert_file": cert}
    port = free_port()
    with RedisServer(tmp_path, tls_port=port, tls_auth_clients="no", **secure):
        url = parse(f"rediss://127.0.0.1:{port}")
        store = open_store(url, "commit")
        with pytest.raises(StoreUnavailable):
            store.check()
        store.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        store = open_store(url, "commit")
        store.check()
        store.close()
