"""Artifacts of unusual kinds, as others make them: every layout of rows, steps and states, and broken promises.

All of them count and add, so that whole numbers come out exactly and a test can say what they have to be.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from export import graph
from export.signature import attach
from service.artifact import DType, Proof, Shape, Signature, StateSpec, Tensor, TensorSpec

SAMPLES, CONTEXT, RATE = 512, 4, 16_000  # of `audio`: a chunk, what it keeps of the one before, the constant
CACHES = 40  # of `delay`
DELAY = sum(1 + k % 3 for k in range(CACHES))  # steps after which `delay` answers what it was sent


def one_step(path: Path) -> Path:
    """A sum without a time axis: one call is one step. State ``h`` [batch], input ``x`` [batch], output ``y``."""
    nodes = [helper.make_node("Add", ["h", "x"], ["y"]), helper.make_node("Identity", ["y"], ["h2"])]
    x = _tensor("x", (None,), time_axis=None)
    return _sum(path, nodes, x, StateSpec(input="h", output="h2", dtype="float32", shape=(None,), batch_axis=0))


def reciprocal(path: Path) -> Path:
    """1/x at each step, beside a state that never moves; what is filled up with zeros comes to infinity."""
    nodes = [helper.make_node("Reciprocal", ["x"], ["y"]), helper.make_node("Identity", ["h"], ["h2"])]
    return _sum(path, nodes, _tensor("x", (None, None, 1)), _STATE, lengths="lengths")


def growing(path: Path) -> Path:
    """An artifact that loads and does not hold its signature: its state doubles at each step, unseen in the graph."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Concat", ["h", "h"], ["h2"], axis=1)]
    return _sum(path, nodes, _SEQUENCE, _STATE, said=(None, None))


