"""The engine over models that others made: rows, steps and states of every layout, held against plain sums."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from service.engine.probe import random_chunk
from service.engine.repository import LoadedModel
from service.engine.runtime import Engine, Run, load_engine
from service.errors import ArtifactError
from service.sessions.requests import Advance
from service.settings import load_settings
from service.state import Chunk
from tests.support import artifacts, foreign
from tests.support.brain import ALL, Serve, numbers, sums

CPU = load_settings(provider="cpu")
LAYOUTS = ["audio", "frozen", "counters", "delay", "one_step"]
Models = dict[str, LoadedModel]


def steps_of(engine: Engine, many: int) -> int:
    """So many steps, or as many as one call can run."""
    return many if engine.signature.has_time_axis else 1


def bits(done: Run, i: int, steps: int) -> list[bytes]:
    """What one row of a batch came to."""
    return [*(output[i, :steps].tobytes() for output in done.outputs.values()), done.rows[i]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_do_not_see_their_neighbours(models: Models, name: str) -> None:
    """In a tick of several, from different states, every row comes to what it comes to alone, to the last bit."""
    engine = models[name].engine
    random, steps = np.random.default_rng(0), steps_of(engine, 3)
    rows, chunks = [engine.initial_row] * 5, list[Chunk]()
    for _ in range(3):  # states that have come some way
        chunks = [random_chunk(engine.signature, steps, random) for _ in rows]
        before, rows = rows, engine.run(rows, chunks).rows
    together = engine.run(before, chunks)
    for i, (row, chunk) in enumerate(zip(before, chunks, strict=True)):
        assert bits(together, i, steps) == bits(engine.run([row], [chunk]), 0, steps)
    assert len(set(together.rows)) > 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_have_the_shapes_of_steps(models: Models, name: str) -> None:
    """Each output comes as [rows, steps, *step shape] in its own type, wherever the graph has its axes."""
    engine = models[name].engine
    steps = steps_of(engine, 4)
    done = engine.run([engine.initial_row] * 3, [random_chunk(engine.signature, steps, np.random.default_rng(0))] * 3)
    for spec in engine.signature.outputs:
        output = done.outputs[spec.name]
        assert (output.shape, str(output.dtype)) == ((3, steps, *spec.step_shape), spec.dtype)
    assert done.finite == [True] * 3
    assert done.padding == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_is_the_tensors_that_it_is_made_of(models: Models, name: str) -> None:
    """A state that is taken apart and put together again is the same row."""
    engine = models[name].engine
    chunk = random_chunk(engine.signature, 1, np.random.default_rng(0))
    (row,) = engine.run([engine.initial_row], [chunk]).rows
    tensors = engine.layout.unpack_one(row)
    assert {n: (t.shape, str(t.dtype)) for n, t in tensors.items()} == {
        s.input: (s.row_shape, s.dtype) for s in engine.signature.states
    }
    assert engine.layout.pack_one(tensors) == row


def test_one_row_at_a_time_in_ticks_of_many_lengths(models: Models) -> None:
    """Rows that run alone need no padding, and no common length."""
    engine = models["frozen"].engine
    assert (engine.ragged, engine.min_rows, engine.bit_exact) == (True, 1, True)
    values = [np.arange(2 * steps, dtype=np.float32).reshape(steps, 2) for steps in (3, 1, 2)]
    first = engine.run([engine.initial_row] * 3, [(v,) for v in values])
    done = engine.run(first.rows, [(v,) for v in values[::-1]])
    for i, (earlier, later) in enumerate(zip(values, values[::-1], strict=True)):
        expected = np.cumsum(np.concatenate([earlier, later]), axis=0)[len(earlier) :]
        np.testing.assert_array_equal(done.outputs["y"][i, : len(later)], expected)
    assert done.padding == 0


def test_audio_is_counted_in_every_type(models: Models) -> None:
    """Outputs without a batch axis, constants that are a scalar and a matrix, a state that is one number."""
    engine = models["audio"].engine
    ones = np.ones((1, foreign.SAMPLES), np.float32)
    first = engine.run([engine.initial_row] * 2, [(ones,), (-ones,)])
    done = engine.run(first.rows, [(ones,), (ones,)])
    samples, context = foreign.SAMPLES, foreign.CONTEXT
    assert first.outputs["energy"].tolist() == [[samples], [-samples]]
    assert done.outputs["energy"].tolist() == [[samples + context], [samples - context]]
    assert done.outputs["total"].tolist() == [[2 * samples + context], [-context]]
    assert done.outputs["time"].tolist() == [[2 * samples * foreign.RATE]] * 2
    assert first.outputs["loud"].tolist() == [[True], [False]]


def test_inputs_of_several_types_reach_their_states(models: Models) -> None:
    """Sums of floats, of whole numbers where a flag is set, and a state of every type, beside each other."""
    engine = models["counters"].engine
    x = np.array([[1, 2], [3, 4]], np.float32)
    gain, on = np.array([5, 7], np.int32), np.array([True, False])
    first = engine.run([engine.initial_row] * 2, [(x, gain, on), (2 * x, 0 * gain, ~on)])
    done = engine.run(first.rows, [(x, gain, ~on)] * 2)
    assert done.outputs["y"].tolist() == [[[5, 8], [8, 12]], [[9, 14], [12, 18]]]
    assert done.outputs["total"].tolist() == [[5, 12], [0, 7]]
    state = engine.layout.unpack_one(done.rows[0])
    assert {n: t.tolist() for n, t in state.items()} == {
        "seen": True,
        "h": [8, 12],
        "t": 12,
        "half": [24] * 3,
        "double": [24] * 3,
        "whole": [24] * 3,
    }
    assert not engine.layout.unpack_one(first.rows[1])["seen"]


def test_dozens_of_states_are_carried(models: Models) -> None:
    """What goes through forty caches comes out when it has passed them all; the output has no time axis."""
    engine = models["delay"].engine
    assert not engine.signature.has_time_axis
    rows, shown = [engine.initial_row] * 2, []
    for step in range(foreign.DELAY + 3):
        done = engine.run(rows, [(np.array([sign * (step + 1)], np.float32),) for sign in (1, -1)])
        rows = done.rows
        shown.append(done.outputs["y"][:, 0].tolist())
    assert shown[foreign.DELAY - 1 :] == [[0, 0], [1, -1], [2, -2], [3, -3]]
    assert done.outputs["steps"].tolist() == [[foreign.DELAY + 3]] * 2


def test_states_stand_where_kernels_expect_them(models: Models) -> None:
    """A number that a flag before it leaves unaligned in the row is aligned when ONNX Runtime gets it."""
    layout = models["counters"].engine.layout
    for rows in (1, 2):
        tensors = layout.gather([models["counters"].engine.initial_row] * rows)
        assert all(tensor.flags.aligned and tensor.flags.c_contiguous for tensor in tensors.values())


@pytest.mark.filterwarnings("error")
def test_a_row_alone_that_is_not_finite_is_told(models: Models) -> None:
    """A sum too large for one output's type marks its row, and no other of the tick."""
    engine = models["audio"].engine
    ones = np.ones((1, foreign.SAMPLES), np.float32)
    done = engine.run([engine.initial_row] * 3, [(ones,), (1000 * ones,), (ones,)])
    assert done.finite == [True, False, True]


