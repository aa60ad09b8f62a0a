"""What: one tick. Load rows -> engine -> commit rows -> outcomes.

Runs in the batcher's thread. Owns the order of these four; knows nothing of queues, HTTP or who waits for what. A row
that fails is an outcome; only what concerns the whole tick (the engine itself) is raised.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from service.clock import Clock
from service.engine.runtime import Chunk, Engine, Run
from service.errors import NotFinite, StoreUnavailable, UndecodableState, WriteConflict
from service.sampling import Sampling, sample
from service.state import Answer, Record, Tensors
from service.stores.base import Store
from service.trace import extended
from service.views import View, show_last, token_type

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
    extends: "GrowingAnswer | None" = None
    trace: bytes = b""

    @property
    def shows_last(self) -> bool:
        """Whether one request is shown the most likely symbols after its last step."""
        return len(self.parts) == 1 and self.parts[0].view.top_k > 0 and not self.parts[0].view.every


class Stepped(Struct, frozen=True):
    """The outcome of an item: the new row, the last step's first output, what each part is shown, the record that
    was committed, if the item had one, and the trace with this item's steps."""

    row: bytes
    output: bytes
    shown: tuple[Tensors, ...]
    record: Record | None = None
    trace: bytes = b""


Outcome = Stepped | NotFinite | UndecodableState | WriteConflict | StoreUnavailable


class StepObserver(Protocol):
    """What a tick reports."""

    def ran(self, rows: int, steps: int, padding: int, seconds: float) -> None:
        """The engine ran so many rows and steps, computed ``padding`` cells in vain and took ``seconds``."""
        ...

    def committed(self, rows: int, seconds: float) -> None:
        """The store kept so many rows in ``seconds``."""
        ...

    def generated(self, steps: int) -> None:
        """So many steps fed themselves."""
        ...


