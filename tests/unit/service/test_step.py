"""One tick: load rows, run, commit, outcomes; and the record that follows an item."""

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from service.engine.repository import LoadedModel
from service.errors import NotFinite, StoreUnavailable, UndecodableState, WriteConflict
from service.items import STREAM_SHARE, Feed, GrowingAnswer, Item, Part, Stepped, next_record
from service.sampling import Sampling
from service.state import Record
from service.step import Stepper
from service.stores.memory import MemoryStore
from service.trace import begun, extended
from service.views import View
from tests.support.artifacts import POISON
from tests.support.brain import ALL, numbers
from tests.support.fakes import Clock, FaultyStore
from tests.support.records import moved, plain, record

Models = dict[str, LoadedModel]


class Counts:
    """An observer that notes what it is told."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int, int]] = []
        self.commits: list[int] = []

    def ran(self, rows: int, steps: int, padding: int, seconds: float) -> None:
        """See ``StepObserver``."""
        assert seconds > 0
        self.runs.append((rows, steps, padding))

    def committed(self, rows: int, seconds: float) -> None:
        """See ``StepObserver``."""
        assert seconds > 0
        self.commits.append(rows)

    def generated(self, steps: int) -> None:
        """See ``StepObserver``."""


class Bench:
    """A stepper of a model, over a store that can fail, with sessions in it."""

    def __init__(self, model: LoadedModel, sessions: int = 2) -> None:
        self.store, self.counts, self.clock = FaultyStore(MemoryStore()), Counts(), Clock()
        self.stepper = Stepper(model.engine, self.store, self.clock, self.counts, keep_answer_bytes=1000)
        self.records = [record(str(n), row=model.engine.initial_row) for n in range(sessions)]
        self.store.create(self.records)

    def item(self, session: int | None, *values: float) -> Item:
        """Steps for a session, or for none: a draft."""
        row = self.records[session or 0].row
        kept = None if session is None else self.records[session]
        return Item(row=row, chunk=numbers(*values), parts=(Part(len(values), ALL),), record=kept, keep_from=10)

    def held(self, session: int) -> Record:
        """What the store has."""
        known = self.store.load([str(session)])[str(session)]
        assert isinstance(known, Record)
        return known


@pytest.fixture
def bench(models: Models) -> Bench:
    """A summing model with two sessions."""
    return Bench(models["adder"])


def test_what_is_told_as_stepped_is_committed(bench: Bench) -> None:
    """Each record of a tick is in the store, with its row, output, position and expiry, before the tick returns."""
    outcomes = bench.stepper.run([bench.item(0, 1, 2), bench.item(1, 5)])
    for n, (outcome, position, total) in enumerate(zip(outcomes, (2, 1), (3.0, 5.0), strict=True)):
        assert isinstance(outcome, Stepped)
        held = bench.held(n)
        assert (held.position, held.revision, held.row) == (position, held.leap, outcome.row)
        assert np.frombuffer(held.output, np.float32).tolist() == [total]
        assert held.expires_at == bench.clock.now() + held.identity.ttl_s
    assert len(bench.store.commits) == 1
    assert (bench.counts.runs, bench.counts.commits) == ([(2, 3, 1)], [2])


@pytest.mark.parametrize("trace", [b"no trace", extended(begun(3), b"row", (np.zeros(1), np.zeros(1)))])
def test_a_trace_that_cannot_be_carried_on_fails_its_own_row(bench: Bench, trace: bytes) -> None:
    """The others of its tick are stepped, and its session is left as it was."""
    before = plain(bench.held(0))
    failed, stepped = bench.stepper.run([replace(bench.item(0, 1), trace=trace), bench.item(1, 5)])
    assert isinstance(failed, UndecodableState)
    assert isinstance(stepped, Stepped)
    assert plain(bench.held(0)) == before
    assert bench.held(1).position == 1


def test_a_draft_is_not_committed(bench: Bench) -> None:
    """An item without a record only comes back; where a whole tick is drafts, the store is not asked."""
    (draft,) = bench.stepper.run([bench.item(None, 4)])
    assert isinstance(draft, Stepped)
    assert draft.record is None
    assert draft.shown[0]["y"].ravel().tolist() == [4]
    assert bench.store.commits == []


def test_a_store_that_fails_fails_those_that_were_to_be_committed(bench: Bench) -> None:
    """Drafts of the same tick come through; nothing else is acknowledged."""
    bench.store.commits_fail = True
    lost, draft = bench.stepper.run([bench.item(0, 1), bench.item(None, 4)])
    assert isinstance(lost, StoreUnavailable)
    assert isinstance(draft, Stepped)
    assert bench.counts.commits == []


def test_rows_that_the_store_refuses_are_conflicts(bench: Bench) -> None:
    """The outcome of a session that has moved is an error; its neighbour is committed."""
    bench.store.commit([moved(bench.records[0], b"else")])
    lost, kept = bench.stepper.run([bench.item(0, 1), bench.item(1, 1)])
    assert isinstance(lost, WriteConflict)
    assert isinstance(kept, Stepped)
    assert (bench.held(0).row, bench.held(1).row) == (b"else", kept.row)


def test_rows_that_are_not_finite_are_not_committed(models: Models) -> None:
    """A poisoned row is an outcome, not an exception, and never reaches the store."""
    bench = Bench(models["poison"])
    poisoned, fine = bench.stepper.run([bench.item(0, POISON), bench.item(1, 1)])
    assert isinstance(poisoned, NotFinite)
    assert isinstance(fine, Stepped)
    assert [r.identity.id for r in bench.store.commits[0]] == ["1"]


def test_a_row_of_another_size_is_an_error_with_a_name(bench: Bench) -> None:
    """Rule 7 of the tick: a row that cannot be the model's is never read as zeros; nothing is committed."""
    foreign = bench.records[0]
    item = Item(row=foreign.row + b"\0", chunk=numbers(1), parts=(Part(1, ALL),), record=foreign)
    with pytest.raises(UndecodableState):
        bench.stepper.run([item])
    assert bench.store.commits == []


