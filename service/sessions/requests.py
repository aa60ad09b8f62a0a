"""What is asked of a session, in plain values, and when a request is the repeat of one that was answered."""

import asyncio
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from msgspec import Struct
from msgspec.structs import force_setattr

from service.errors import AlreadyApplied, PositionConflict
from service.sampling import Sampling
from service.state import Answer, Chunk, Record
from service.views import View
from service.work import Reply

_DIGEST = 16  # bytes


class Advance(Struct, frozen=True):
    """Consume a chunk of one or more steps. ``position``: where it applies; None: wherever the session stands.

    ``keep``: how many last answers, its own included, have to be kept for repeats, as its client may have so many
    requests unanswered; beside them those that were not delivered when it came. The chunk's ``steps`` and the
    ``digest``, which tells a repeat from another request at the same position, are found out where they are not given.
    """

    chunk: Chunk
    view: View
    position: int | None = None
    keep: int = 0
    steps: int = 0
    digest: bytes = b""

    def __post_init__(self) -> None:
        if not self.steps:
            force_setattr(self, "steps", len(self.chunk[0]))
            force_setattr(self, "digest", _digest(self.view, self.chunk))


def one_token(token: int, dtype: str, view: View, position: int | None, keep: int) -> Advance:
    """A single token: by far the most frequent request, and mostly one that was seen before."""
    known = _seen(token, dtype, view)
    return Advance(known.chunk, view, position, keep, known.steps, known.digest)


@lru_cache(maxsize=4096)  # the vocabulary of a few models
def _seen(token: int, dtype: str, view: View) -> Advance:
    array = np.array([token], dtype)
    array.setflags(write=False)
    return Advance((array,), view)


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue from the session's last output, step by step.

    ``sampling`` for language models, without a seed where ``seeded`` is False (one was drawn). With ``advance`` what
    is generated becomes part of the session; without, the session stays where it was.
    """

    max_steps: int
    sampling: Sampling | None = None
    seeded: bool = True
    stop: tuple[str, ...] = ()
    advance: bool = True
    position: int | None = None

    @property
    def digest(self) -> bytes:
        """What tells a repeat from another request at the same position."""
        s = self.sampling
        drawn = (s.temperature, s.top_k, s.top_p, s.seed if self.seeded else None) if s is not None else ()
        told = repr((self.max_steps, drawn, self.stop, self.advance)).encode()
        return hashlib.blake2b(told, digest_size=_DIGEST, salt=b"generate").digest()


class Waiting(Struct, eq=False):
    """An ``Advance`` in a session's queue, with the reply to the one who waits for it: (answer, whether a repeat's).

    ``seen`` counts the answers that the session had delivered when it came: those from there on may still be on
    their way to the client, and are kept for a repeat until a request comes that was sent after they arrived.
    ``tries`` counts how often it was taken up again after another replica's move, ``renewed`` tells that the record
    was loaded anew for it.
    """

    request: Advance
    reply: Reply
    deadline: float
    seen: int
    since: float
    tries: int = 0
    renewed: bool = False


class Turn(Struct, eq=False):
    """A place in a session's queue for work of several ticks, which has the session to itself while it runs."""

    reply: "asyncio.Future[None]"
    deadline: float


_shown = struct.Struct("<?I").pack


def _digest(view: View, chunk: Chunk) -> bytes:
    """Of a single token, all that was asked."""
    told = _shown(view.every, view.top_k) + b"".join([array.tobytes() for array in chunk])
    return told if len(told) < _DIGEST else hashlib.blake2b(told, digest_size=_DIGEST, salt=b"advance").digest()


def repeated(record: Record, position: int | None, digest: bytes) -> Answer | None:
    """Decide exactly-once: None when the request applies to this record, the kept answer when it is a repeat.

    Raises:
        AlreadyApplied: a repeat whose answer was too large to keep.
        PositionConflict: the session is elsewhere.
    """
    if position is None or position == record.position:
        return None
    for answer in record.answers:
        if answer.start == position and answer.digest == digest:
            if answer.outputs is None or answer.dropped:
                raise AlreadyApplied(record.position)
            return answer
    raise PositionConflict(record.position, position)


def bare(record: Record, request: Advance) -> bool:
    """Whether answers that are to be kept beside the request's own are in the store only, as a packed session's."""
    return request.keep > 1 and not record.answers and record.position > 0


def outdated(record: Record, waiting: Waiting) -> bool:
    """Whether to look, once, at what the store has: the request is for elsewhere, where another replica may have moved
    the session, or the record is without the answers that have to be kept."""
    position = waiting.request.position
    if waiting.renewed:
        return False
    if bare(record, waiting.request):
        return True
    if position is None or position == record.position:
        return False
    return not any(a.start == position and a.digest == waiting.request.digest for a in record.answers)


def folded(taken: Sequence[Waiting]) -> Chunk:
    """The chunks of requests that follow each other, as one."""
    if len(taken) == 1:
        return taken[0].request.chunk
    return tuple(np.concatenate(parts) for parts in zip(*(w.request.chunk for w in taken), strict=True))
