"""What the service's design takes for given of ONNX Runtime, measured here: bits that depend on nothing but the row."""

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from export.cells import CELLS
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import load_settings
from tests.support import artifacts

ROWS, STEPS = 200, 20
SYMBOLS = string.printable[:96]


@dataclass(frozen=True)
class Known:
    """An engine, sequences [rows, steps], and what they come to in one batch of all."""

    engine: Engine
    tokens: np.ndarray
    outputs: np.ndarray
    rows: list[bytes]


@pytest.fixture(scope="module", params=CELLS)
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Two layers of 128 units of each cell over 96 symbols."""
    path = tmp_path_factory.mktemp("facts") / "model.onnx"
    artifacts.language(path, SYMBOLS, layers=2, hidden=128, cell=request.param)
    engine = load_engine(path, load_settings(provider="cpu"))
    probe(engine)
    tokens = np.random.default_rng(1).integers(0, len(SYMBOLS), (ROWS, STEPS))
    done = engine.run([engine.initial_row] * ROWS, [(row,) for row in tokens])
    return Known(engine, tokens, done.outputs["logprobs"], done.rows)


def test_the_probe_finds_a_small_padding(known: Known) -> None:
    """Bits are kept from a few rows on: filling a tick up to them costs little."""
    assert known.engine.bit_exact
    assert known.engine.min_rows <= 8


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 17, 64, 129, 200])
def test_bits_do_not_depend_on_the_batch(known: Known, size: int) -> None:
    """A row's outputs and new state are the same in a batch of any size, beside whatever other rows."""
    some = np.random.default_rng(size).choice(ROWS, size, replace=False)
    done = known.engine.run([known.engine.initial_row] * size, [(known.tokens[i],) for i in some])
    assert (done.outputs["logprobs"] == known.outputs[some]).all()
    assert done.rows == [known.rows[i] for i in some]


@pytest.mark.parametrize("size", [1, 3, 33])
@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_bits_do_not_depend_on_the_cut(known: Known, size: int, chunk: int) -> None:
    """Chunks of any length lead to the bits of the whole sequence."""
    rows, parts = [known.engine.initial_row] * size, []
    for start in range(0, STEPS, chunk):
        done = known.engine.run(rows, [(row[start : start + chunk],) for row in known.tokens[:size]])
        rows = done.rows
        parts.append(done.outputs["logprobs"])
    assert (np.concatenate(parts, axis=1) == known.outputs[:size]).all()
    assert rows == known.rows[:size]


def test_bits_do_not_depend_on_longer_neighbours(known: Known) -> None:
    """In a ragged batch each row comes to what it comes to alone, its state included."""
    lengths = np.random.default_rng(2).integers(1, STEPS + 1, 50)
    chunks = [(known.tokens[i, :steps],) for i, steps in enumerate(lengths)]
    shared = known.engine.run([known.engine.initial_row] * 50, chunks)
    for i, steps in enumerate(lengths):
        alone = known.engine.run([known.engine.initial_row], [chunks[i]])
        assert (shared.outputs["logprobs"][i, :steps] == alone.outputs["logprobs"][0]).all()
        assert shared.rows[i] == alone.rows[0]


def test_the_running_sum_is_exact_and_ragged(tmp_path: Path) -> None:
    """The fake that tests lean on counts every step once, in any batch."""
    engine = load_engine(artifacts.running_sum(tmp_path / "model.onnx"), load_settings(provider="cpu"))
    chunks = [(np.arange(1, n + 1, dtype=np.float32)[:, None],) for n in (3, 1, 5)]
    done = engine.run([engine.initial_row] * 3, chunks)
    assert [np.frombuffer(row, "<f4").item() for row in done.rows] == [6.0, 1.0, 15.0]
    assert done.outputs["y"][2, :, 0].tolist() == [1, 3, 6, 10, 15]


def test_poison_harms_its_own_row_only(tmp_path: Path) -> None:
    """A finite input that drives one row to infinity leaves its neighbours exact."""
    engine = load_engine(artifacts.poison(tmp_path / "model.onnx"), load_settings(provider="cpu"))
    chunks = [(np.array(values, np.float32)[:, None],) for values in ([1, 2], [1, artifacts.POISON], [5])]
    done = engine.run([engine.initial_row] * 3, chunks)
    assert done.finite == [True, False, True]
    assert [np.frombuffer(row, "<f4").item() for row in done.rows] == [3.0, np.inf, 5.0]
