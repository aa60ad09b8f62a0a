"""One Redis or Valkey server, and the connections to it.

Owns that nobody waits long for a server that is down, and that a call is sent once: whoever repeats one below the store
might apply it twice. Knows nothing of sessions.
"""

import time
from collections.abc import Sequence
from typing import Any, NoReturn

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError
from redis.retry import Retry
from redis.sentinel import Sentinel

from service.errors import StoreUnavailable
from service.store_url import StoreUrl
from service.stores.redis_link import ANSWER_S, CONNECT_S, PAUSE_S, Command, failed, lost

_LIMITS = {"socket_connect_timeout": CONNECT_S, "socket_timeout": ANSWER_S}


def pool_at(url: StoreUrl, host: str, port: int) -> redis.ConnectionPool:
    """The connections to a server; nothing is sent yet."""
    kind = redis.SSLConnection if url.tls else redis.Connection
    return redis.ConnectionPool(kind, host=host, port=port, db=url.db, **_options(url))


def pool_of_master(url: StoreUrl) -> redis.ConnectionPool:
    """The connections to the master that sentinels name, whichever it is when a connection is made."""
    sentinel = Sentinel(url.nodes, sentinel_kwargs=_LIMITS | _never_again(), ssl=url.tls, db=url.db, **_options(url))
    pool: redis.ConnectionPool = sentinel.master_for(url.service).connection_pool
    return pool


def _options(url: StoreUrl) -> dict[str, Any]:
    return {"username": url.user, "password": url.password, "protocol": 2, **_LIMITS, **_never_again()}


def _never_again() -> dict[str, Any]:
    return {"retry": Retry(NoBackoff(), 0)}


class Node:
    """Thread-safe: each call has a connection to itself.

    Mutable state: ``_down_until``, 0 while the server is thought to be up.
    """

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool = pool
        self._down_until = 0.0

    def call(self, commands: Sequence[Command], doing: str, *, writes: bool = False) -> list[Any]:
        """The replies to some commands after one round trip, the server's errors among them; see ``Link``."""
        return self.read(self.send(commands, doing, writes=writes), len(commands), doing, writes=writes)

    def send(self, commands: Sequence[Command], doing: str, *, writes: bool) -> Any:  # noqa: ANN401 - see ``_read``
        """Send some commands: the connection from which ``read`` has to take the replies."""
        now = time.monotonic()
        if now < self._down_until:
            raise StoreUnavailable(f"the session store cannot {doing} now: it could not be reached a moment ago")
        if self._down_until:  # this call finds out whether it is up again; the others do not wait with it
            self._down_until = now + CONNECT_S + ANSWER_S
        try:
            connection = self._pool.get_connection()
        except (redis.RedisError, OSError) as error:
            self._pause()
            raise failed(doing, error) from error
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        except (redis.RedisError, OSError) as error:
            self._drop(connection, doing, error, writes=writes)
        return connection

    def read(self, connection: Any, count: int, doing: str, *, writes: bool) -> list[Any]:  # noqa: ANN401
        """The replies to ``count`` commands that were sent."""
        try:
            replies = [_read(connection) for _ in range(count)]
        except (redis.RedisError, OSError) as error:
            self._drop(connection, doing, error, writes=writes)
        self._down_until = 0.0
        self._pool.release(connection)
        return replies

    def info(self) -> dict[str, str]:
        """What the server tells of itself, as text; without what CONFIG tells where that is forbidden."""
        commands = [("INFO",), *(("CONFIG", "GET", name) for name in ("save", "appendfsync"))]
        text, *settings = self.call(commands, "tell of itself")
        if isinstance(text, Exception):
            raise failed("tell of itself", text)
        lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
        told = {name: value for name, _, value in lines}
        for reply in settings:
            if isinstance(reply, list) and len(reply) == 2:
                told[reply[0].decode()] = reply[1].decode(errors="replace")
        return told

    def close(self) -> None:
        """Let go of all connections."""
        self._pool.disconnect()

    def _pause(self) -> None:
        self._down_until = time.monotonic() + PAUSE_S

    def _drop(self, connection: Any, doing: str, error: Exception, *, writes: bool) -> NoReturn:  # noqa: ANN401
        """Give up a connection: what is still to be read from it belongs to nobody."""
        connection.disconnect()
        self._pool.release(connection)
        if isinstance(error, redis.TimeoutError):  # one that is cut may be made anew at once
            self._pause()
        raise lost(doing, error, writes=writes) from error


def _read(connection: Any) -> Any:  # noqa: ANN401 - redis-py's connections and replies have no types of their own
    try:
        return connection.read_response(disable_decoding=True)
    except (redis.ResponseError, BusyLoadingError) as error:  # refusals: the command has not run
        return error
