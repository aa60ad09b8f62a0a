"""Rows that stay on the device: the same answers to the last bit, however few slots there are."""

from collections.abc import Sequence

import numpy as np
import pytest

from service.engine.probe import random_chunk
from service.engine.repository import LoadedModel
from service.engine.runtime import Engine, Run, load_engine
from service.errors import UndecodableState
from service.settings import load_settings
from service.state import Chunk
from tests.support import artifacts
from tests.support.artifacts import POISON
from tests.support.brain import numbers
from tests.support.gpu import resident

CPU = load_settings(provider="cpu")
BATCHED = [
    "adder",
    "half_sum",
    "half_language",
    "half_forecast",
    "language",
    "forecast",
    "counters",
    "delay",
    "one_step",
    "poison",
    "equal",
]
Models = dict[str, LoadedModel]


@pytest.fixture(scope="session")
def engines(loaded: list[LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """The small artifacts, and some in float16: a sum in nothing else, and what `lstm-serve quantize` makes."""
    folder = tmp_path_factory.mktemp("half")
    made = {model.name: model.engine for model in loaded}
    halved = {name: artifacts.halved(folder / f"{name}.onnx", made[name].path) for name in ("language", "forecast")}
    halved["sum"] = artifacts.running_sum(folder / "sum.onnx", "float16")
    return made | {f"half_{name}": load_engine(path, CPU) for name, path in halved.items()}


def drawn_chunks(engine: Engine, rows: int, random: np.random.Generator) -> list[Chunk]:
    """Chunks of different lengths, where they may share a tick."""
    longest = 4 if engine.signature.has_time_axis else 1
    lengths = random.integers(1, longest + 1, rows) if engine.ragged else [longest] * rows
    return [random_chunk(engine.signature, int(length), random) for length in lengths]


def bits(done: Run, lengths: Sequence[int]) -> list[tuple[bytes, ...]]:
    """What each row came to."""
    outputs = [[o[i, :steps].tobytes() for o in done.outputs.values()] for i, steps in enumerate(lengths)]
    return [(*output, row) for output, row in zip(outputs, done.rows, strict=True)]


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("slots", [4, 12, 40])
def test_sessions_come_to_the_same_bits(engines: dict[str, Engine], name: str, slots: int) -> None:
    """Whatever the types and axes of the states, however few slots there are, and whoever is in a tick."""
    engine = engines[name]
    kept, random = resident(engine, slots), np.random.default_rng(3)
    here, there = [engine.initial_row] * 9, [kept.initial_row] * 9
    for _ in range(25):
        chosen = random.permutation(9)[: random.integers(1, 7)].tolist()
        chunks = drawn_chunks(engine, len(chosen), random)
        expected = engine.run([here[i] for i in chosen], chunks)
        done = kept.run([there[i] for i in chosen], chunks)
        lengths = [len(chunk[0]) for chunk in chunks]
        assert bits(done, lengths) == bits(expected, lengths)
        assert (done.finite, done.padding) == (expected.finite, expected.padding)
        for i, ours, theirs in zip(chosen, expected.rows, done.rows, strict=True):
            here[i], there[i] = ours, theirs


@pytest.mark.parametrize("name", BATCHED)
def test_rows_below_the_smallest_batch_are_filled_up(engines: dict[str, Engine], name: str) -> None:
    """What fills a batch up is kept nowhere, and the rows beside it stay as they were."""
    engine, random = engines[name], np.random.default_rng(0)
    kept = resident(engine)
    before = kept.run([kept.initial_row] * 5, drawn_chunks(engine, 5, random)).rows
    kept.min_rows = 4
    chunks = drawn_chunks(engine, 1, random)
    done = kept.run(before[:1], chunks)
    assert len(done.rows) == 1
    uploaded, chunks = kept.uploaded, drawn_chunks(engine, 4, random)
    after = kept.run(before[1:], chunks)
    assert kept.uploaded == uploaded
    assert after.rows == engine.run(before[1:], chunks).rows


def test_a_row_that_stays_is_not_put_there_again(models: Models) -> None:
    """New sessions share the row that they begin with; from then on each row lies where it was computed."""
    kept = resident(models["language"].engine)
    begun, random = kept.uploaded, np.random.default_rng(0)
    rows = [kept.initial_row] * 5
    for _ in range(4):
        rows = kept.run(rows, drawn_chunks(kept, 5, random)).rows
    assert kept.uploaded == begun
    kept.run([bytes(bytearray(row)) for row in rows[:2]], drawn_chunks(kept, 2, random))  # as from the store
    assert kept.uploaded == begun + 2


def test_one_batch_begins_before_the_other_is_brought_in(models: Models) -> None:
    """Two under way come to what they would come to one after the other."""
    engine, random = models["language"].engine, np.random.default_rng(1)
    kept = resident(engine, 16)
    start = engine.run([engine.initial_row] * 6, drawn_chunks(engine, 6, random)).rows
    chunks = [drawn_chunks(engine, 3, random) for _ in range(4)]
    first, second = kept.begin(start[:3], chunks[0]), kept.begin(start[3:], chunks[1])
    one = first()
    third = kept.begin(one.rows, chunks[2])
    two = second()
    fourth = kept.begin(two.rows, chunks[3])
    expected = [engine.run(engine.run(start[:3], chunks[0]).rows, chunks[2]).rows]
    expected += [engine.run(engine.run(start[3:], chunks[1]).rows, chunks[3]).rows]
    assert [third().rows, fourth().rows] == expected


def test_where_ticks_under_way_leave_no_room_rows_come_and_go(models: Models) -> None:
    """A tick never waits for a slot, nor takes one that another tick is using."""
    engine = models["adder"].engine
    kept = resident(engine, 4)
    first = kept.begin([kept.initial_row] * 3, [numbers(1), numbers(2), numbers(3)])
    second = kept.run([kept.initial_row] * 3, [numbers(4), numbers(5), numbers(6)])
    assert second.outputs["y"].ravel().tolist() == [4, 5, 6]
    assert first().outputs["y"].ravel().tolist() == [1, 2, 3]
    assert kept.run(second.rows, [numbers(1)] * 3).outputs["y"].ravel().tolist() == [5, 6, 7]


def test_a_batch_that_fails_leaves_its_slots_to_others(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it could not begin, or what it came to could not be brought in."""
    kept = resident(models["adder"].engine, 4)
    good, chunks = kept.run([kept.initial_row], [numbers(7)]).rows, [numbers(1)] * 3
    for _ in range(3):
        with pytest.raises(UndecodableState):
            kept.run([b"too long a row"] * 3, chunks)
        begun = kept.begin([kept.initial_row] * 3, chunks)
        with monkeypatch.context() as broken:
            broken.setattr(kept, "_came_to", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                begun()
    uploaded = kept.uploaded
    rows = kept.run([kept.initial_row] * 3, chunks).rows
    assert kept.run(rows, chunks).outputs["y"].ravel().tolist() == [2, 2, 2]
    assert kept.uploaded == uploaded
    assert kept.run(good, [numbers(1)]).outputs["y"].ravel().tolist() == [8]


def test_float16_is_judged_by_its_own_numbers(engines: dict[str, Engine]) -> None:
    """Numbers that add up to more than float16 holds are numbers; one step beyond its range is not."""
    for engine in (engines["half_sum"], resident(engines["half_sum"])):
        steps = [(np.array([[value]], np.float16),) for value in (60_000, 60_000, 5_000)]
        done = engine.run([engine.initial_row] * 3, steps)
        assert done.finite == [True] * 3
        assert engine.run(done.rows, [steps[2]] * 3).finite == [True] * 3
        assert engine.run(done.rows, [steps[0]] * 3).finite == [False, False, True]


def test_a_row_that_is_not_finite_is_not_kept(models: Models) -> None:
    """Its session goes on from the row that it had, which is put there anew; its batch-mates stay."""
    kept = resident(models["poison"].engine)
    rows = kept.run([kept.initial_row] * 2, [numbers(1), numbers(2)]).rows
    done = kept.run(rows, [numbers(POISON), numbers(1)])
    assert done.finite == [False, True]
    uploaded = kept.uploaded
    assert kept.run([rows[0], done.rows[1]], [numbers(5)] * 2).outputs["y"].ravel().tolist() == [6, 8]
    assert kept.uploaded == uploaded + 1