def test_feeds_draw_from_their_own_output(models: Models) -> None:
    """A generation's symbol comes from the row's last output, whoever else is in the tick, and is what is consumed."""
    bench = Bench(models["language"], sessions=3)
    engine = models["language"].engine
    symbols = len(engine.signature.vocabulary or ())
    likely = [np.log(np.where(np.arange(symbols) == n, 0.99, 0.01 / symbols)).astype(np.float32) for n in (3, 4)]
    feeds = [Feed(row.tobytes(), 9, Sampling(0.0, 0, 1.0, 1)) for row in likely]
    read = Item(row=engine.initial_row, chunk=(np.array([3]),), parts=(Part(1, View(top_k=2)),))
    items = [Item(row=engine.initial_row, feed=feed, parts=(Part(1, View()),)) for feed in feeds]
    first, chunk, second = bench.stepper.run([items[0], read, items[1]])
    assert isinstance(first, Stepped)
    assert isinstance(second, Stepped)
    assert isinstance(chunk, Stepped)
    assert [s.shown[0]["tokens"].tolist() for s in (first, second)] == [[3], [4]]
    assert first.shown[0]["logprobs"].tolist() == [likely[0][3]]
    assert first.row == chunk.row != second.row
    assert chunk.shown[0]["tokens"].shape == (2,)


# ---- the record that follows


def answers(record: Record) -> list[tuple[int, int, bool]]:
    """Start, steps, and whether the outputs are kept, of each answer."""
    return [(a.start, a.steps, a.outputs is not None) for a in record.answers]


def follow(
    before: Record, parts: Sequence[int], *, keep_from: int = 0, keep_bytes: int = 1000, first: int = 0
) -> Record:
    """The record after requests of so many steps, each answered with eight bytes."""
    item = Item(
        row=b"",
        parts=tuple(Part(steps, ALL, b"%d" % n, first + n) for n, steps in enumerate(parts)),
        keep_from=keep_from,
    )
    stepped = Stepped(b"row", b"out", tuple({"y": np.zeros(2, np.float32)} for _ in parts))
    return next_record(before, item, stepped, 500.0, keep_bytes)


@pytest.fixture
def fresh() -> Record:
    """A session that was never asked anything."""
    before = record(ttl_s=60.0)
    return Record(before.identity, 0, 0, b"", b"", (), 60.0)


def test_each_folded_request_has_its_answer(fresh: Record) -> None:
    """Requests that ran as one chunk are kept as what they were, one after the other."""
    after = follow(fresh, [1, 3])
    assert answers(after) == [(0, 1, True), (1, 3, True)]
    assert (after.position, after.revision, after.row, after.output) == (4, after.leap, b"row", b"out")
    assert after.expires_at == 560.0


def test_answers_are_kept_from_an_ordinal_on(fresh: Record) -> None:
    """What was acknowledged is given up; what may be under way stays."""
    after = follow(fresh, [1, 1])
    assert answers(follow(after, [1], keep_from=1, first=2)) == [(1, 1, True), (2, 1, True)]
    assert answers(follow(after, [1], keep_from=2, first=2)) == [(2, 1, True)]


def test_the_latest_answers_that_fit_keep_their_outputs(fresh: Record) -> None:
    """Of those that do not fit only the fact is kept, from the first that is too much backwards."""
    after = follow(fresh, [1, 1, 1], keep_bytes=16)
    assert answers(after) == [(0, 1, False), (1, 1, True), (2, 1, True)]
    assert answers(follow(fresh, [1], keep_bytes=7)) == [(0, 1, False)]


def test_a_streamed_answer_grows_step_by_step(fresh: Record) -> None:
    """A generation has one answer, to which each of its steps adds; earlier answers are given up."""
    before = follow(fresh, [2])
    item = Item(row=b"", parts=(Part(1, View(), b"generate"),), extends=GrowingAnswer(2, b"generate", seed=5))
    earlier = []
    for n in range(3):
        before = next_record(before, item, Stepped(b"", b"", ({"n": np.array([n])},)), 500.0, 1000)
        (grown,) = before.answers
        earlier.append(grown.outputs)
    assert [shown["n"].tolist() for shown in earlier if shown] == [[0], [0, 1], [0, 1, 2]]
    assert (grown.start, grown.steps, grown.seed, grown.expires_at) == (2, 3, 5, 560.0)
    assert grown.digest == b"generate"


def test_a_long_streamed_answer_keeps_its_tail(fresh: Record) -> None:
    """It is written anew with every step, so the first steps are given up, and it is told how many."""
    item = Item(row=b"", parts=(Part(1, View()),), extends=GrowingAnswer(0, b"", seed=5))
    before, limit = fresh, 8 * STREAM_SHARE * 10  # ten numbers of eight bytes
    for step in range(100):
        stepped = Stepped(b"", b"", ({"n": np.array([float(step)])},))
        before = next_record(before, item, stepped, 500.0, limit)
        (grown,) = before.answers
        assert grown.outputs is not None
        kept = grown.outputs["n"].tolist()
        assert kept == [float(n) for n in range(grown.dropped, step + 1)]
        assert len(kept) <= 10
    assert grown.steps == 100
    assert grown.dropped >= 90
