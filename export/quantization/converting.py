"""The three ways to fewer bits: int8 arithmetic, int8 weights in float32 arithmetic, float16.

Owns how a graph is changed, and the one other place that uses ONNX Runtime's tools: they are imported behind
``service/engine/ort.py``, which sets what has to be set before ONNX Runtime is loaded.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.quantization.graphs import add_constant, copy_of, folded, set_nodes
from export.quantization.halving import halve
from export.quantization.pinning import pin
from service.artifact import Signature, Tensor
from service.engine import ort

_RECURRENT = ("RNN", "GRU", "LSTM")
_WEIGHTED = {*_RECURRENT, "MatMul", "Gemm", "Conv", "ConvTranspose", "Gather"}
# What float16 is for: operators with weights, and those that only move tensors between them. All others stay float32:
# measurements and log-probabilities need its range and its digits.
_HALF = _WEIGHTED | {"Split", "Squeeze", "Unsqueeze", "Concat"}
_FEWEST = 1024  # values of a tensor below which a table of scales does not pay
_WORTH = 0.75  # of the bytes of weights may be left, else conversion is refused


@dataclass(frozen=True)
class Converted:
    """A converted graph with the signature that fits it, and how many operators of which kind it changed."""

    model: ModelProto
    signature: Signature
    changed: Counter[str]


def convert(model: ModelProto, signature: Signature, kind: str) -> Converted:
    """Convert a graph to ``int8``, ``int8-weights`` or ``float16``; the model itself is left as it is.

    Raises:
        ExportError: nothing would be gained, a weight is too large, or ONNX Runtime's tools cannot convert the graph.
    """
    try:
        model = folded(model)
        with np.errstate(over="raise", invalid="raise"):
            found = {"int8": _int8, "int8-weights": _int8_weights, "float16": _float16}[kind](model, signature)
    except ExportError:
        raise
    except FloatingPointError as error:
        raise ExportError(
            f"the graph cannot be converted to {kind}: a weight is not finite, or lies beyond what {kind} can hold"
        ) from error
    except Exception as error:  # the tools were made for other graphs, and fail in ways of their own
        raise ExportError(f"the graph cannot be converted to {kind}: {ort.first_line(error)}") from error
    before, after = _weight_bytes(model), _weight_bytes(found.model)
    if not found.changed or after > _WORTH * before:
        raise ExportError(_not_worth(model, kind, before, after))
    return found


def _int8(model: ModelProto, signature: Signature) -> Converted:
    """ONNX Runtime's dynamic quantisation of what can be pinned (see ``pinning.py``), so that rows stay apart."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    pinned = pin(model)
    if not pinned.nodes:
        return Converted(model, signature, Counter())
    changed = Counter(node.op_type for node in pinned.model.graph.node if node.name in pinned.nodes)
    with TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            pinned.model,
            path,
            op_types_to_quantize=list(changed),
            nodes_to_quantize=list(pinned.nodes),
            weight_type=QuantType.QInt8,
        )
        quantised = onnx.load(path)
    left = {node.name for node in quantised.graph.node}
    kept = tuple(r for r in signature.recurrences if r.name in left)
    return Converted(quantised, signature.model_copy(update={"recurrences": kept}), changed)


def _int8_weights(model: ModelProto, signature: Signature) -> Converted:
    """Weights as int8 with a scale for each row; ONNX Runtime multiplies them out once, when it loads the file.

    Not with DequantizeLinear, which ONNX Runtime runs anew in each call.
    """
    copy = copy_of(model)
    weights = {name for node in copy.graph.node if node.op_type in _WEIGHTED for name in node.input}
    nodes, converted = [], set()
    for tensor in list(copy.graph.initializer):
        values = numpy_helper.to_array(tensor)
        axes = tuple(range(2 if values.shape[:1] == (1,) else 1, values.ndim))  # those of one row; none of a bias
        if tensor.name not in weights or values.dtype != np.float32 or not axes or values.size < _FEWEST:
            continue
        scale = np.abs(values).max(axis=axes, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        copy.graph.initializer.remove(tensor)
        name = tensor.name
        add_constant(copy, f"{name}_int8", np.round(values / scale).astype(np.int8))
        add_constant(copy, f"{name}_scale", scale)
        nodes.append(helper.make_node("Cast", [f"{name}_int8"], [f"{name}_whole"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name]))
        converted.add(name)
    changed = Counter(node.op_type for node in model.graph.node if converted & set(node.input))
    set_nodes(copy, [*nodes, *copy.graph.node])
    return Converted(copy, signature, changed)


def _float16(model: ModelProto, signature: Signature) -> Converted:
    """Operators with weights and the states in float16; what clients send and get stays as it is."""
    changed = Counter(node.op_type for node in model.graph.node if node.op_type in _WEIGHTED)
    carried = [name for state in signature.states for name in (state.input, state.output)]
    half = halve(model, _HALF, carried)
    states = []
    for state in signature.states:
        if state.dtype == "float32":
            initial = state.initial and Tensor.of(state.initial.array().astype(np.float16))
            state = state.model_copy(update={"dtype": "float16", "initial": initial})
        states.append(state)
    return Converted(half, signature.model_copy(update={"states": tuple(states), "recurrences": ()}), changed)


def _weight_bytes(model: ModelProto) -> int:
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


def _not_worth(model: ModelProto, kind: str, before: int, after: int) -> str:
    cells = sorted({node.op_type for node in model.graph.node if node.op_type in _RECURRENT})
    without = [cell for cell in cells if cell != "LSTM"]
    saved = f"it would save {max(0, before - after) / max(before, 1):.0%} of the weights' bytes"
    if kind != "int8":
        return f"{kind} does not pay for this model: {saved}"
    if not cells:
        return f"int8 does not pay for this model: {saved}: it is for LSTM and MatMul nodes with constant weights"
    if without:
        reason = f"ONNX Runtime has no int8 kernel for {' and '.join(without)}"
    else:
        reason = "an LSTM can be quantised where the graph bounds its input, as behind an embedding or another layer"
    return f"int8 does not pay for this model: {saved}, since {reason}; --type int8-weights makes a smaller file"


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools log advice that is not for our user, and would set up logging to do so."""
    root, nothing = logging.getLogger(), logging.NullHandler()
    before = logging.root.manager.disable
    root.addHandler(nothing)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(nothing)
