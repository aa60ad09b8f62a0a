"""Find out, by running, from how many rows on a model answers bit for bit the same.

A matrix product may add up in another order for 1 row than for 4, and the last bits differ. Sessions promise that an
answer depends neither on who else is in the batch nor on how the input was cut, so the smallest batch that keeps this
promise is looked for when a model is loaded, with this build of ONNX Runtime on this processor.
"""

import itertools

import numpy as np

from service.artifact import Shape, Signature, TensorSpec
from service.engine import ort
from service.engine.runtime import Engine
from service.errors import ArtifactError
from service.state import Chunk

_CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
_STEPS = 19  # odd, and longer than the blocks that matrix kernels work in


def probe(engine: Engine) -> None:
    """Set ``engine.min_rows`` and ``engine.bit_exact`` to what holds for this model here.

    Raises:
        ArtifactError: the graph cannot be run, or does not answer in the shapes that its signature says.
    """
    try:
        _check_shapes(engine)
        _find_padding(engine)
    except ort.ERRORS as error:
        raise ArtifactError(f"the graph loads, but does not run: {ort.first_line(error)}") from error


def _check_shapes(engine: Engine) -> None:
    """Hold what the graph returns against the signature; the graph itself need not say its shapes."""
    signature = engine.signature
    rows = 2 if signature.batched else 1
    steps = 3 if signature.has_time_axis else 1
    chunk = random_chunk(signature, steps, np.random.default_rng(0))
    fetched = engine.fetch([engine.initial_row] * rows, [chunk] * rows, [steps] * rows)
    expected = {s.output: _shape(s.shape, {s.batch_axis: rows}) for s in signature.states}
    for o in signature.outputs:
        expected[o.name] = _shape(o.shape, {o.batch_axis: rows, o.time_axis: steps})
    for name, shape in expected.items():
        if fetched[name].shape != shape:
            raise ArtifactError(f"output {name!r} has shape {fetched[name].shape} where its signature says {shape}")


def _shape(shape: Shape, lengths: dict[int | None, int]) -> tuple[int, ...]:
    return tuple(lengths.get(axis, n or 1) for axis, n in enumerate(shape))


def _find_padding(engine: Engine) -> None:
    random = np.random.default_rng(0)
    steps = _STEPS if engine.signature.has_time_axis else 1
    candidates = _CANDIDATES if engine.signature.batched else (1,)  # a row that runs alone has no neighbours
    count = max(candidates) + 1
    chunks = [random_chunk(engine.signature, steps, random) for _ in range(count)]
    rows = engine.run([engine.initial_row] * count, chunks).rows  # a state that is not all zeros
    engine.min_rows, reference = 1, _whole(engine, rows, chunks)
    for candidate in candidates:
        engine.min_rows = candidate
        if _holds(engine, rows, chunks, reference, candidate):
            engine.bit_exact = True
            return
    engine.min_rows, engine.bit_exact = 1, False


def random_chunk(signature: Signature, steps: int, random: np.random.Generator) -> Chunk:
    """A chunk [steps, *step shape] of each input, such as clients send: a forecast's in its own units."""
    return tuple(_random_input(signature, spec, steps, random) for spec in signature.inputs)


def _random_input(signature: Signature, spec: TensorSpec, steps: int, random: np.random.Generator) -> np.ndarray:
    shape = (steps, *spec.step_shape)
    if signature.vocabulary is not None and spec is signature.inputs[0]:
        return random.integers(0, len(signature.vocabulary), shape).astype(spec.dtype)
    if spec.dtype.startswith("float"):
        values = random.standard_normal(shape)
        if signature.scaling is not None and spec is signature.inputs[0]:
            values = values * signature.scaling.scale + signature.scaling.mean
        return values.astype(spec.dtype)
    return random.integers(0, 2, shape).astype(spec.dtype)


_Result = list[tuple[bytes, ...]]  # for each row: its outputs and its new row, as bytes


def _whole(engine: Engine, rows: list[bytes], chunks: list[Chunk]) -> _Result:
    done = engine.run(rows, chunks)
    return [
        (*(o[i, : len(chunk[0])].tobytes() for o in done.outputs.values()), row)
        for i, (chunk, row) in enumerate(zip(chunks, done.rows, strict=True))
    ]


def _cut(engine: Engine, rows: list[bytes], chunks: list[Chunk], sizes: list[int]) -> _Result:
    outputs: list[list[np.ndarray]] = []
    for start, end in itertools.pairwise([0, *itertools.accumulate(sizes)]):
        done = engine.run(rows, [tuple(a[start:end] for a in chunk) for chunk in chunks])
        rows = done.rows
        outputs.append(list(done.outputs.values()))
    joined = [np.concatenate(parts, axis=1) for parts in zip(*outputs, strict=True)]
    return [(*(o[i].tobytes() for o in joined), row) for i, row in enumerate(rows)]


def _holds(engine: Engine, rows: list[bytes], chunks: list[Chunk], reference: _Result, candidate: int) -> bool:
    """Whether batches of many sizes, whole and cut, all equal the reference."""
    steps = len(chunks[0][0])
    cuts = [[1] * steps, [2, steps - 2], [8, steps - 8]] if steps > 1 else []
    sizes = {1, 2, candidate, candidate + 1, 2 * candidate + 1, 5, 17, len(rows)}
    for size in sorted({min(size, len(rows)) for size in sizes}):
        some = slice(len(rows) - size, None)  # not always the same neighbours
        if _whole(engine, rows[some], chunks[some]) != reference[some]:
            return False
        if any(_cut(engine, rows[some], chunks[some], cut) != reference[some] for cut in cuts):
            return False
    return _ragged_holds(engine, rows, chunks)


def _ragged_holds(engine: Engine, rows: list[bytes], chunks: list[Chunk]) -> bool:
    """Whether a row's outputs and its new state are the same beside longer rows."""
    if engine.signature.lengths is None:
        return True
    steps = len(chunks[0][0])
    ragged = [tuple(a[: 1 + i % steps] for a in chunk) for i, chunk in enumerate(chunks)]
    together = _whole(engine, rows, ragged)
    return all(
        _whole(engine, [row], [chunk]) == [beside] for row, chunk, beside in zip(rows, ragged, together, strict=True)
    )
