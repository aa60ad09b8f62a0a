"""One Redis or Valkey server, or the master that sentinels name: its connections.

Owns that nobody waits long for a server that is down. Knows nothing of sessions.
"""

import time
from collections.abc import Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from service.errors import OutcomeUnknown, StoreUnavailable
from service.store_url import StoreUrl
from service.stores.redis_link import ANSWER_S, CONNECT_S, PAUSE_S, Command, Script, failed, lost


def options(url: StoreUrl) -> dict[str, Any]:
    """What every connection of redis-py is made with. A call is never repeated below us: it might apply twice."""
    return {
        "username": url.user,
        "password": url.password,
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": ANSWER_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }


def pool_of(url: StoreUrl) -> redis.ConnectionPool:
    """The connections to a server, or to the master of a service; nothing is sent yet."""
    if url.kind == "sentinel":
        limits = {"socket_connect_timeout": CONNECT_S, "socket_timeout": ANSWER_S}
        sentinel = Sentinel(url.nodes, sentinel_kwargs=limits, ssl=url.tls, db=url.db, **options(url))
        pool: redis.ConnectionPool = sentinel.master_for(url.service).connection_pool
        return pool
    ((host, port),) = url.nodes
    secure = {"connection_class": redis.SSLConnection} if url.tls else {}
    return redis.ConnectionPool(host=host, port=port, db=url.db, **options(url), **secure)


class Server:
    """See ``redis_link.Link``. Each call has a connection to itself."""

    def __init__(self, pool: redis.ConnectionPool, scripts: Sequence[Script], replicas: int = 0) -> None:
        """``replicas``: so many have to acknowledge what a script wrote."""
        self._pool = pool
        self._scripts = {script.sha: script for script in scripts}
        self._replicas = replicas
        self._down_until = 0.0

    def run(self, commands: Sequence[Command], doing: str, *, writes: bool = False) -> list[Any]:
        replies = self._tried(commands, doing, writes=writes)
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
        if missing:  # after a restart or a failover: what has not run can be sent again
            shas = {commands[n][1] for n in missing}
            self._tried([("SCRIPT", "LOAD", self._scripts[sha].text) for sha in shas], doing, writes=False)
            replies = self._tried(commands, doing, writes=writes)
        for reply in replies:
            if isinstance(reply, Exception):
                raise failed(doing, reply)
        return replies

    def values(self, keys: Sequence[str], doing: str) -> list[bytes | None]:
        return list(self.run([("MGET", *keys)], doing)[0]) if keys else []

    def over(self, script: Script, keys: Sequence[str], each: Sequence[Any], doing: str, shared: Sequence[Any]) -> Any:
        call = script.call(keys, (*shared, *each))
        if not self._replicas:
            return self.run([call], doing, writes=True)[0]
        told, kept = self.run([call, ("WAIT", self._replicas, int(ANSWER_S * 500))], doing, writes=True)
        if kept < self._replicas:
            raise OutcomeUnknown(
                f"{kept} of the {self._replicas} replicas that store_replicas asks for acknowledged in time: what was "
                "asked may be lost at a failover, or stay; a repeat that names its position is safe"
            )
        return told

    def info(self) -> list[dict[str, str]]:
        (text,) = self.run([("INFO",)], "tell of itself")
        lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
        told = {name: value for name, _, value in lines}
        for name in ("save", "appendfsync"):
            reply = self._tried([("CONFIG", "GET", name)], "tell of itself", writes=False)[0]  # may be forbidden
            if isinstance(reply, list) and len(reply) == 2:
                told[name] = reply[1].decode(errors="replace")
        return [told]

    def close(self) -> None:
        self._pool.disconnect()

    def _tried(self, commands: Sequence[Command], doing: str, *, writes: bool) -> list[Any]:
        """Replies, with errors of the server among them."""
        if time.monotonic() < self._down_until:
            raise StoreUnavailable(f"the session store cannot {doing} now: it could not be reached a moment ago")
        try:
            connection = self._pool.get_connection()
        except (redis.RedisError, OSError) as error:
            self._down_until = time.monotonic() + PAUSE_S
            raise failed(doing, error) from error
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [_read(connection) for _ in commands]
        except (redis.RedisError, OSError) as error:
            self._down_until = time.monotonic() + PAUSE_S
            connection.disconnect()
            raise lost(doing, error, writes=writes) from error
        except BaseException:
            connection.disconnect()  # what is still to be read belongs to nobody
            raise
        finally:
            self._pool.release(connection)


def _read(connection: Any) -> Any:  # noqa: ANN401 - redis-py's replies have no types
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error
