"""A store by its place: the one door through which stores are opened."""

from pathlib import Path
from typing import Literal

from service.store_url import StoreUrl
from service.stores.base import Store
from service.stores.memory import MemoryStore

Durability = Literal["memory", "commit", "fsync"]


def open_store(url: StoreUrl, durability: Durability, replicas: int = 0) -> Store:
    """The store at a place. What it does not need is not imported.

    ``replicas``: of Redis, how many have to acknowledge a commit.

    Raises:
        StoreUnavailable: a file cannot be opened. Servers are not asked yet: they may start later than we do.
    """
    if durability == "memory":
        return MemoryStore()
    if url.kind == "sqlite":
        from service.stores.sqlite import SqliteStore

        return SqliteStore(Path(url.path), fsync=durability == "fsync")
    from service.stores.redis import SCRIPTS, RedisStore
    from service.stores.redis_cluster import Cluster
    from service.stores.redis_link import Link
    from service.stores.redis_node import Node, pool_at, pool_of_master
    from service.stores.redis_server import Server

    link: Link
    if url.kind == "cluster":
        link = Cluster(url, SCRIPTS)
    else:
        pool = pool_of_master(url) if url.kind == "sentinel" else pool_at(url, *url.nodes[0])
        link = Server(Node(pool), SCRIPTS, replicas)
    return RedisStore(link, fsync=durability == "fsync", replicas=replicas)
