"""A store in this process's memory: for tests, and for those who opt out of durability."""

import heapq
import threading
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from service.errors import UndecodableState
from service.state import Record
from service.stores.base import Ended, EndReason, Listed, Store


class MemoryStore(Store):
    """Records in a dict. What it holds ends with the process.

    State: ``_records``, ``_ended``, ``_over`` (a heap of the times at which those ended) and ``_due`` (a heap of expiry
    times, each entry possibly out of date: it is looked at again, and put back, when its time comes). One lock guards
    the four, so nothing under it walks through all sessions each time.
    """

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._ended: dict[str, Ended] = {}
        self._over: list[tuple[float, str]] = []
        self._due: list[tuple[float, str]] = []
        self._lock = threading.Lock()

    def warnings(self) -> list[str]:
        return ["sessions are kept in memory only (durability memory): they end with this process"]

    def create(self, records: Sequence[Record]) -> None:
        with self._lock:
            for record in records:
                self._records[record.identity.id] = record
                heapq.heappush(self._due, (record.expires_at, record.identity.id))

    def load(self, ids: Sequence[str]) -> Mapping[str, Record | Ended | UndecodableState]:
        with self._lock:
            found = {id: self._records.get(id) or self._ended.get(id) for id in ids}
        return {id: _as_stored(known) for id, known in found.items() if known is not None}

    def commit(self, records: Sequence[Record]) -> list[bool]:
        with self._lock:
            return [self._commit_one(record) for record in records]

    def _commit_one(self, record: Record) -> bool:
        held = self._records.get(record.identity.id)
        if held is None or held.revision != record.revision - record.leap:
            return False
        self._records[record.identity.id] = record
        return True

    def end(self, id: str, reason: EndReason, now: float) -> bool:
        with self._lock:
            return self._end_one(id, reason, now)

    def _end_one(self, id: str, reason: EndReason, now: float) -> bool:
        record = self._records.pop(id, None)
        if record is None:
            return False
        self._ended[id] = Ended(id, record.identity.owner, reason, now)
        heapq.heappush(self._over, (now, id))
        if len(self._due) > 2 * len(self._records):  # mostly of sessions that are over: once in as many ends
            self._due = [(kept.expires_at, kept.identity.id) for kept in self._records.values()]
            heapq.heapify(self._due)
        return True

    def expire(self, now: float, limit: int) -> list[str]:
        ended: list[str] = []
        with self._lock:
            while self._due and self._due[0][0] <= now and len(ended) < limit:
                _, id = heapq.heappop(self._due)
                record = self._records.get(id)
                if record is None:
                    continue
                if record.expires_at > now:
                    heapq.heappush(self._due, (record.expires_at, id))
                elif self._end_one(id, "expired", now):
                    ended.append(id)
        return ended

    def forget(self, before: float, limit: int) -> int:
        forgotten = 0
        with self._lock:
            while self._over and self._over[0][0] < before and forgotten < limit:
                del self._ended[heapq.heappop(self._over)[1]]
                forgotten += 1
        return forgotten

    def page(self, owner: str, model: str | None, after: str, limit: int, now: float) -> list[Listed]:
        with self._lock:
            mine = [
                r
                for id, r in self._records.items()
                if id > after and r.identity.owner == owner and model in (None, r.identity.model) and r.expires_at > now
            ]
        first = heapq.nsmallest(limit, mine, key=lambda r: r.identity.id)
        return [Listed(r.identity, r.position, r.expires_at) for r in first]

    def walk(self, cursor: str, limit: int) -> tuple[list[str], str]:
        with self._lock:
            ids = heapq.nsmallest(limit, (id for id in self._records if id > cursor))
        return ids, ids[-1] if len(ids) == limit else ""

    def remove(self, id: str, revision: int) -> bool:
        with self._lock:
            held = self._records.get(id)
            if held is None or held.revision != revision:
                return False
            del self._records[id]
        return True

    def count(self) -> int:
        return len(self._records)

    def maintain(self) -> None:
        """Nothing to do."""

    def check(self) -> None:
        """Memory can always be written."""

    def close(self) -> None:
        """Nothing to let go of."""


def _as_stored(known: Record | Ended) -> Record | Ended:
    """Without the ordinals of the answers: they belong to the live session that has gone, and are not stored."""
    if isinstance(known, Ended):
        return known
    return replace(known, answers=tuple(replace(answer, ordinal=-1) for answer in known.answers))
