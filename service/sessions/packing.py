"""What a live session takes in memory while nobody asks for it: its row, and little more.

A ``Live`` with its queue and a whole record take a kilobyte beside the row. Only the sessions used last are kept so; of
the others there is one piece of bytes and what all sessions of a kind share. The last answer and the last output stay
in the store: only a repeat or a generation asks for them.
"""

import struct
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Self
from weakref import WeakValueDictionary

from msgspec import Struct

from service.models import Model
from service.state import Identity, Record

Key = bytes | str
_NUMBERS = struct.Struct("<qqdd")  # position, revision, expires_at, created_at


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Kind:
    """What many sessions have in common."""

    model: Model
    pinned: tuple[str, str, str, str]  # owner, model, version, fingerprint
    ttl_s: float
    gates: int


class Packed(Struct, frozen=True, gc=False):
    """A session at rest in memory. It takes part in no cycle, so the garbage collector need not know of it."""

    kind: Kind
    content: bytes  # the numbers, and the row
    trace: bytes

    @classmethod
    def of(cls, record: Record, model: Model, kinds: MutableMapping[tuple[object, ...], Kind]) -> Self:
        """A record without its answers and its output; ``kinds``: those that are in use."""
        i = record.identity
        kind = Kind(model, (i.owner, i.model, i.version, i.fingerprint), i.ttl_s, i.gates)
        kind = kinds.setdefault((*kind.pinned, kind.ttl_s, kind.gates), kind)
        numbers = _NUMBERS.pack(record.position, record.revision, record.expires_at, i.created_at)
        return cls(kind, numbers + record.row, record.trace)

    def record(self, id: str) -> Record:
        """The record of the session of this id, without its answers and its output."""
        position, revision, expires_at, created_at = _NUMBERS.unpack_from(self.content)
        identity = Identity(id, *self.kind.pinned, self.kind.ttl_s, created_at, self.kind.gates)
        return Record(identity, position, revision, self.content[_NUMBERS.size :], b"", (), expires_at, self.trace)


def key(id: str) -> Key:
    """What a packed session is found by: the 16 bytes of an id that we made, which take a third less than its text.

    Of any other text, also one that reads as the same bytes, the text itself: it is another id.
    """
    try:
        made = bytes.fromhex(id)
    except ValueError:
        return id
    return made if made.hex() == id else id


def kinds() -> MutableMapping[tuple[object, ...], Kind]:
    """An empty table of kinds; one that no session is of any more leaves it by itself."""
    return WeakValueDictionary()
