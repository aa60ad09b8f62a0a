"""A model that reveals its history: an LSTM of a usual size, and beside it the exact sum of all that it was given.

What a step costs is the LSTM's; whether one was lost or applied twice is told by the sum, in every later answer.
"""

from pathlib import Path

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from export.graph import LENGTHS, build
from export.signature import attach, describe
from export.weights import Forecast, Layer, Recurrence
from service.artifact import StateSpec, TensorSpec

MODEL, LAYERS, HIDDEN = "witness", 2, 128
TOTAL = "total"  # the output with the sum


def write(path: Path, layers: int = LAYERS, hidden: int = HIDDEN) -> None:
    """Write the artifact: one feature ``values``; outputs ``prediction`` and ``total``, exact for whole numbers."""
    chance = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return chance.uniform(-(hidden**-0.5), hidden**-0.5, shape).astype(np.float32)

    def layer(width: int) -> Layer:
        return Layer(draw(4 * hidden, width), draw(4 * hidden, hidden), draw(4 * hidden), draw(4 * hidden))

    stack = tuple(layer(hidden if i else 1) for i in range(layers))
    recurrence = Recurrence("lstm", stack, draw(1, hidden), draw(1))
    weights = Forecast(recurrence, ("value",), np.zeros(1, np.float32), np.ones(1, np.float32))
    model, signature = build(weights), describe(weights)
    _add_sum(model.graph, signature.inputs[0].name)
    total = TensorSpec(name=TOTAL, dtype="float64", shape=(None, None, 1))
    carried = StateSpec(input="sum", output="sum_next", dtype="float64", shape=(None, 1), batch_axis=0)
    told = {"task": "generic", "cell": None, "features": None, "scaling": None, "recurrences": (),
            "outputs": (*signature.outputs, total), "states": (*signature.states, carried),
            "made": {"data": "random weights"}}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(attach(model, signature.model_copy(update=told)))


def _add_sum(graph: GraphProto, sequence: str) -> None:
    """State ``sum`` [batch, 1], output ``total`` [batch, time, 1]: the sum so far after each step."""
    node, constant = helper.make_node, numpy_helper.from_array
    # The state stands first in the sum, so that the order of additions is the same however a sequence is cut.
    graph.node.extend([
        node("Cast", [sequence], ["terms"], to=TensorProto.DOUBLE),
        node("Unsqueeze", ["sum", "one"], ["first"]),  # [batch, 1, 1]
        node("Concat", ["first", "terms"], ["all_terms"], axis=1),  # [batch, 1 + time, 1]
        node("CumSum", ["all_terms", "axis"], ["sums"]),
        node("Slice", ["sums", "one", "end", "one"], [TOTAL]),  # [batch, time, 1]
        node("Cast", [LENGTHS], ["counts"], to=TensorProto.INT64),
        node("Unsqueeze", ["counts", "one"], ["last"]),  # [batch, 1]
        node("GatherND", ["sums", "last"], ["sum_next"], batch_dims=1),  # [batch, 1]
    ])  # fmt: skip
    graph.initializer.extend([
        constant(np.array([1], np.int64), "one"),
        constant(np.array(1, np.int64), "axis"),
        constant(np.array([np.iinfo(np.int64).max], np.int64), "end"),
    ])  # fmt: skip
    info = helper.make_tensor_value_info
    graph.input.append(info("sum", TensorProto.DOUBLE, ["batch", 1]))
    graph.output.extend([
        info(TOTAL, TensorProto.DOUBLE, ["batch", "time", 1]),
        info("sum_next", TensorProto.DOUBLE, ["batch", 1]),
    ])  # fmt: skip
