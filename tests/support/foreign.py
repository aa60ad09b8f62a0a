"""Artifacts of unusual kinds: without a time axis, dividing by zero, and not holding what their signature says."""

from pathlib import Path

from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from export import graph
from export.signature import attach
from service.artifact import Signature, StateSpec, TensorSpec


def one_step(path: Path) -> Path:
    """A sum without a time axis: one call is one step. State ``h`` [batch], input ``x`` [batch], output ``y``."""
    nodes = [helper.make_node("Add", ["h", "x"], ["y"]), helper.make_node("Identity", ["y"], ["h2"])]
    x = TensorSpec(name="x", dtype="float32", shape=(None,), time_axis=None)
    return _written(path, nodes, x, StateSpec(input="h", output="h2", dtype="float32", shape=(None,), batch_axis=0))


def reciprocal(path: Path) -> Path:
    """1/x at each step, beside a state that never moves; what is filled up with zeros comes to infinity."""
    nodes = [helper.make_node("Reciprocal", ["x"], ["y"]), helper.make_node("Identity", ["h"], ["h2"])]
    x = TensorSpec(name="x", dtype="float32", shape=(None, None, 1))
    return _written(path, nodes, x, _STATE, lengths="lengths")


def growing(path: Path) -> Path:
    """An artifact that loads and does not hold its signature: its state doubles at each step, unseen in the graph."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Concat", ["h", "h"], ["h2"], axis=1)]
    return _written(path, nodes, _SEQUENCE, _STATE)


def failing(path: Path) -> Path:
    """An artifact that loads and cannot be run: the shapes of its product do not fit."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("MatMul", ["h", "h"], ["h2"])]
    return _written(path, nodes, _SEQUENCE, _STATE)


_SEQUENCE = TensorSpec(name="x", dtype="float32", shape=(None, None))
_STATE = StateSpec(input="h", output="h2", dtype="float32", shape=(None, 3), batch_axis=0)


def _written(path: Path, nodes: list[NodeProto], x: TensorSpec, state: StateSpec, lengths: str | None = None) -> Path:
    def value(name: str, rank: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{axis}" for axis in range(rank)])

    counts = [helper.make_tensor_value_info(lengths, TensorProto.INT32, ["rows"])] if lengths else []
    step, kept = len(x.shape), len(state.shape)
    inputs, outputs = [value("x", step), value("h", kept), *counts], [value("y", step), value("h2", kept)]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs),
        opset_imports=[helper.make_opsetid("", graph.OPSET)],
        ir_version=graph.IR_VERSION,
    )
    y = x.model_copy(update={"name": "y"})
    path.parent.mkdir(parents=True)
    signature = Signature(task="generic", inputs=(x,), outputs=(y,), states=(state,), lengths=lengths)
    path.write_bytes(attach(model, signature))
    return path
