"""What: one tick. Load rows -> engine -> commit rows -> outcomes.

Runs in the batcher's threads. Owns the order of these four; knows nothing of queues, HTTP or who waits for what. A row
that fails is an outcome; only what concerns the whole tick (the engine itself) is raised.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from service.clock import Clock
from service.engine.runtime import Engine, Run
from service.errors import NotFinite, StoreUnavailable, UndecodableState, WriteConflict
from service.sampling import Sampling, sample
from service.state import Answer, Chunk, Record, Tensors
from service.stores.base import Store
from service.trace import extended
from service.views import View, show_last, token_type

_NOT_FINITE = "the model's outputs or state are not finite for this input; the state was left as it was"
STREAM_SHARE = 8  # of the bytes of kept answers, this part is written anew with every step of a stream


@dataclass(frozen=True, slots=True)
class Feed:
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
    extends: Answer | None = None
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


class Begun(Struct, frozen=True):
    """A tick that the engine has computed in ``seconds``; ``bring_in`` fetches what it came to."""

    items: Sequence[Item]
    chunks: Sequence[Chunk]
    fed: Mapping[int, Tensors]
    bring_in: Callable[[], Run]
    seconds: float


class Stepper:
    """Runs ticks of one model, each in two parts, so that one can begin while another is being committed."""

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
        return self.finish(self.begin(items))

    def begin(self, items: Sequence[Item]) -> Begun:
        """The first part of a tick: what the engine does, while the tick before is still being committed."""
        chunks, fed = self._load(items)
        started = perf_counter()
        bring_in = self._engine.begin([item.row for item in items], chunks)
        return Begun(items, chunks, fed, bring_in, perf_counter() - started)

    def finish(self, begun: Begun) -> list[Outcome]:
        """The second part, in the order of the first ones: what the tick came to is committed."""
        items, chunks = begun.items, begun.chunks
        started = perf_counter()
        done = begun.bring_in()
        lengths = [len(chunk[0]) for chunk in chunks]
        self._observer.ran(len(items), sum(lengths), done.padding, begun.seconds + perf_counter() - started)
        last = done.outputs[self._output.name][np.arange(len(items)), np.array(lengths) - 1]  # [rows, *step]
        shown = self._shown(items, lengths, done, begun.fed, last)
        return self._commit(self._outcomes(items, chunks, done, shown, last.tobytes()))

    def _load(self, items: Sequence[Item]) -> tuple[list[Chunk], dict[int, Tensors]]:
        """The chunk of each item, and for those that feed themselves what was fed, to be shown."""
        fed: dict[int, Tensors] = {}
        feeds = [(i, item.feed) for i, item in enumerate(items) if item.feed is not None]
        if feeds:
            fed = dict(zip([i for i, _ in feeds], self._fed([feed for _, feed in feeds]), strict=True))
        chunks = [item.chunk or (self._as_input(fed[i]),) for i, item in enumerate(items)]
        return chunks, fed

    def _fed(self, feeds: Sequence[Feed]) -> list[Tensors]:
        last = np.frombuffer(b"".join(f.output for f in feeds), self._output.dtype)
        last = last.reshape(len(feeds), *self._output.step_shape)  # [rows, *step]
        if not self._vocabulary:
            return [{self._output.name: values[None]} for values in last]
        samplings = [f.sampling for f in feeds if f.sampling is not None]
        tokens = sample(last, samplings, [f.position for f in feeds])
        chosen = np.take_along_axis(last, tokens[:, None], axis=1)  # [rows, 1]
        tokens = tokens.astype(token_type(last.shape[1]))  # kept with the answer, so as small as they can be
        return [{"tokens": tokens[i : i + 1], "logprobs": chosen[i]} for i in range(len(feeds))]

    def _as_input(self, fed: Tensors) -> np.ndarray:
        return next(iter(fed.values())).astype(self._input.dtype, copy=False)  # [1, *step]

    def _shown(
        self, items: Sequence[Item], lengths: Sequence[int], done: Run, fed: Mapping[int, Tensors], last: np.ndarray
    ) -> list[tuple[Tensors, ...]]:
        """What the parts of each item are shown; ``last`` is the first output after its last step."""
        shown: list[tuple[Tensors, ...]] = [()] * len(items)
        plain = [i for i, item in enumerate(items) if self._vocabulary and item.feed is None and item.shows_last]
        if plain:  # by far the most: the most likely symbols after one chunk, found for all rows at once
            views = [items[i].parts[0].view for i in plain]
            for i, tops in zip(plain, show_last(views, last if len(plain) == len(items) else last[plain]), strict=True):
                shown[i] = (tops,)
            if len(plain) == len(items):
                return shown
        for i, item in enumerate(items):
            if not shown[i]:
                outputs = {name: output[i, : lengths[i]] for name, output in done.outputs.items()}
                shown[i] = (fed[i],) if i in fed else _shares(item.parts, outputs)
        return shown

    def _outcomes(
        self, items: Sequence[Item], chunks: Sequence[Chunk], done: Run, shown: list[tuple[Tensors, ...]], last: bytes
    ) -> list[Outcome]:
        """What became of each item, before it is committed; ``last``: of each row, the output of its last step."""
        now, size, keep_bytes = self._clock.now(), len(last) // len(items), self._keep_answer_bytes
        outcomes: list[Outcome] = []
        for i, item in enumerate(items):
            if not done.finite[i]:
                outcomes.append(NotFinite(_NOT_FINITE))
                continue
            try:
                trace = extended(item.trace, item.row, chunks[i]) if item.trace else b""
            except UndecodableState as error:
                outcomes.append(error)
                continue
            stepped = Stepped(done.rows[i], last[i * size : (i + 1) * size], shown[i], None, trace)
            if item.record is not None:
                record = next_record(item.record, item, stepped, now, keep_bytes)
                stepped = Stepped(stepped.row, stepped.output, stepped.shown, record, trace)
            outcomes.append(stepped)
        return outcomes

    def _commit(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Commit the rows that are to be; those that were not become the errors that say so."""
        records = {i: o.record for i, o in enumerate(outcomes) if isinstance(o, Stepped) and o.record is not None}
        if not records:
            return outcomes
        started = perf_counter()
        try:
            kept = self._store.commit(list(records.values()))
        except StoreUnavailable as error:
            for i in records:
                outcomes[i] = error
            return outcomes
        self._observer.committed(len(records), perf_counter() - started)
        for i, ok in zip(records, kept, strict=True):
            if not ok:
                outcomes[i] = WriteConflict("the session was moved by another replica")
        return outcomes


