"""Find out, by running, from how many rows on a model answers bit for bit the same.

A matrix product may add up in another order for 1 row than for 4, and the last bits differ. Sessions promise that an
answer depends neither on who else is in the batch nor on how the input was cut, so the smallest batch that keeps this
promise is looked for when a model is loaded, with this build of ONNX Runtime on this processor.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from service.artifact import Shape, Signature, TensorSpec
from service.engine import ort
from service.engine.runtime import Engine
from service.errors import ArtifactError
from service.state import Chunk

_CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
_CUT = (1, 2, 11)  # a chunk in pieces, the last one longer than the blocks that matrix kernels work in
_STEPS = sum(_CUT)


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
    # A state that is not all zeros.
    rows = engine.run([engine.initial_row] * count, [_part(chunk, 0, 2) for chunk in chunks]).rows
    engine.min_rows = 1
    reference = _cut(engine, rows, chunks, [[steps]] * count)
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


def _part(chunk: Chunk, start: int, end: int) -> Chunk:
    return tuple(a[start:end] for a in chunk)


def _cut(engine: Engine, rows: list[bytes], chunks: list[Chunk], cuts: Sequence[Sequence[int]]) -> _Result:
    """Run each chunk in the pieces of its cut, of which all have as many."""
    outputs: list[list[bytes]] = [[] for _ in rows]
    ends = [list(itertools.accumulate(cut, initial=0)) for cut in cuts]
    for i in range(len(cuts[0])):
        parts = [_part(chunk, end[i], end[i + 1]) for chunk, end in zip(chunks, ends, strict=True)]
        done = engine.run(rows, parts)
        rows = done.rows
        for row, (part, told) in enumerate(zip(parts, outputs, strict=True)):
            told += [o[row, : len(part[0])].tobytes() for o in done.outputs.values()]
    kinds = range(len(engine.signature.outputs))
    return [
        (*(b"".join(told[kind :: len(kinds)]) for kind in kinds), row) for told, row in zip(outputs, rows, strict=True)
    ]


def _holds(engine: Engine, rows: list[bytes], chunks: list[Chunk], reference: _Result, candidate: int) -> bool:
    """Whether batches of many sizes, cut in many ways, all equal the reference, which ran whole."""
    count, steps = len(rows), len(chunks[0][0])
    cut = _CUT if steps > 1 else (1,)
    sizes = {1, 2, candidate, candidate + 1, 2 * candidate + 1, 5, 17}
    for size in sorted({min(size, count) for size in sizes}):
        some = slice(count - size, None)  # not always the same neighbours
        if _cut(engine, rows[some], chunks[some], [cut] * size) != reference[some]:
            return False
    # All of them: each row is cut at another step, so that it runs beside longer and shorter ones, where it can.
    own = [(1 + i % (steps - 1), steps - 1 - i % (steps - 1)) for i in range(count)] if steps > 1 else []
    cuts = own if own and engine.signature.lengths is not None else [cut] * count
    return _cut(engine, rows, chunks, cuts) == reference