def failing(path: Path) -> Path:
    """An artifact that loads and cannot be run: the shapes of its product do not fit."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("MatMul", ["h", "h"], ["h2"])]
    return _sum(path, nodes, _SEQUENCE, _STATE, said=(None, None))


def audio(path: Path) -> Path:
    """One chunk of samples a call and a batch axis frozen at 1, or none: served one row at a time.

    ``energy`` [] float16 and ``total`` [1] float64: the sum of the chunk and of the ``context`` before it, and of all
    such sums so far; ``time`` [] int64: samples so far times ``rate``; ``loud`` [1, 1] bool: whether the sum is
    positive. Constants: ``rate``, a scalar, and ``weights``, a matrix of ones.
    """
    nodes = [
        helper.make_node("Concat", ["context", "chunk"], ["joined"], axis=1),  # [1, context + samples]
        helper.make_node("MatMul", ["joined", "weights"], ["sum"]),  # [1, 1]
        helper.make_node("Slice", ["joined", "kept", "end", "one"], ["context2"]),
        helper.make_node("Reshape", ["sum", "scalar"], ["plain"]),
        helper.make_node("Cast", ["plain"], ["energy"], to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["sum", "minus_one"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["exact"], to=TensorProto.DOUBLE),
        helper.make_node("Add", ["sums", "exact"], ["total"]),
        helper.make_node("Identity", ["total"], ["sums2"]),
        helper.make_node("Add", ["count", "samples"], ["count2"]),
        helper.make_node("Mul", ["count2", "rate"], ["time"]),
        helper.make_node("Greater", ["sum", "zero"], ["loud"]),
    ]
    ones = np.ones((CONTEXT + SAMPLES, 1), np.float32)
    signature = Signature(
        task="generic",
        batched=False,
        inputs=(_tensor("chunk", (1, SAMPLES), time_axis=None),),
        outputs=(
            _tensor("energy", (), "float16", batch_axis=None, time_axis=None),
            _tensor("total", (1,), "float64", time_axis=None),
            _tensor("time", (), "int64", batch_axis=None, time_axis=None),
            _tensor("loud", (1, 1), "bool", batch_axis=0, time_axis=1),
        ),
        states=(
            _state("context", (1, CONTEXT), "float32", 0),
            _state("sums", (1,), "float64", None),
            _state("count", (), "int64", None),
        ),
        constants={"rate": Tensor.of(np.array(RATE)), "weights": Tensor.of(ones)},
    )
    return _written(path, nodes, signature)


def frozen(path: Path) -> Path:
    """A sum over a sequence, time last, whose batch axis is frozen at 1 in the middle. ``x``, ``y`` [2, 1, time]."""
    nodes = [
        helper.make_node("Unsqueeze", ["h", "minus_one"], ["first"]),  # [2, 1, 1]
        helper.make_node("Concat", ["first", "x"], ["terms"], axis=2),
        helper.make_node("CumSum", ["terms", "two"], ["sums"]),
        helper.make_node("Slice", ["sums", "one", "end", "two_"], ["y"]),
        helper.make_node("Gather", ["sums", "last"], ["h2"], axis=2),
    ]
    x = _tensor("x", (2, 1, None), batch_axis=1, time_axis=2)
    state = _state("h", (2, 1), "float32", 1)
    y = x.model_copy(update={"name": "y"})
    return _written(path, nodes, Signature(task="generic", batched=False, inputs=(x,), outputs=(y,), states=(state,)))


def counters(path: Path) -> Path:
    """Inputs, outputs and states of every type, with batch and time axes everywhere.

    ``y`` [time, batch, 2]: the running sum of ``x``; ``total`` [batch, time] int64: the running sum of ``gain``
    (int32) at the steps that are ``on``. States: the sums, and each type once more with the sum of ``gain``.
    """
    nodes = [
        helper.make_node("Unsqueeze", ["h", "zero_"], ["first"]),  # [1, batch, 2]
        helper.make_node("Concat", ["first", "x"], ["terms"], axis=0),
        helper.make_node("CumSum", ["terms", "zero_i"], ["sums"]),
        helper.make_node("Slice", ["sums", "one", "end", "zero_"], ["y"]),
        helper.make_node("Gather", ["sums", "last"], ["h2"], axis=0),
        helper.make_node("Cast", ["gain"], ["gain64"], to=TensorProto.INT64),
        helper.make_node("Where", ["on", "gain64", "none"], ["counted"]),  # [batch, time]
        helper.make_node("Unsqueeze", ["t", "minus_one"], ["before"]),
        helper.make_node("Concat", ["before", "counted"], ["counts"], axis=1),
        helper.make_node("CumSum", ["counts", "last_i"], ["totals"]),
        helper.make_node("Slice", ["totals", "one", "end", "one"], ["total"]),
        helper.make_node("Gather", ["totals", "last"], ["t2"], axis=1),
        helper.make_node("ReduceSum", ["gain64", "one"], ["gained"], keepdims=0),  # [batch]
        helper.make_node("Greater", ["gained", "none"], ["some"]),
        helper.make_node("Or", ["seen", "some"], ["seen2"]),
    ]
    for name, kind in (("half", TensorProto.FLOAT16), ("double", TensorProto.DOUBLE), ("whole", TensorProto.INT32)):
        nodes += [
            helper.make_node("Cast", [name], [f"{name}64"], to=TensorProto.INT64),  # [3, batch]
            helper.make_node("Add", [f"{name}64", "gained"], [f"{name}more"]),
            helper.make_node("Cast", [f"{name}more"], [f"{name}2"], to=kind),
        ]
    signature = Signature(
        task="generic",
        inputs=(
            _tensor("x", (None, None, 2), batch_axis=1, time_axis=0),
            _tensor("gain", (None, None), "int32"),
            _tensor("on", (None, None), "bool"),
        ),
        outputs=(
            _tensor("y", (None, None, 2), batch_axis=1, time_axis=0),
            _tensor("total", (None, None), "int64"),
        ),
        states=(
            _state("seen", (None,), "bool", 0),  # it leaves what follows it in the row unaligned
            _state("h", (None, 2), "float32", 0),
            _state("t", (None,), "int64", 0),
            _state("half", (3, None), "float16", 1),
            _state("double", (3, None), "float64", 1),
            _state("whole", (3, None), "int32", 1),
        ),
    )
    return _written(path, nodes, signature)


def delay(path: Path) -> Path:
    """Dozens of states: caches of different widths, one behind the other, and a counter.

    ``x`` [batch, time], ``y`` [batch]: what came ``DELAY`` steps ago. The output has no time axis, so one call is one
    step, although the input has one.
    """
    nodes, states, moving = [helper.make_node("Identity", ["x"], ["moving0"])], [], "moving0"
    for k in range(CACHES):
        width, axis = 1 + k % 3, k % 2  # [batch, width] and [width, batch]
        cache = f"cache{k}_"
        states.append(_state(cache, (width, None) if axis else (None, width), "float32", axis))
        if axis:
            nodes.append(helper.make_node("Transpose", [cache], [f"{cache}t"], perm=[1, 0]))
        nodes += [
            helper.make_node("Concat", [f"{cache}t" if axis else cache, moving], [f"{cache}all"], axis=1),
            helper.make_node("Slice", [f"{cache}all", "zero_", "one", "one"], [f"moving{k + 1}"]),
            helper.make_node("Slice", [f"{cache}all", "one", "end", "one"], [f"{cache}kept" if axis else f"{cache}2"]),
        ]
        if axis:
            nodes.append(helper.make_node("Transpose", [f"{cache}kept"], [f"{cache}2"], perm=[1, 0]))
        moving = f"moving{k + 1}"
    nodes += [
        helper.make_node("Squeeze", [moving, "one"], ["y"]),
        helper.make_node("Add", ["count", "one"], ["count2"]),
        helper.make_node("Identity", ["count2"], ["steps"]),
    ]
    signature = Signature(
        task="generic",
        inputs=(_tensor("x", (None, None)),),
        outputs=(
            _tensor("y", (None,), time_axis=None),
            _tensor("steps", (None,), "int64", time_axis=None),
        ),
        states=(*states, _state("count", (None,), "int64", 0)),
    )
    return _written(path, nodes, signature)


def looks_ahead(path: Path) -> Path:
    """A model whose sequences may not be cut: each step is answered the sum of its whole call."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "one"], ["sum"], keepdims=1),  # [batch, 1]
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["sum", "nothing"], ["y"]),
        helper.make_node("Identity", ["h"], ["h2"]),
    ]
    proof = Proof(
        rows_independent=True, batch_error=0, bit_exact_from=1, chunked=False, chunk_error=1.0, continues=True
    )
    y = _SEQUENCE.model_copy(update={"name": "y"})
    signature = Signature(task="generic", inputs=(_SEQUENCE,), outputs=(y,), states=(_STATE,), proof=proof)
    return _written(path, nodes, signature)


