"""Artifacts around one native recurrent operator, as others write them: weights as constant nodes, axes anywhere."""

from pathlib import Path
from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export import graph
from export.signature import attach
from service.artifact import Recurrence, Signature, StateSpec, Tensor, TensorSpec

WIDTH, HIDDEN = 3, 5
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_BATCH_LAST, _ONE_STEP = "batch last", "one step"
Layout = Literal["batch last", "one step"]


def operator(path: Path, kind: str = "LSTM", layout: Layout = "batch last", reset_behind: bool = False) -> Path:
    """``x`` [time, width, batch], or without time [batch, width]; states the operator's own, answer ``y`` the h.

    W and R are Constant nodes, B is an input that the signature declares a constant; an LSTM has peepholes. The
    operator takes its states from the graph's inputs as they are.
    """
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    weights, bias, nodes = _weights(kind)
    timed = layout == _BATCH_LAST
    if timed:
        nodes.append(helper.make_node("Transpose", ["x"], ["sequence"], perm=[0, 2, 1]))
    else:
        nodes.append(helper.make_node("Unsqueeze", ["x", "zero"], ["sequence"]))
    given = ["sequence", "W", "R", "B", "", *states, *(["P"] if kind == "LSTM" else [])]
    attributes = {"linear_before_reset": int(reset_behind)} if kind == "GRU" else {}
    told = ["all", *(f"{name}2" for name in states)]
    nodes.append(helper.make_node(kind, given, told, hidden_size=HIDDEN, **attributes))  # all: [time, 1, batch, hidden]
    nodes.append(helper.make_node("Squeeze", ["all", "one" if timed else "both"], ["y"]))
    step = ["time", WIDTH, "batch"] if timed else ["batch", WIDTH]
    answer = ["time", "batch", HIDDEN] if timed else ["batch", HIDDEN]
    kept = [1, "batch", HIDDEN]
    inputs = {"x": step, **dict.fromkeys(states, kept), "B": list(bias.shape)}
    outputs = {"y": answer, **{f"{name}2": kept for name in states}}
    constants = {"zero": [0], "one": [1], "both": [0, 1]}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "operator",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", graph.OPSET)],
        ir_version=graph.IR_VERSION,
    )
    x = TensorSpec(name="x", dtype="float32", shape=(None, WIDTH, None), batch_axis=2, time_axis=0)
    y = TensorSpec(name="y", dtype="float32", shape=(None, None, HIDDEN), batch_axis=1, time_axis=0)
    if not timed:
        x = TensorSpec(name="x", dtype="float32", shape=(None, WIDTH), time_axis=None)
        y = TensorSpec(name="y", dtype="float32", shape=(None, HIDDEN), time_axis=None)
    signature = Signature(
        task="generic",
        inputs=(x,),
        outputs=(y,),
        states=tuple(
            StateSpec(input=name, output=f"{name}2", dtype="float32", shape=(1, None, HIDDEN), batch_axis=1)
            for name in states
        ),
        constants={"B": Tensor.of(bias)},
        recurrences=(
            Recurrence(
                operator=kind,  # type: ignore[arg-type]  # one of the three, which the signature checks
                name="recurrent",
                hidden=HIDDEN,
                sequence="sequence",
                weight="W",
                recurrence="R",
                bias="B",
                peephole=weights.get("P") and "P",
                states=tuple(states),
                linear_before_reset=reset_behind,
            ),
        ),
    )
    path.parent.mkdir(parents=True)
    path.write_bytes(attach(model, signature))
    return path


def _weights(kind: str) -> tuple[dict[str, str], np.ndarray, list[NodeProto]]:
    """The names of the constant weights, the bias, and the Constant nodes."""
    random, rows = np.random.default_rng(0), _GATES[kind] * HIDDEN
    shapes = {"W": (1, rows, WIDTH), "R": (1, rows, HIDDEN)} | ({"P": (1, 3 * HIDDEN)} if kind == "LSTM" else {})
    nodes = []
    for name, shape in shapes.items():
        value = numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        nodes.append(helper.make_node("Constant", [], [name], value=value))
    bias = random.normal(size=(1, 2 * rows)).astype(np.float32)
    return dict.fromkeys(shapes, kind), bias, nodes
