"""Every kind of store, empty and open."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.store_url import parse
from service.stores.base import Store
from service.stores.memory import MemoryStore
from service.stores.opening import open_store
from service.stores.sqlite import SqliteStore
from tests.support.redis import RedisServer, cluster


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server for all of these tests; each begins with it empty."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def _on_redis(request: pytest.FixtureRequest, folder: Path) -> Store:
    server: RedisServer = request.getfixturevalue("redis_server")
    with server.client() as client:
        client.flushall()
    return open_store(parse(server.url), "commit")


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """A cluster of three masters; each test begins with it empty."""
    with cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


def _on_redis_cluster(request: pytest.FixtureRequest, folder: Path) -> Store:
    servers: list[RedisServer] = request.getfixturevalue("redis_cluster")
    for server in servers:
        with server.client() as client:
            client.flushall()
    return open_store(parse(f"redis+cluster://127.0.0.1:{servers[-1].port}"), "commit")


# Each store there is, made in a folder of its own. A new store is added here, and nowhere else in these tests.
STORES: dict[str, Callable[[pytest.FixtureRequest, Path], Store]] = {
    "memory": lambda request, folder: MemoryStore(),
    "sqlite": lambda request, folder: SqliteStore(folder / "sessions.db", fsync=False),
    "sqlite-fsync": lambda request, folder: SqliteStore(folder / "sessions.db", fsync=True),
    "redis": _on_redis,
    "redis-cluster": _on_redis_cluster,
}
UNDIVIDED = [name for name in STORES if name != "redis-cluster"]


@pytest.fixture(params=list(STORES.values()), ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each store, empty."""
    made: Store = request.param(request, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=[STORES[name] for name in UNDIVIDED], ids=UNDIVIDED)
def undivided(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each store that has no parts, empty."""
    made: Store = request.param(request, tmp_path)
    yield made
    made.close()
