"""Sessions from one store to another, so that each has one home, or is told of.

A session is created at the destination, read back and compared, and only then dropped at its source, if it has not
moved on there meanwhile. Whatever ends this half-way, the same call again goes on: a copy that is equal is taken as it
is. Servers may run over both stores; a step that was acknowledged is never lost, but whoever asks a server for a
session that has left its store is told that it does not know it.

What is remembered of ended sessions stays behind, where it is forgotten in its time.
"""

import secrets
import time
from collections.abc import Callable, Sequence

from service.admin.walking import Known, Tell, batches, records
from service.errors import SettingsError, StoreUnavailable, UndecodableState
from service.state import Identity, Record, encode_answers
from service.stores.base import Ended, Store

_PROBE_S = 60.0  # after which a probe that was left behind expires


class Move:
    """Mutable state: ``moved`` and ``left``, how many sessions were, so far."""

    def __init__(self, source: Store, target: Store, tell: Tell, *, keep: bool = False, replace: bool = False) -> None:
        """``tell``: of each session that is left, why; ``keep``: copy only; ``replace``: older copies at the target."""
        self._source, self._target = source, target
        self._tell, self._keep, self._replace = tell, keep, replace
        self.moved = self.left = 0

    def run(self, passed: Callable[[int], None]) -> None:
        """Move all sessions; ``passed`` is called with how many were looked at since the last time.

        Raises:
            SettingsError: both are the same store.
            StoreUnavailable: one of them cannot be reached; what was not moved is as it was.
        """
        refuse_same(self._source, self._target)
        for ids in batches(self._source):
            self._batch(ids)
            passed(len(ids))

    def _batch(self, ids: Sequence[str]) -> None:
        whole = records(self._source, ids, self._leave)
        there = self._target.load(list(whole))
        ready = [r for id, r in whole.items() if self._is_free(r, there.get(id))]
        if new := [r for r in ready if not _equal(r, there.get(r.identity.id))]:
            self._target.create(new)
        written = self._target.load([r.identity.id for r in ready])
        for r in ready:
            if _equal(r, written.get(r.identity.id)):
                self._hand_over(r)
            else:
                self._leave(r.identity.id, "what was read back at the destination is not what was written")

    def _is_free(self, ours: Record, there: Known | None) -> bool:
        """Whether the destination has nothing of this id, or an equal copy; else why it is left is told."""
        if there is None or _equal(ours, there):
            return True
        id = ours.identity.id
        if isinstance(there, Ended):
            self._leave(id, f"it has ended ({there.reason}) at the destination")
        elif isinstance(there, UndecodableState | StoreUnavailable):
            self._leave(id, f"at the destination: {there.detail}")
        elif there.identity != ours.identity or there.revision >= ours.revision or there.position > ours.position:
            self._leave(id, f"the destination has it at position {there.position}, this store at {ours.position}")
        elif self._replace and self._target.remove(id, there.revision):
            return True
        else:
            self._leave(id, f"the destination has an earlier copy, at position {there.position}: --replace replaces it")
        return False

    def _hand_over(self, r: Record) -> None:
        """The destination has it: from here on it is its only home."""
        if self._keep or self._source.remove(r.identity.id, r.revision):
            self.moved += 1
            return
        self._take_back(r, self._source.load([r.identity.id]).get(r.identity.id))

    def _take_back(self, r: Record, now: Known | None) -> None:
        """It moved at its source meanwhile: the copy must not become a second truth."""
        id = r.identity.id
        if now is None:  # another call like this one dropped it there, and relies on the copy
            self.moved += 1
        elif isinstance(now, Ended):
            self._target.end(id, now.reason, now.at)
        elif not isinstance(now, Record):
            self._leave(id, f"it is at the destination, and still here: {now.detail}")
        elif self._target.remove(id, r.revision):
            self._leave(id, "it was stepped meanwhile")
        else:
            self._leave(id, "it was stepped in both stores meanwhile, and is in both")

    def _leave(self, id: str, why: str) -> None:
        self.left += 1
        self._tell(id, why)


def refuse_same(source: Store, target: Store) -> None:
    """Refuse to move a store into itself, whatever it is called: each session would be its own copy, and be dropped."""
    id, now = secrets.token_hex(16), time.time()
    probe = Record(Identity(id, "", "", "", "", _PROBE_S, now), 0, 0, b"", b"", (), now + _PROBE_S)
    target.create([probe])
    try:
        same = id in source.load([id])
    finally:
        target.remove(id, probe.revision)
    if same:
        raise SettingsError("both are the same store: there is nothing to move")


def _equal(ours: Record, there: Known | None) -> bool:
    return isinstance(there, Record) and _plain(ours) == _plain(there)


def _plain(r: Record) -> tuple[object, ...]:
    return r.identity, r.position, r.revision, r.row, r.output, encode_answers(r.answers), r.expires_at, r.trace
