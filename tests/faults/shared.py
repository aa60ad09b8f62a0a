"""Faults of replicas over one Redis, and of the Redis."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.faults.clients import go_on
from tests.faults.running import Run
from tests.support.redis import RedisServer, Sentinel
from tests.support.server import Server
from tests.support.tcp import Proxy

SAFE = {"appendonly": "yes", "appendfsync": "always"}
SERVICE = "sessions"


@contextmanager
def _redis(run: Run) -> Iterator[RedisServer]:
    folder = run.folder / "redis"
    folder.mkdir()
    with RedisServer(folder, **SAFE) as redis:
        yield redis


@contextmanager
def _replicas(run: Run, store: str, **settings: object) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        servers = []
        for n in range(3):
            (run.folder / str(n)).mkdir()
            server = Server(run.folder / str(n), run.models, store=store, tune=False, **settings)
            servers.append(stack.enter_context(server))
        yield servers


def kill_replica(run: Run) -> None:
    """SIGKILL of one replica of three, at random moments."""
    with _redis(run) as redis, _replicas(run, redis.url) as replicas, run.load(*replicas) as crowd:
        for _ in range(run.times(2, 70)):
            time.sleep(run.chance.uniform(0.02, 0.3))
            replica = run.chance.choice(replicas)
            replica.kill()
            replica.start()
            run.done()
        go_on(crowd)


def rolling_restart(run: Run) -> None:
    """One replica of three after the other ends in order and starts again."""
    with _redis(run) as redis, _replicas(run, redis.url) as replicas, run.load(*replicas) as crowd:
        for _ in range(run.times(1, 4)):
            for replica in replicas:
                if status := replica.terminate():
                    run.failed(f"SIGTERM ended with status {status}")
                replica.start()
                run.done()
                go_on(crowd, 10)


def redis_killed(run: Run) -> None:
    """SIGKILL of Redis, which has an append-only file, and a new start."""
    with _redis(run) as redis, run.server(store=redis.url, durability="fsync") as server, run.load(server) as crowd:
        for _ in range(run.times(1, 10)):
            go_on(crowd)
            redis.kill()
            time.sleep(run.chance.uniform(0.1, 1.0))
            redis.start()
            run.done()
            go_on(crowd)


def redis_paused(run: Run) -> None:
    """SIGSTOP of Redis for 3 s, longer than the server waits."""
    with _redis(run) as redis, run.server(store=redis.url) as server, run.load(server) as crowd:
        for _ in range(run.times(1, 5)):
            go_on(crowd)
            redis.signal(signal.SIGSTOP)
            time.sleep(3)
            redis.signal(signal.SIGCONT)
            run.done()
            go_on(crowd)


def redis_slow(run: Run) -> None:
    """SIGSTOP and SIGCONT of Redis in turn: every call takes long, some longer than the server waits."""
    with _redis(run) as redis, run.server(store=redis.url) as server, run.load(server) as crowd:
        for _ in range(run.times(8, 100)):
            redis.signal(signal.SIGSTOP)
            time.sleep(run.chance.choice([0.05, 0.1, 0.3]))
            redis.signal(signal.SIGCONT)
            time.sleep(0.01)
            run.done()
        go_on(crowd)


def redis_cut(run: Run) -> None:
    """The connection to Redis is cut before the request arrives, or before the answer does."""
    with _redis(run) as redis, Proxy(redis.port) as proxy:
        with run.server(store=f"redis://127.0.0.1:{proxy.port}") as server, run.load(server) as crowd:
            for n in range(run.times(4, 100)):
                go_on(crowd, 10)
                proxy.cut = ("before", "after")[n % 2]  # type: ignore[assignment]  # one of both
                time.sleep(run.chance.uniform(0.01, 0.3))
                proxy.cut = None
                run.done()
            go_on(crowd)


def failover(run: Run) -> None:
    """The master is killed, and a replica takes its place; every step waits for one replica."""
    with ExitStack() as stack:
        servers = []
        for name in ("master", "replica", "sentinel"):
            (run.folder / name).mkdir()
        master = stack.enter_context(RedisServer(run.folder / "master", **SAFE))
        following = {"replicaof": f"127.0.0.1 {master.port}"}
        servers.append(stack.enter_context(RedisServer(run.folder / "replica", **SAFE, **following)))
        servers[0].follows()
        sentinel = stack.enter_context(Sentinel(run.folder / "sentinel", SERVICE, master))
        sentinel.knows_a_replica(SERVICE)
        store = f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}"
        server = stack.enter_context(run.server(store=store, store_replicas=1))
        with run.load(server) as crowd:
            go_on(crowd)
            master.kill()
            time.sleep(1)
            master.start()  # the sentinel makes it a replica: without one no step is acknowledged
            run.done()
            go_on(crowd)


FAULTS = (kill_replica, rolling_restart, redis_killed, redis_paused, redis_slow, redis_cut, failover)