def next_record(record: Record, item: Item, stepped: Stepped, now: float, keep_bytes: int) -> Record:
    """The record after an item, with the answers that may still be asked for again."""
    expires_at = now + record.identity.ttl_s
    answers = [] if item.extends else [a for a in record.answers if a.ordinal >= item.keep_from]
    position = record.position
    for part, outputs in zip(item.parts, stepped.shown, strict=True):
        answer = Answer(position, part.steps, part.digest, expires_at, outputs, None, 0, part.ordinal)
        answers.append(_extended(item.extends, answer, keep_bytes) if item.extends else answer)
        position += part.steps
    kept = _within(answers, keep_bytes)
    revision, row, output = record.revision + 1, stepped.row, stepped.output
    return Record(record.identity, position, revision, row, output, kept, expires_at, stepped.trace)


def _extended(earlier: Answer, step: Answer, keep_bytes: int) -> Answer:
    """A streamed request's answer with one more step. It is written anew with every step, so only its tail is kept."""
    outputs, dropped = step.outputs or {}, earlier.dropped
    if earlier.outputs:
        outputs = {name: np.concatenate([earlier.outputs[name], values]) for name, values in outputs.items()}
        if sum(values.nbytes for values in outputs.values()) > keep_bytes // STREAM_SHARE:
            half = (earlier.steps + step.steps - dropped) // 2
            outputs, dropped = {name: values[half:].copy() for name, values in outputs.items()}, dropped + half
    steps = earlier.steps + step.steps
    return replace(earlier, steps=steps, expires_at=step.expires_at, outputs=outputs, dropped=dropped)


def _within(answers: list[Answer], keep_bytes: int) -> tuple[Answer, ...]:
    """The latest answers whose outputs fit; the outputs of the earlier ones are dropped, not the fact of them."""
    if sum([answer.size() for answer in answers]) <= keep_bytes:
        return tuple(answers)
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
