"""What a store promises. ``tests/contract`` holds every store to these words.

A store keeps records and knows nothing of models, queues or clients. Its methods block and may be called from several
threads. What goes wrong underneath (a lock, a full disk, a lost connection) leaves a store as ``StoreUnavailable``
only; then nothing of the call was committed, or, where it is ``OutcomeUnknown``, all of it may have been.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from service.errors import StoreUnavailable, UndecodableState
from service.state import Identity, Record

log = logging.getLogger(__name__)

EndReason = Literal["deleted", "expired"]
LOOK_AGAIN_S = 86_400.0  # after which a damaged session that seems to have expired is named again


@dataclass(frozen=True, slots=True)
class Ended:
    """What is remembered of a session that is over, for a while."""

    id: str
    owner: str
    reason: EndReason
    at: float


@dataclass(frozen=True, slots=True)
class Listed:
    """A session as a listing shows it: without its row."""

    identity: Identity
    position: int
    expires_at: float


class Store(ABC):
    """Where sessions are committed. Times are seconds since the epoch, given by the caller."""

    remote: ClassVar[bool] = False  # whether calls wait for a network: they are never made on the event loop

    @abstractmethod
    def create(self, records: Sequence[Record]) -> None:
        """Keep new sessions, all or none of them. Their ids are new."""

    @abstractmethod
    def load(self, ids: Sequence[str]) -> Mapping[str, Record | Ended | UndecodableState | StoreUnavailable]:
        """What is known of each id; an id that is not known is missing from the answer.

        A session whose bytes cannot be decoded comes back as the error that says so, and the others are not held up
        by it; the store leaves its bytes as they are. So does one that lies in a part of the store that cannot be
        reached. Expired sessions that were not swept yet come back as records.
        """

    @abstractmethod
    def commit(self, records: Sequence[Record]) -> Sequence[bool | StoreUnavailable]:
        """Keep the next record of several sessions in one transaction, each if its session has not moved.

        ``record.revision`` is ``record.leap`` more than the revision it started from. False for a record whose session
        has another revision by now, or is gone: nothing of that record is kept, and the other records are. No id
        appears twice. A store that has parts has a transaction for each record, and tells the error of each whose part
        cannot be reached.
        """

    @abstractmethod
    def end(self, id: str, reason: EndReason, now: float) -> bool:
        """End a session and remember why; False when it is not there (any more)."""

    @abstractmethod
    def expire(self, now: float, limit: int) -> list[str]:
        """End at most about ``limit`` sessions whose ``expires_at`` is not after ``now``; the ids that were ended.

        None were ended only where none is left to be. One that cannot be decoded is left and named, as its time cannot
        be believed. A session that is committed with a later ``expires_at`` before this call takes effect is not ended.
        """

    @abstractmethod
    def forget(self, before: float, limit: int) -> int:
        """Drop at most ``limit`` memories of sessions that ended before ``before``; how many were dropped.

        Fewer than ``limit`` only where none is left to be.
        """

    @abstractmethod
    def page(self, owner: str, model: str | None, after: str, limit: int, now: float) -> list[Listed]:
        """At most ``limit`` sessions of an owner in the order of their ids, from the first id beyond ``after`` on.

        Those that have expired by ``now`` are left out; without ``now`` they are listed until they are swept.
        """

    @abstractmethod
    def walk(self, cursor: str, limit: int) -> tuple[list[str], str]:
        """Ids of all owners' sessions, about ``limit`` at a time, and the cursor to go on with.

        The cursor is "" at the start, and again at the end. A session that is there throughout is met at least once.
        """

    @abstractmethod
    def remove(self, id: str, revision: int) -> bool:
        """Drop a session without a memory of it, if it has this revision: it lives elsewhere now."""

    @abstractmethod
    def count(self) -> int:
        """How many sessions are kept. Cheap: it does not walk through them."""

    @abstractmethod
    def maintain(self) -> None:
        """Housekeeping that must not hold up commits; called every now and then from a thread of its own."""

    @abstractmethod
    def check(self) -> None:
        """Whether a commit could succeed now; StoreUnavailable when not."""

    def warnings(self) -> list[str]:
        """What an operator should know of how the store is set up, a sentence each: what it may lose, and when."""
        return []

    def damage(self) -> list[str]:
        """What is damaged in the store itself, a sentence each, such as an index; reads all of it."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections; what was committed stays."""


def named_damaged(due: Mapping[str, object]) -> set[str]:
    """Of sessions as they were read whose time seems to be over, those that are damaged; each is named in the log."""
    damaged = {id for id, known in due.items() if isinstance(known, UndecodableState)}
    for id in damaged:
        log.error("session %s is damaged: it is not ended, though its time seems to be over", id)
    return damaged
