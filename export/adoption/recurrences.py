"""The native recurrent operators of a foreign graph whose gates can be recomputed outside it."""

from collections.abc import Iterable, Mapping
from typing import Any

from onnx import ModelProto, NodeProto, helper

from service.artifact import Recurrence

_ONNX = ("", "ai.onnx")
_STATES = {"RNN": 1, "GRU": 1, "LSTM": 2}
# What the service recomputes: anything else about a node leaves it out.
_DEFAULT_ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


def find_recurrences(model: ModelProto, constants: Iterable[str]) -> tuple[Recurrence, ...]:
    """The nodes with constant weights and named initial states, forward, time first, with nothing unusual."""
    fixed = {tensor.name for tensor in model.graph.initializer} | set(constants)
    fixed |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    found = (_recurrence(node, fixed) for node in model.graph.node if node.op_type in _STATES and node.domain in _ONNX)
    return tuple(recurrence for recurrence in found if recurrence is not None)


def _recurrence(node: NodeProto, fixed: set[str]) -> Recurrence | None:
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [*node.input, *[""] * (8 - len(node.input))]  # X, W, R, B, sequence_lens, initial_h, initial_c, P
    sequence, weight, recurrence, bias = inputs[:4]
    states = inputs[5 : 5 + _STATES[node.op_type]]
    peephole = inputs[7] if node.op_type == "LSTM" else ""
    weights = [name for name in (weight, recurrence, bias, peephole) if name]
    if not set(weights) <= fixed or "" in states or "hidden_size" not in said or not _usual(node.op_type, said):
        return None
    return Recurrence.model_validate(
        {
            "operator": node.op_type,
            "name": node.name or node.output[0] or next(filter(None, node.output)),
            "hidden": said["hidden_size"],
            "sequence": sequence,
            "weight": weight,
            "recurrence": recurrence,
            "bias": bias or None,
            "peephole": peephole or None,
            "states": tuple(states),
            "linear_before_reset": bool(said.get("linear_before_reset", 0)),
            "coupled": bool(said.get("input_forget", 0)),
        }
    )


def _usual(operator: str, said: Mapping[str, Any]) -> bool:
    activations = [a.decode() for a in said.get("activations", [])]
    return (
        said.get("direction", b"forward") == b"forward"
        and not said.get("layout", 0)
        and "clip" not in said
        and "activation_alpha" not in said
        and "activation_beta" not in said
        and (not activations or activations == _DEFAULT_ACTIVATIONS[operator])
    )
