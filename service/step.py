"""What: one tick. Load rows -> engine -> commit rows -> outcomes.

Runs where the pipeline has it run. Owns the order of these four; knows nothing of queues, HTTP or who waits for what. A
row that fails is an outcome; only what concerns the whole tick (the engine itself) is raised.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from time import perf_counter
from typing import Protocol

import numpy as np
from msgspec import Struct

from service.clock import Clock
from service.engine.runtime import Engine, Run
from service.errors import NotFinite, StoreUnavailable, UndecodableState, WriteConflict
from service.items import Feed, Item, Outcome, Part, Stepped, next_record
from service.sampling import sample
from service.state import Chunk, Tensors
from service.stores.base import Store
from service.trace import extended
from service.views import show_last, token_type

_NOT_FINITE = "the model's outputs or state are not finite for this input; the state was left as it was"


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
        last = _last(done.outputs[self._output.name], lengths)  # [rows, *step]
        shown = self._shown(items, lengths, done, begun.fed, last)
        outcomes = self._commit(self._outcomes(items, chunks, done, shown, last.tobytes()))
        if begun.fed:
            self._observer.generated(sum(isinstance(outcomes[i], Stepped) for i in begun.fed))
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
        self, items: Sequence[Item], lengths: Sequence[int], done: Run, fed: Mapping[int, Tensors], last: np.ndarray
    ) -> list[tuple[Tensors, ...]]:
        """What the parts of each item are shown; ``last`` is the first output after its last step."""
        shown: list[tuple[Tensors, ...]] = [()] * len(items)
        plain = [i for i, item in enumerate(items) if self._vocabulary and item.feed is None and item.shows_last]
        if plain:  # by far the most: the most likely symbols after each request, found for all of them at once
            views = [part.view for i in plain for part in items[i].parts]
            if len(views) > len(plain):
                last = done.outputs[self._output.name][_ends(plain, items)]
            elif len(plain) < len(items):
                last = last[plain]
            found = show_last(views, last)
            if len(found) == len(items):
                return [(tops,) for tops in found]
            tops = iter(found)
            for i in plain:
                shown[i] = tuple(islice(tops, len(items[i].parts)))
            if len(plain) == len(items):
                return shown
        for i, item in enumerate(items):
            if i in fed:
                shown[i] = (fed[i],)
            elif not shown[i]:
                outputs = {name: output[i, : lengths[i]] for name, output in done.outputs.items()}
                shown[i] = _shares(item.parts, outputs)
        return shown

    def _outcomes(
        self, items: Sequence[Item], chunks: Sequence[Chunk], done: Run, shown: list[tuple[Tensors, ...]], last: bytes
    ) -> list[Outcome]:
        """What became of each item, before it is committed; ``last``: of each row, the output of its last step."""
        now, size, keep_bytes, at = self._clock.now(), len(last) // len(items), self._keep_answer_bytes, 0
        outcomes: list[Outcome] = []
        for item, chunk, row, finite, told in zip(items, chunks, done.rows, done.finite, shown, strict=True):
            output = last[at : at + size]
            at += size
            if not finite:
                outcomes.append(NotFinite(_NOT_FINITE))
                continue
            try:
                trace = extended(item.trace, item.row, chunk) if item.trace else b""
            except UndecodableState as error:
                outcomes.append(error)
                continue
            stepped = Stepped(row, output, told, None, trace)
            if item.record is not None:
                record = next_record(item.record, item, stepped, now, keep_bytes)
                stepped = Stepped(row, output, told, record, trace)
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
        self._observer.committed(kept.count(True), perf_counter() - started)
        for i, ok in zip(records, kept, strict=True):
            if isinstance(ok, StoreUnavailable):
                outcomes[i] = ok
            elif not ok:
                outcomes[i] = WriteConflict("the session was moved by another replica")
        return outcomes


def _last(output: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Of an output [rows, longest, *step] the last step of each row."""
    last: np.ndarray = output[:, 0]
    if output.shape[1] > 1:
        last = output[np.arange(len(lengths)), np.array(lengths) - 1]
    return last


def _ends(rows: list[int], items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Row and last step of each request of these items."""
    steps = [np.cumsum([part.steps for part in items[i].parts]) for i in rows]
    return np.repeat(rows, [len(ends) for ends in steps]), np.concatenate(steps) - 1


def _shares(parts: Sequence[Part], outputs: Tensors) -> tuple[Tensors, ...]:
    """What each of several folded requests is shown: its own steps only."""
    shown: list[Tensors] = []
    start = 0
    for part in parts:
        shown.append(part.view.show({name: a[start : start + part.steps] for name, a in outputs.items()}))
        start += part.steps
    return tuple(shown)
