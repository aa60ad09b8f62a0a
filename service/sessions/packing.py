"""What a live session takes in memory while nobody asks for it: its row, and little more.

A ``Live`` with its queue and a whole record take a kilobyte beside the row. Only the sessions used last are kept so; of
each of the others there is one piece of bytes. The last answer and the last output stay in the store: only a repeat or
a generation asks for them.
"""

import struct
from dataclasses import dataclass
from itertools import count, islice

from service.models import Model
from service.state import Identity, Record

Key = int | str
# The number of the kind, bytes of the row, position, revision, expires_at, created_at; the row and the trace follow.
_HEAD = struct.Struct("<QQqqdd")
_DIGITS = 32  # of an id that we made


@dataclass(slots=True)
class _Kind:
    """What many sessions have in common, and how many there are."""

    model: Model
    pinned: tuple[str, str, str, str]  # owner, model, version, fingerprint
    ttl_s: float
    gates: int
    number: int
    sessions: int = 0


class Packed:
    """Sessions at rest in memory by id, in the order in which they came.

    Mutable state: ``_sessions``; ``_kinds``, those of which there are sessions, by number and by what they are.
    """

    def __init__(self) -> None:
        self._sessions: dict[Key, bytes] = {}
        self._kinds: dict[int, _Kind] = {}
        self._same: dict[tuple[object, ...], _Kind] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, record: Record, model: Model) -> None:
        """One that was not there, without its answers and its output."""
        i, kind = record.identity, self._kind(record.identity, model)
        head = (kind.number, len(record.row), record.position, record.revision, record.expires_at, i.created_at)
        self._sessions[_key(i.id)] = _HEAD.pack(*head) + record.row + record.trace
        kind.sessions += 1

    def pop(self, id: str) -> tuple[Record, Model] | None:
        """Take this one out, where it is there."""
        content = self._sessions.pop(_key(id), None) if self._sessions else None
        if content is None:
            return None
        number, row_bytes, position, revision, expires_at, created_at = _HEAD.unpack_from(content)
        kind, end = self._left(number), _HEAD.size + row_bytes
        identity = Identity(id, *kind.pinned, kind.ttl_s, created_at, kind.gates)
        row, trace = content[_HEAD.size : end], content[end:]
        return Record(identity, position, revision, row, b"", (), expires_at, trace), kind.model

    def drop_oldest(self, many: int) -> None:
        """Let go of so many, if there are."""
        for oldest in list(islice(self._sessions, max(0, many))):
            self._left(_HEAD.unpack_from(self._sessions.pop(oldest))[0])

    def _kind(self, i: Identity, model: Model) -> _Kind:
        same = (i.owner, i.model, i.version, i.fingerprint, i.ttl_s, i.gates)
        kind = self._same.get(same)
        if kind is None:
            kind = _Kind(model, same[:4], i.ttl_s, i.gates, next(self._numbers))
            self._same[same] = self._kinds[kind.number] = kind
        return kind

    def _left(self, number: int) -> _Kind:
        """A session of this kind has gone; so does the kind with its last one."""
        kind = self._kinds[number]
        kind.sessions -= 1
        if not kind.sessions:
            del self._kinds[number], self._same[*kind.pinned, kind.ttl_s, kind.gates]
        return kind


def _key(id: str) -> Key:
    """What a session is found by: an id that we made as a number, which takes half as much as its text.

    Of any other text, also one that reads as the same number, the text itself: it is another id.
    """
    if len(id) != _DIGITS:
        return id
    try:
        made = int(id, 16)
    except ValueError:
        return id
    return made if f"{made:032x}" == id else id