class Stepper:
    """Runs ticks of one model."""

    def __init__(
        self, engine: Engine, store: Store, clock: Clock, observer: StepObserver, *, keep_answer_bytes: int
    ) -> None:
        self._engine = engine
        self._store = store
        self._clock = clock
        self._observer = observer
        self._keep_answer_bytes = keep_answer_bytes
        self._output = engine.signature.outputs[0]
        self._input = engine.signature.inputs[0]
        self._vocabulary = engine.signature.vocabulary is not None

    def run(self, items: Sequence[Item]) -> list[Outcome]:
        """One tick. Every row that is told of as stepped has been committed, if it is to be."""
        chunks, fed = self._load(items)
        started = perf_counter()
        done = self._engine.run([item.row for item in items], chunks)
        steps = sum(len(chunk[0]) for chunk in chunks)
        self._observer.ran(len(items), steps, done.padding, perf_counter() - started)
        shown = self._shown(items, [len(chunk[0]) for chunk in chunks], done, fed)
        outcomes = [self._outcome(i, item, chunks[i], done, shown[i]) for i, item in enumerate(items)]
        outcomes = self._commit(outcomes)
        if fed:
            self._observer.generated(sum(isinstance(outcomes[i], Stepped) for i in fed))
        return outcomes

    def _load(self, items: Sequence[Item]) -> tuple[list[Chunk], dict[int, Tensors]]:
        """The chunk of each item, and for those that feed themselves what was fed, to be shown."""
        feeds = {i: item.feed for i, item in enumerate(items) if item.feed is not None}
        if not feeds:
            return [item.chunk or () for item in items], {}
        inputs, shown = self._fed(list(feeds.values()))
        places = {i: n for n, i in enumerate(feeds)}
        chunks = [item.chunk or (inputs[places[i]],) for i, item in enumerate(items)]
        return chunks, dict(zip(feeds, shown, strict=True))

    def _fed(self, feeds: Sequence[Feed]) -> tuple[np.ndarray, list[Tensors]]:
        """What each is fed, as the input [rows, 1, *step], and as it is shown."""
        last = np.frombuffer(b"".join([f.output for f in feeds]), self._output.dtype)
        last = last.reshape(len(feeds), 1, *self._output.step_shape)  # [rows, 1, *step]
        if not self._vocabulary:
            told: list[Tensors] = [{self._output.name: values} for values in last]
            return last.astype(self._input.dtype), told
        samplings = [f.sampling for f in feeds if f.sampling is not None]
        tokens = sample(last[:, 0], samplings, [f.position for f in feeds])
        chosen = last[np.arange(len(feeds)), :, tokens]  # [rows, 1]
        tokens = tokens[:, None]
        kept = tokens.astype(token_type(last.shape[2]))  # kept with the answer, so as small as they can be
        told = [{"tokens": token, "logprobs": logprob} for token, logprob in zip(kept, chosen, strict=True)]
        return tokens.astype(self._input.dtype), told

    def _shown(
        self, items: Sequence[Item], lengths: Sequence[int], done: Run, fed: Mapping[int, Tensors]
    ) -> list[tuple[Tensors, ...]]:
        """What the parts of each item are shown."""
        shown: list[tuple[Tensors, ...]] = [()] * len(items)
        plain = [i for i, item in enumerate(items) if self._vocabulary and item.feed is None and item.shows_last]
        if plain:  # by far the most: the most likely symbols after one chunk, found for all rows at once
            views = [items[i].parts[0].view for i in plain]
            last = done.outputs[self._output.name][plain, [lengths[i] - 1 for i in plain]]  # [rows, symbols]
            for i, tops in zip(plain, show_last(views, last), strict=True):
                shown[i] = (tops,)
        for i, item in enumerate(items):
            if i in fed:
                shown[i] = (fed[i],)
            elif not shown[i]:
                outputs = {name: output[i, : lengths[i]] for name, output in done.outputs.items()}
                shown[i] = _shares(item.parts, outputs)
        return shown

    def _outcome(self, i: int, item: Item, chunk: Chunk, done: Run, shown: tuple[Tensors, ...]) -> Outcome:
        if not done.finite[i]:
            return NotFinite("the model's outputs or state are not finite for this input; the state was left as it was")
        output = done.outputs[self._output.name][i, len(chunk[0]) - 1].tobytes()
        try:
            trace = extended(item.trace, item.row, chunk) if item.trace else b""
        except UndecodableState as error:
            return error
        stepped = Stepped(done.rows[i], output, shown, trace=trace)
        if item.record is None:
            return stepped
        record = next_record(item.record, item, stepped, self._clock.now(), self._keep_answer_bytes)
        return replace(stepped, record=record)

    def _commit(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Commit the rows that are to be; those that were not become the errors that say so."""
        places = [i for i, o in enumerate(outcomes) if isinstance(o, Stepped) and o.record is not None]
        if not places:
            return outcomes
        records = [o.record for o in outcomes if isinstance(o, Stepped) and o.record is not None]
        started = perf_counter()
        try:
            kept = self._store.commit(records)
        except StoreUnavailable as error:
            for i in places:
                outcomes[i] = error
            return outcomes
        self._observer.committed(len(records), perf_counter() - started)
        for i, ok in zip(places, kept, strict=True):
            if not ok:
                outcomes[i] = WriteConflict("the session was moved by another replica")
        return outcomes


def next_record(record: Record, item: Item, stepped: Stepped, now: float, keep_bytes: int) -> Record:
    """The record after an item, with the answers that may still be asked for again."""
    expires_at = now + record.identity.ttl_s
    steps = sum(part.steps for part in item.parts)
    if item.extends is not None:
        kept: tuple[Answer, ...] = (item.extends.grown(steps, stepped.shown[0], expires_at, keep_bytes),)
    else:
        answers, start = [a for a in record.answers if a.ordinal >= item.keep_from], record.position
        for part, outputs in zip(item.parts, stepped.shown, strict=True):
            answers.append(Answer(start, part.steps, part.digest, expires_at, outputs, ordinal=part.ordinal))
            start += part.steps
        kept = _within(answers, keep_bytes)
    position, revision = record.position + steps, record.revision + 1
    return Record(record.identity, position, revision, stepped.row, stepped.output, kept, expires_at, stepped.trace)


def _within(answers: list[Answer], keep_bytes: int) -> tuple[Answer, ...]:
    """The latest answers whose outputs fit; the outputs of the earlier ones are dropped, not the fact of them."""
    left = keep_bytes
    kept: list[Answer] = []
    for answer in reversed(answers):
        left -= answer.size()
        kept.append(answer if left >= 0 else replace(answer, outputs=None))
    return tuple(reversed(kept))


def _shares(parts: Sequence[Part], outputs: Tensors) -> tuple[Tensors, ...]:
    """What each of several folded requests is shown: its own steps only."""
    shown: list[Tensors] = []
    start = 0
    for part in parts:
        shown.append(part.view.show({name: a[start : start + part.steps] for name, a in outputs.items()}))
        start += part.steps
    return tuple(shown)