@pytest.mark.filterwarnings("error")
def test_a_state_without_a_batch_axis_that_is_not_finite_is_told(models: Models) -> None:
    """States are looked at in whatever layout, also where no output tells."""
    engine = models["audio"].engine
    tensors = engine.layout.unpack_one(engine.initial_row)
    row = engine.layout.pack_one(tensors | {"sums": np.array([np.inf])})
    chunk = (np.ones((1, foreign.SAMPLES), np.float32),)
    assert engine.run([engine.initial_row, row], [chunk, chunk]).finite == [True, False]


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_sequence_that_may_not_be_cut_is_not_cut(serve: Serve, allowed: bool) -> None:
    """Where the proof says so, a long chunk runs whole and requests are not folded, also with ``allow_inexact``."""
    brain = serve(segment_steps=2, allow_inexact=allowed)
    assert not brain.model("looks_ahead").folds
    id = await brain.create("looks_ahead")
    chunk = (np.array([1, 2, 3, 4, 5], np.float32),)
    answer, _ = await brain.sessions.advance(id, Advance(chunk, ALL), "")
    assert sums(answer) == [15] * 5
    assert brain.engines["looks_ahead"].ticks == [[5]]


def counts_as(path: Path, kind: int) -> Path:
    """``running_sum`` whose graph takes ``lengths`` in another type."""
    model = onnx.load(artifacts.running_sum(path))
    (lengths,) = [i for i in model.graph.input if i.name == "lengths"]
    lengths.type.tensor_type.elem_type = kind
    onnx.save(model, path)
    return path


def test_lengths_come_in_the_type_of_the_graph(tmp_path: Path) -> None:
    """int64 where the graph asks for it; a graph that asks for anything but whole numbers is refused."""
    engine = load_engine(counts_as(tmp_path / "model.onnx", TensorProto.INT64), CPU)
    done = engine.run([engine.initial_row] * 2, [numbers(1, 2), numbers(3)])
    assert [done.outputs["y"][0].ravel().tolist(), done.outputs["y"][1, :1].ravel().tolist()] == [[1, 3], [3]]
    with pytest.raises(ArtifactError, match=r"'lengths' is tensor\(float\) in the graph and int32"):
        load_engine(counts_as(tmp_path / "wrong.onnx", TensorProto.FLOAT), CPU)
