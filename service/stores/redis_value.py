"""The value of a session's key in Redis: the bytes of a session, or of the memory of one that has ended.

    session  "S" revision:8 position:8 expires_at:8 owner:2 model:2 owner model rest
    ended    "E" at:8 owner:2 owner reason

Big-endian; times are doubles; of owner and model the lengths stand before them. What the scripts look at stands at
fixed places in front. ``rest`` is MessagePack: what else the identity has, the checksum, output, answers, row, trace.
"""

import struct
import sys
from typing import cast

import msgspec

from service.errors import UndecodableState
from service.state import Identity, Record, checksum, encode_answers, whole
from service.stores.base import Ended, EndReason

ENDED = b"E"
_NO_CHECKSUM = -1  # fits nothing
_HEAD = struct.Struct(">cqqdHH")
_OVER = struct.Struct(">cdH")
_MARK = struct.Struct(">cq")
_TIME = struct.Struct(">d")
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple).decode


def mark(revision: int) -> bytes:
    """What the value of a session at this revision begins with."""
    return _MARK.pack(b"S", revision)


def time(at: float) -> bytes:
    """A time as it stands in a value."""
    return _TIME.pack(at)


def put_off(told: bytes) -> float | None:
    """The time that the script ``END`` tells of a session that has not expired; None where it tells something else."""
    return float(_TIME.unpack(told[1:])[0]) if told.startswith(b"+") else None


def encoded(r: Record) -> bytes:
    """A record as a value."""
    i, answers = r.identity, encode_answers(r.answers)
    owner, model = i.owner.encode(), i.model.encode()
    check = checksum(r, answers)
    head = _HEAD.pack(b"S", r.revision, r.position, r.expires_at, len(owner), len(model))
    rest = i.version, i.fingerprint, i.ttl_s, i.created_at, i.gates, check, r.output, answers, r.row, r.trace
    return b"".join((head, owner, model, _pack(rest)))


def decoded(id: str, value: bytes) -> Record | Ended | UndecodableState:
    """The inverse of ``encoded``, or the memory of a session that ended; the error where it is neither."""
    owner = ""
    try:
        if value.startswith(ENDED):
            return _ended(id, value)
        kind, revision, position, expires_at, *_ = _HEAD.unpack_from(value)
        owner, model, rest = _parts(value)
        version, fingerprint, ttl_s, created_at, gates, check, output, answers, row, trace = _unpack(rest)
        # Thousands may be live that have owner, model, version and fingerprint in common.
        owner, model, version, fingerprint = map(sys.intern, (owner, model, version, fingerprint))
        identity = Identity(id, owner, model, version, fingerprint, ttl_s, created_at, gates)
        record = Record(identity, position, revision, row, output, (), expires_at, trace)
        return whole(record, answers, check if kind == b"S" else _NO_CHECKSUM)
    except UndecodableState as error:
        return UndecodableState(error.detail, owner)
    except (msgspec.MsgspecError, struct.error, ValueError, TypeError) as error:
        return UndecodableState(f"the stored state of the session cannot be decoded ({type(error).__name__})", owner)


def whose(head: bytes) -> tuple[str, str]:
    """Model and owner of a session, from the first bytes of its value: so its places in the indices are found."""
    owner, model, _ = _parts(head) if len(head) >= _HEAD.size else ("", "", b"")
    return model, owner


def _parts(value: bytes) -> tuple[str, str, bytes]:
    """Owner, model and the rest of a session's value; damaged text fails its own session only."""
    *_, owner, model = _HEAD.unpack_from(value)
    middle, end = _HEAD.size + owner, _HEAD.size + owner + model
    return value[_HEAD.size : middle].decode(errors="replace"), value[middle:end].decode(errors="replace"), value[end:]


def _ended(id: str, value: bytes) -> Ended:
    _, at, length = _OVER.unpack_from(value)
    owner, reason = value[_OVER.size : _OVER.size + length], value[_OVER.size + length :]
    return Ended(id, owner.decode(), cast("EndReason", reason.decode()), at)
