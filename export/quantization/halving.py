"""A graph whose operators with weights run in float16, and all others in float32 as before.

Owns where a graph changes between the two. ONNX Runtime's own converter is not used: what passes between two operators
that stay float32 goes through float16 there, which turns a pressure of 101,325 Pa into infinity.
"""

from collections.abc import Collection, Mapping, Set

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from export.quantization.graphs import add_constant, constants_of, copy_of, reads, remove_unused, set_nodes


def halve(model: ModelProto, operators: Set[str], states: Collection[str]) -> ModelProto:
    """A copy in which nodes of these operators, and the graph's inputs and outputs ``states``, are float16."""
    return _Halving(copy_of(model), operators).run(set(states))


class _Halving:
    """Tensors keep their names in float32; the float16 version of ``x`` is ``x_half``, and there may be both."""

    def __init__(self, model: ModelProto, operators: Set[str]) -> None:
        self._model, self._operators = model, operators
        self._constants = constants_of(model)
        self._nodes: list[NodeProto] = []
        known = shape_inference.infer_shapes(model).graph
        values = [*known.input, *known.output, *known.value_info]
        self._float = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._float |= {name for name, value in self._constants.items() if value.dtype == np.float32}
        self._halved: dict[str, str] = {}  # tensors that have a float16 version, and its name
        self._only_half: set[str] = set()  # those that have no other yet

    def run(self, states: set[str]) -> ModelProto:
        graph = self._model.graph
        outside = {v.name: f"{v.name}_full" for v in (*graph.input, *graph.output) if v.name in states & self._float}
        for value in (*graph.input, *graph.output):
            if value.name in outside:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        self._float |= set(outside.values())
        before = {outside[v.name]: v.name for v in graph.input if v.name in outside}
        self._halved |= before
        self._only_half |= set(before)
        for node in list(graph.node):
            _rename(node, outside)
            self._take(node)
        for value in graph.output:
            if value.name in outside:
                half = self._half(outside[value.name])
                self._nodes.append(helper.make_node("Identity", [half], [value.name], name=f"{value.name}_out"))
            else:
                self._full(value.name)
        set_nodes(self._model, self._nodes)
        del graph.value_info[:]  # of types that have changed
        remove_unused(self._model)
        return self._model

    def _take(self, node: NodeProto) -> None:
        """Append the node, in float16 if it is of that kind."""
        if node.op_type not in self._operators or not self._float & set(node.output):
            for name in sorted(reads(node)):
                self._full(name)
            self._nodes.append(node)
            return
        node.input[:] = [self._half(name) if name in self._float else name for name in node.input]
        for i, name in enumerate(node.output):
            if name in self._float:
                node.output[i] = self._halved[name] = f"{name}_half"
                self._only_half.add(name)
        self._nodes.append(node)

    def _half(self, name: str) -> str:
        """The float16 version of a tensor."""
        if name not in self._halved:
            self._halved[name] = half = f"{name}_half"
            if name in self._constants:
                add_constant(self._model, half, self._constants[name].astype(np.float16))
            else:
                self._cast(name, half, TensorProto.FLOAT16)
        return self._halved[name]

    def _full(self, name: str) -> None:
        """See that a tensor is there in float32."""
        if name in self._only_half:
            self._only_half.remove(name)
            self._cast(self._halved[name], name, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind))


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Give tensors other names wherever a node, or a graph inside it, reads or writes them."""
    for tensors in (node.input, node.output):
        tensors[:] = [names.get(name, name) for name in tensors]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _rename(inner, names)
