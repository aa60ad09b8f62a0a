"""What a store asks of the servers behind it, whether that is one or a cluster, and what their failures mean."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from service.errors import OutcomeUnknown, StoreUnavailable

log = logging.getLogger(__name__)

CONNECT_S, ANSWER_S = 1.0, 2.0  # how long a call waits at most, for a connection and then for an answer
PAUSE_S = 0.25  # servers that could not be reached are left alone so long, and calls fail at once
Command = Sequence[Any]


class Script:
    """A script, and the name that a server knows it by. It answers with a list: one reply for each of its keys."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[str], arguments: Sequence[Any]) -> Command:
        """The command that runs it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


class Link(Protocol):
    """Thread-safe. Every call is one round trip, where nothing has to be repeated.

    Each may raise:
        StoreUnavailable: servers could not be reached, or refused.
        OutcomeUnknown: of a call that ``writes``: all of it may have been done, or some, or nothing.
    """

    def run(self, commands: Sequence[Command], doing: str, *, writes: bool = False) -> list[Any]:
        """The replies to some commands, each of one key."""
        ...

    def values(self, keys: Sequence[str], doing: str) -> list[Any]:
        """What stands under some keys: bytes, None, or the error of a key whose node cannot be reached."""
        ...

    def over(
        self, script: Script, keys: Sequence[str], each: Sequence[Any], doing: str, shared: Sequence[Any] = ()
    ) -> list[Any]:
        """Run a script over some keys: its replies, one for each; ``each`` holds as many arguments for every key.

        On one server that is one step. In a cluster it is one for each key: a reply is the error of a key whose node
        cannot be reached.
        """
        ...

    def info(self) -> list[dict[str, str]]:
        """What each server tells of itself, as text."""
        ...

    def close(self) -> None:
        """Let go of all connections."""
        ...


def failed(doing: str, error: Exception) -> StoreUnavailable:
    """The client learns the kind, the log the whole."""
    kind = type(error).__name__
    log.error("the session store cannot %s: %s: %s", doing, kind, error)
    return StoreUnavailable(f"the session store cannot {doing} now ({kind})")


def lost(doing: str, error: Exception, *, writes: bool) -> StoreUnavailable:
    """The error of a call whose answer did not come."""
    if not writes:
        return failed(doing, error)
    log.error("the session store was lost while it was to %s: %s: %s", doing, type(error).__name__, error)
    return OutcomeUnknown(
        f"the session store was lost before it said whether it could {doing}: what was asked may have been applied; "
        "a repeat that names its position is safe"
    )
