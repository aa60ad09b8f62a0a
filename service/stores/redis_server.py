"""One Redis or Valkey server: commands in one round trip, and what a failure of the connection means.

Owns the connections, and that nobody waits long for a server that is down. Knows nothing of sessions.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.errors import OutcomeUnknown, StoreUnavailable

log = logging.getLogger(__name__)

CONNECT_S, ANSWER_S = 1.0, 2.0  # how long a call waits at most, for a connection and then for an answer
PAUSE_S = 0.25  # a server that could not be reached is left alone so long, and calls fail at once

Command = Sequence[object]


class Script:
    """A script, and the name that a server knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[str], arguments: Sequence[object]) -> Command:
        """The command that runs it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


class Server:
    """Connections to one server. Thread-safe: each call has a connection to itself."""

    def __init__(self, pool: redis.ConnectionPool, scripts: Sequence[Script]) -> None:
        self._pool = pool
        self._scripts = {script.sha: script for script in scripts}
        self._down_until = 0.0

    @classmethod
    def at(cls, url: str, scripts: Sequence[Script]) -> "Server":
        """The server at ``redis://``, ``rediss://`` or ``unix://``; nothing is sent yet. ValueError: no such URL."""
        limits = {"socket_connect_timeout": CONNECT_S, "socket_timeout": ANSWER_S, "retry": Retry(NoBackoff(), 0)}
        return cls(redis.ConnectionPool.from_url(url, **limits), scripts)

    def run(self, commands: Sequence[Command], doing: str, *, writes: bool = False) -> list[Any]:
        """The replies to some commands, in their order, after one round trip.

        Raises:
            StoreUnavailable: the server could not be reached, or refused one of them: that one has changed nothing.
            OutcomeUnknown: it may have done what was asked, but the answer was lost; only where it ``writes``.
        """
        replies = self._tried(commands, doing, writes=writes)
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
        if missing:  # after a restart or a failover: what has not run can be sent again
            shas = {str(commands[n][1]) for n in missing}
            self._tried([("SCRIPT", "LOAD", self._scripts[sha].text) for sha in shas], doing, writes=False)
            again = self._tried([commands[n] for n in missing], doing, writes=writes)
            for n, reply in zip(missing, again, strict=True):
                replies[n] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise _failed(doing, reply)
        return replies

    def _tried(self, commands: Sequence[Command], doing: str, *, writes: bool) -> list[Any]:
        if time.monotonic() < self._down_until:
            raise StoreUnavailable(f"the session store cannot {doing} now (it could not be reached a moment ago)")
        try:
            connection = self._pool.get_connection()
        except (redis.RedisError, OSError) as error:
            self._down_until = time.monotonic() + PAUSE_S
            raise _failed(doing, error) from error
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [_read(connection) for _ in commands]
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            connection.disconnect()
            self._down_until = time.monotonic() + PAUSE_S
            if writes:
                log.error("the session store was lost while it was to %s: %s: %s", doing, type(error).__name__, error)
                raise OutcomeUnknown(
                    f"the connection to the session store was lost before it said whether it could {doing}: "
                    "what was asked may have been applied; a repeat that names its position is safe"
                ) from error
            raise _failed(doing, error) from error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def close(self) -> None:
        """Let go of all connections."""
        self._pool.disconnect()


def _read(connection: Any) -> Any:  # noqa: ANN401 - redis-py's connections and replies have no types of their own
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error


def _failed(doing: str, error: Exception) -> StoreUnavailable:
    """The client learns the kind, the log the whole."""
    kind = type(error).__name__
    log.error("the session store cannot %s: %s: %s", doing, kind, error)
    return StoreUnavailable(f"the session store cannot {doing} now ({kind})")
