"""The signature of a graph that ``export/graph.py`` builds, and how it gets into the file.

Owns nothing of the schema: that is the service's (``service/artifact.py``).
"""

from collections.abc import Mapping
from typing import Any

from onnx import ModelProto, helper

from export.cells import cell_of
from export.graph import LENGTHS, layer_inputs, layer_node, next_state
from export.weights import Forecast, Language, Weights
from service.artifact import SIGNATURE_KEY, Recurrence, Scaling, Signature, StateSpec, TensorSpec


def describe(weights: Weights, made: Mapping[str, Any] | None = None) -> Signature:
    """The signature of the graph of ``weights``; ``made`` is any JSON object that tells where they come from."""
    sequence, answer = _tensors(weights)
    return Signature(
        task=weights.task,
        cell=weights.recurrence.cell,
        inputs=(sequence,),
        outputs=(answer,),
        states=_states(weights),
        lengths=LENGTHS,
        vocabulary=weights.vocabulary if isinstance(weights, Language) else None,
        features=weights.features if isinstance(weights, Forecast) else None,
        scaling=_scaling(weights),
        recurrences=tuple(_recurrence(weights, i) for i in range(len(weights.recurrence.layers))),
        made=dict(made or {}),
    )


def attach(model: ModelProto, signature: Signature) -> bytes:
    """The bytes of the artifact: the model with the signature in its metadata, beside what stands there."""
    kept = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, kept | {SIGNATURE_KEY: signature.model_dump_json()})
    return bytes(model.SerializeToString(deterministic=True))


def _tensors(weights: Weights) -> tuple[TensorSpec, TensorSpec]:
    """The sequence that goes in and the one that comes out, both with batch and time first."""
    if isinstance(weights, Language):
        symbols = (None, None, len(weights.vocabulary))
        tokens = TensorSpec(name="tokens", dtype="int64", shape=(None, None))
        return tokens, TensorSpec(name="logprobs", dtype="float32", shape=symbols)
    rows = (None, None, len(weights.features))
    values = TensorSpec(name="values", dtype="float32", shape=rows)
    return values, TensorSpec(name="prediction", dtype="float32", shape=rows)


def _scaling(weights: Weights) -> Scaling | None:
    if isinstance(weights, Language):
        return None
    return Scaling(mean=tuple(weights.mean.tolist()), scale=tuple(weights.scale.tolist()))


def _states(weights: Weights) -> tuple[StateSpec, ...]:
    shape = (len(weights.recurrence.layers), None, weights.recurrence.hidden)
    return tuple(
        StateSpec(input=name, output=next_state(name), dtype="float32", shape=shape, batch_axis=1)
        for name in cell_of(weights.recurrence.cell).states
    )


def _recurrence(weights: Weights, i: int) -> Recurrence:
    """Where in the graph layer ``i`` is computed, for whoever wants to see its gates."""
    cell, inputs = cell_of(weights.recurrence.cell), layer_inputs(weights, i)
    return Recurrence(
        operator=cell.operator,
        name=layer_node(cell, i),
        hidden=weights.recurrence.hidden,
        sequence=inputs["X"],
        weight=inputs["W"],
        recurrence=inputs["R"],
        bias=inputs["B"],
        peephole=inputs.get("P"),
        states=tuple(inputs[f"initial_{name}"] for name in cell.states),
        linear_before_reset="linear_before_reset" in cell.attributes,
        coupled="input_forget" in cell.attributes,
    )
