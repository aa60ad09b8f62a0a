"""What goes into a tick and comes out of it, row by row: items, what became of them, and the records that are kept."""

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from service.errors import NotFinite, StoreUnavailable, UndecodableState, WriteConflict
from service.sampling import Sampling
from service.state import Answer, Chunk, Record, Tensors, leap
from service.views import View

STREAM_SHARE = 8  # of the bytes of kept answers, this part is written anew with every step of a stream


class Feed(Struct, frozen=True):
    """An input that is made from the model's own last output: a sampled symbol, or the forecast itself."""

    output: bytes
    position: int
    sampling: Sampling | None = None


class Part(Struct, frozen=True):
    """One request's share of an item: so many steps, and what its client wants to see of them."""

    steps: int
    view: View
    digest: bytes = b""
    ordinal: int = 0


class GrowingAnswer:
    """The answer of a streamed request. It is written anew with every step, so only its tail is kept.

    Mutable state, touched by one tick at a time: ``_steps``, ``_dropped``, and ``_rooms``, arrays for ``_capacity``
    steps, of ``_step_bytes`` each: a step is written behind all that earlier answers show of them, so that nothing has
    to be copied.
    """

    __slots__ = ("_capacity", "_digest", "_dropped", "_rooms", "_seed", "_start", "_step_bytes", "_steps")

    def __init__(self, start: int, digest: bytes, seed: int | None) -> None:
        self._start, self._digest, self._seed = start, digest, seed
        self._steps = self._dropped = self._capacity = self._step_bytes = 0
        self._rooms: dict[str, np.ndarray] = {}

    def grown(self, steps: int, outputs: Tensors, expires_at: float, keep_bytes: int) -> Answer:
        """The answer with so many more steps."""
        begin = self._steps - self._dropped
        self._steps += steps
        end, shown = begin + steps, {}
        if end > self._capacity:
            self._enlarge(begin, 2 * end, outputs, steps)
        fresh, kept = slice(begin, end), slice(end)
        for name, values in outputs.items():
            room = self._rooms[name]
            room[fresh] = values
            shown[name] = room[kept]
        limit = keep_bytes // STREAM_SHARE
        if end * self._step_bytes > limit:  # then half of it stays, so that not every step has to move what is kept
            self._capacity = left = limit // (2 * self._step_bytes)
            shown = {name: values[end - left :].copy() for name, values in shown.items()}
            self._dropped, self._rooms = self._steps - left, dict(shown)
        return Answer(self._start, self._steps, self._digest, expires_at, shown, self._seed, self._dropped)

    def _enlarge(self, kept: int, capacity: int, outputs: Tensors, steps: int) -> None:
        """Make room for more steps like those of ``outputs``."""
        for name, values in outputs.items():
            further = np.empty((capacity - kept, *values.shape[1:]), values.dtype)
            self._rooms[name] = np.concatenate((self._rooms.get(name, values)[:kept], further))
        self._capacity = capacity
        self._step_bytes = sum(values.nbytes for values in outputs.values()) // steps


class Item(Struct, frozen=True):
    """One row of a tick.

    ``chunk`` or ``feed`` is what it consumes. With ``record`` the row is committed as that session's next record;
    without, it is a draft that only comes back. ``keep_from``: answers of the session from this ordinal on may still
    be asked for again. ``extends``: the answer of a streamed request, which grows by this step. ``trace``: what the
    session keeps to show its gates, up to this item; b"" where it keeps nothing.
    """

    row: bytes
    parts: tuple[Part, ...]
    chunk: Chunk | None = None
    feed: Feed | None = None
    record: Record | None = None
    keep_from: int = 0
    extends: GrowingAnswer | None = None
    trace: bytes = b""

    @property
    def shows_last(self) -> bool:
        """Whether each request is shown the most likely symbols after its last step."""
        for part in self.parts:  # noqa: SIM110 - a generator would cost more than what it looks at
            if part.view.every or part.view.top_k == 0:
                return False
        return True


class Stepped(Struct, frozen=True):
    """The outcome of an item: the new row, the last step's first output, what each part is shown, the record that
    was committed, if the item had one, and the trace with this item's steps."""

    row: bytes
    output: bytes
    shown: tuple[Tensors, ...]
    record: Record | None = None
    trace: bytes = b""


Outcome = Stepped | NotFinite | UndecodableState | WriteConflict | StoreUnavailable


def next_record(record: Record, item: Item, stepped: Stepped, now: float, keep_bytes: int) -> Record:
    """The record after an item, with the answers that may still be asked for again."""
    identity, position, keep_from = record.identity, record.position, item.keep_from
    expires_at = now + identity.ttl_s
    if item.extends is not None:
        steps = sum([part.steps for part in item.parts])
        position += steps
        kept: tuple[Answer, ...] = (item.extends.grown(steps, stepped.shown[0], expires_at, keep_bytes),)
    else:
        answers, left = [], keep_bytes
        for answer in record.answers:
            if answer.ordinal >= keep_from:
                answers.append(answer)
                left -= answer.size()
        for part, outputs in zip(item.parts, stepped.shown, strict=True):
            answer = Answer(position, part.steps, part.digest, expires_at, outputs, None, 0, part.ordinal)
            answers.append(answer)
            left -= answer.size()
            position += part.steps
        kept = tuple(answers) if left >= 0 else _within(answers, keep_bytes)
    row, output, trace, further = stepped.row, stepped.output, stepped.trace, leap()
    return Record(identity, position, record.revision + further, row, output, kept, expires_at, trace, further)


def _within(answers: list[Answer], keep_bytes: int) -> tuple[Answer, ...]:
    """The latest answers whose outputs fit; the outputs of the earlier ones are dropped, not the fact of them."""
    left = keep_bytes
    kept: list[Answer] = []
    for answer in reversed(answers):
        left -= answer.size()
        kept.append(answer if left >= 0 else replace(answer, outputs=None))
    return tuple(reversed(kept))
