"""The probe finds out from how many rows on a model is bit-exact, and does not believe those that are not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from service.engine.probe import probe, random_chunk
from service.engine.runtime import Engine, Run, load_engine
from service.settings import load_settings
from service.state import Chunk
from tests.support.signatures import document, parse


@dataclass(frozen=True)
class Call:
    """What a fault may depend on: rows in the graph's batch, number of the row, steps of the call, raggedness."""

    rows: int
    row: int
    steps: int
    ragged: bool


Fault = Callable[[Call], float]  # what is added to a row's outputs


class Faulty(Engine):
    """A summing engine whose last bits depend on what they should not depend on."""

    fault: Fault = staticmethod(lambda call: 0.0)
    beside: Callable[[set[int]], int] = staticmethod(lambda lengths: 0)  # bits of a new state that flip

    def run(self, rows: Sequence[bytes], chunks: Sequence[Chunk]) -> Run:
        """See ``Engine``."""
        done = super().run(rows, chunks)
        count, lengths = max(len(rows), self.min_rows), {len(chunk[0]) for chunk in chunks}
        outputs = {name: output.copy() for name, output in done.outputs.items()}
        for i, row in enumerate(outputs["y"]):
            row += np.float32(self.fault(Call(count, i, max(lengths), len(lengths) > 1)))
        kept = [row[:-1] + bytes([row[-1] ^ self.beside(lengths)]) for row in done.rows]
        return Run(outputs, kept, done.finite, done.padding)


@pytest.fixture
def engine(repository: Path) -> Faulty:
    """A summing engine that was not probed."""
    loaded = load_engine(repository / "adder" / "1" / "model.onnx", load_settings(provider="cpu"))
    loaded.__class__ = Faulty
    assert isinstance(loaded, Faulty)
    loaded.min_rows, loaded.bit_exact = 99, False
    return loaded


def test_a_model_that_is_exact_anyway_needs_no_padding(engine: Faulty) -> None:
    """A single row may run alone where that changes nothing."""
    probe(engine)
    assert (engine.min_rows, engine.bit_exact) == (1, True)


@pytest.mark.parametrize(("exact_from", "found"), [(2, 2), (3, 3), (4, 4), (5, 6), (16, 16), (32, 32)])
def test_the_smallest_padding_is_found(engine: Faulty, exact_from: int, found: int) -> None:
    """Batches that add up in another order below some size are filled up to the next size that was tried."""
    engine.fault = lambda call: 0.5 if call.rows < exact_from else 0.0
    probe(engine)
    assert (engine.min_rows, engine.bit_exact) == (found, True)


FAULTS: dict[str, Fault] = {
    "other at each batch size": lambda call: call.rows / 2,
    "other at one batch size": lambda call: 0.5 if call.rows == 33 else 0.0,
    "other at each place": lambda call: call.row / 2,
    "other when cut": lambda call: 0.5 if call.steps == 1 else 0.0,
    "other in long chunks": lambda call: 0.5 if call.steps == 11 else 0.0,
    "other beside longer rows": lambda call: 0.5 if call.ragged else 0.0,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_model_that_is_not_exact_is_marked(engine: Faulty, fault: Fault) -> None:
    """Whatever an answer depends on beside its own row, the model is neither padded nor called exact."""
    engine.fault = fault
    probe(engine)
    assert (engine.min_rows, engine.bit_exact) == (1, False)


def test_a_state_that_is_another_beside_longer_rows_is_found(engine: Faulty) -> None:
    """Also where the answers are the same: the next ones would not be."""
    engine.beside = lambda lengths: int(len(lengths) > 1)
    probe(engine)
    assert (engine.min_rows, engine.bit_exact) == (1, False)


@pytest.mark.parametrize("cut_shows", [False, True])
def test_rows_that_run_alone_are_only_cut(repository: Path, cut_shows: bool) -> None:
    """A model that is called for one row at a time needs no padding, and is exact where cutting changes nothing."""
    engine = load_engine(repository / "frozen" / "1" / "model.onnx", load_settings(provider="cpu"))
    engine.__class__ = Faulty
    assert isinstance(engine, Faulty)
    engine.fault = lambda call: 0.5 if cut_shows and call.steps == 1 else call.rows == 99
    probe(engine)
    assert (engine.min_rows, engine.bit_exact) == (1, not cut_shows)


def test_random_inputs_are_such_as_the_model_takes() -> None:
    """Token ids lie in the vocabulary, floats around 0, other types are small."""
    inputs = [
        {"name": name, "dtype": dtype, "shape": [None, None, 2]}
        for name, dtype in (("f", "float16"), ("i", "int32"), ("b", "bool"))
    ]
    chunk = random_chunk(parse(document(inputs=inputs)), 50, np.random.default_rng(0))
    assert [(array.shape, str(array.dtype)) for array in chunk] == [((50, 2), d) for d in ("float16", "int32", "bool")]
    assert set(chunk[1].ravel().tolist()) == {0, 1}
    (tokens,) = random_chunk(parse(document("language")), 50, np.random.default_rng(0))
    assert (tokens.shape, set(tokens.tolist())) == ((50,), {0, 1})
