"""What every change of a graph needs: copies, constants, what a node reads, new lists of nodes."""

from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

# What exporters put between the weights of a module and an operator: torch's newer one reorders an LSTM's gates so.
_FOLDED = {"Constant", "Identity", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Transpose", "Reshape"}


def copy_of(model: ModelProto) -> ModelProto:
    """A copy that can be changed."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def constants_of(model: ModelProto) -> dict[str, np.ndarray]:
    """The graph's initializers."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def add_constant(model: ModelProto, name: str, value: np.ndarray) -> None:
    """Append an initializer."""
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))


def folded(model: ModelProto) -> ModelProto:
    """A copy in which what is only moved about of the constants is a constant itself."""
    copy = copy_of(model)
    constants, left = constants_of(copy), []
    for node in copy.graph.node:
        if node.op_type in _FOLDED and reads(node) <= set(constants):
            for name, value in _evaluated(node, constants, model).items():
                constants[name] = value
                add_constant(copy, name, value)
        else:
            left.append(node)
    set_nodes(copy, left)
    remove_unused(copy)
    return copy


def _evaluated(node: NodeProto, constants: dict[str, np.ndarray], model: ModelProto) -> dict[str, np.ndarray]:
    given = [numpy_helper.from_array(constants[name], name) for name in sorted(reads(node))]
    names = [name for name in node.output if name]
    outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    graph = helper.make_graph([node], "constant", [], outputs, given)
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import))
    return dict(zip(names, map(np.asarray, evaluator.run(None, {})), strict=True))


def reads(node: NodeProto) -> set[str]:
    """The tensors that a node reads, those that its inner graphs take from outside included."""
    inner = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    return {name for name in node.input if name}.union(*map(_read_within, inner))


def _read_within(graph: GraphProto) -> set[str]:
    return {value.name for value in graph.output}.union(*map(reads, graph.node))


def set_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Replace the graph's nodes; they may be some of its own."""
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def remove_unused(model: ModelProto) -> None:
    """Take out nodes and constants that nobody reads."""
    needed, kept = {value.name for value in model.graph.output}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= reads(node)
    set_nodes(model, kept[::-1])
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