_CONSTANTS = {
    "zero": np.array([[0]], np.float32),
    "none": np.array(0, np.int64),
    "zero_": np.array([0], np.int64),
    "zero_i": np.array(0, np.int64),
    "one": np.array([1], np.int64),
    "two": np.array(2, np.int64),
    "two_": np.array([2], np.int64),
    "last": np.array(-1, np.int64),
    "last_i": np.array(1, np.int64),
    "minus_one": np.array([-1], np.int64),
    "end": np.array([np.iinfo(np.int64).max], np.int64),
    "kept": np.array([SAMPLES], np.int64),
    "samples": np.array(SAMPLES, np.int64),
    "scalar": np.array([], np.int64),
}


def _tensor(
    name: str, shape: Shape, dtype: DType = "float32", batch_axis: int | None = 0, time_axis: int | None = 1
) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, batch_axis=batch_axis, time_axis=time_axis)


def _state(name: str, shape: Shape, dtype: DType, batch_axis: int | None) -> StateSpec:
    return StateSpec(input=name, output=f"{name}2", dtype=dtype, shape=shape, batch_axis=batch_axis)


_SEQUENCE = _tensor("x", (None, None))
_STATE = _state("h", (None, 3), "float32", 0)


def _sum(
    path: Path,
    nodes: Sequence[NodeProto],
    x: TensorSpec,
    state: StateSpec,
    lengths: str | None = None,
    said: Shape | None = None,
) -> Path:
    """One input, one output like it, one state; ``said``: the state's shape in the graph where it is another."""
    y = x.model_copy(update={"name": "y"})
    signature = Signature(task="generic", inputs=(x,), outputs=(y,), states=(state,), lengths=lengths)
    return _written(path, nodes, signature, {state.input: said, state.output: said} if said else {})


def _written(
    path: Path, nodes: Sequence[NodeProto], signature: Signature, said: dict[str, Shape] | None = None
) -> Path:
    """An artifact with what its signature names; ``said``: shapes that the graph tells otherwise."""

    def value(name: str, dtype: DType, shape: Shape) -> ValueInfoProto:
        shown = [n or f"{name}{axis}" for axis, n in enumerate((said or {}).get(name, shape))]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shown)

    inputs = [value(i.name, i.dtype, i.shape) for i in signature.inputs]
    inputs += [value(s.input, s.dtype, s.shape) for s in signature.states]
    inputs += [value(name, c.dtype, c.shape) for name, c in signature.constants.items()]
    inputs += [value(signature.lengths, "int32", (None,))] if signature.lengths else []
    outputs = [value(o.name, o.dtype, o.shape) for o in signature.outputs]
    outputs += [value(s.output, s.dtype, s.shape) for s in signature.states]
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(array, name) for name, array in _CONSTANTS.items() if name in used]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", graph.OPSET)],
        ir_version=graph.IR_VERSION,
    )
    path.parent.mkdir(parents=True)
    path.write_bytes(attach(model, signature))
    return path
