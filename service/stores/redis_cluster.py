"""A Redis Cluster: every key is asked for at the node that has it, all of a call in one round trip."""

from collections.abc import Sequence
from typing import Any

import redis
from redis.cluster import ClusterNode, RedisCluster

from service.store_url import StoreUrl
from service.stores.redis_link import Command, Script, failed, lost
from service.stores.redis_server import options


class Cluster:
    """See ``redis_link.Link``. Connects at the first call, so that a service may start before its cluster."""

    def __init__(self, url: StoreUrl, scripts: Sequence[Script]) -> None:
        self._url = url
        self._scripts = scripts
        self._known: RedisCluster | None = None

    def run(self, commands: Sequence[Command], doing: str, *, writes: bool = False) -> list[Any]:
        if not commands:
            return []
        cluster = self._cluster(doing)
        replies = self._tried(cluster, commands, doing, writes=writes)
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
        if missing:  # a new node: what has not run can be sent again
            self._load_scripts(cluster, doing)
            again = self._tried(cluster, [commands[n] for n in missing], doing, writes=writes)
            for n, reply in zip(missing, again, strict=True):
                replies[n] = reply
        for reply in replies:
            if isinstance(reply, (redis.ConnectionError, redis.TimeoutError, OSError)):
                raise lost(doing, reply, writes=writes)
            if isinstance(reply, Exception):  # of a call to several nodes others may have done their part
                raise lost(doing, reply, writes=writes and len(commands) > 1)
        return replies

    def values(self, keys: Sequence[str], doing: str) -> list[bytes | None]:
        return self.run([("GET", key) for key in keys], doing)

    def over(self, script: Script, keys: Sequence[str], each: Sequence[Any], doing: str, shared: Sequence[Any]) -> Any:
        per = len(each) // max(1, len(keys))
        calls = [script.call([key], (*shared, *each[n * per : (n + 1) * per])) for n, key in enumerate(keys)]
        return [told[0] for told in self.run(calls, doing, writes=True)]

    def info(self) -> list[dict[str, str]]:
        cluster = self._cluster("tell of itself")
        try:
            told = cluster.info(target_nodes=RedisCluster.PRIMARIES)
            found = [{name: str(value) for name, value in node.items()} for node in told.values()]
        except (redis.RedisError, OSError) as error:
            raise failed("tell of itself", error) from error
        return found

    def close(self) -> None:
        if self._known is not None:
            self._known.close()

    def _cluster(self, doing: str) -> RedisCluster:
        if self._known is None:
            nodes = [ClusterNode(host, port) for host, port in self._url.nodes]
            try:
                self._known = RedisCluster(
                    startup_nodes=nodes, ssl=self._url.tls, cluster_error_retry_attempts=1, **options(self._url)
                )
            except (redis.RedisError, OSError) as error:
                raise failed(doing, error) from error
            self._load_scripts(self._known, doing)
        return self._known

    def _load_scripts(self, cluster: RedisCluster, doing: str) -> None:
        try:
            for script in self._scripts:
                cluster.script_load(script.text)
        except (redis.RedisError, OSError) as error:
            raise failed(doing, error) from error

    def _tried(self, cluster: RedisCluster, commands: Sequence[Command], doing: str, *, writes: bool) -> list[Any]:
        pipeline = cluster.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            return list(pipeline.execute(raise_on_error=False))
        except (redis.RedisError, OSError) as error:
            raise lost(doing, error, writes=writes) from error
