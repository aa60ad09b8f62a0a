"""Small artifacts for tests, written in milliseconds: no torch, no training.

``running_sum`` makes a lost or doubled step visible in the answer, ``poison`` turns one finite input into infinity,
``language`` and ``forecast`` are networks with random weights, built as ``export/`` builds the real ones. Each helper
returns the path that it wrote.
"""

import string
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from export import graph
from export.quantization.converting import convert
from export.signature import attach, describe
from export.weights import Forecast, Language, Layer, Recurrence, Weights
from service.artifact import SIGNATURE_KEY, DType, Signature, StateSpec, TensorSpec, parse_signature
from tests.support.reference import GATES

POISON = 1e30  # a finite float32 that drives `poison` to infinity
_OVERFLOW = float(2**100)  # a power of two: multiplying by it and dividing again changes no digit

Writer = Callable[[Path], Path]


def repository(folder: Path, **writers: Writer) -> Path:
    """A model repository FOLDER/NAME/1/model.onnx: ``repository(tmp_path, adder=running_sum)``."""
    for name, write in writers.items():
        write(folder / name / "1" / "model.onnx")
    return folder


def running_sum(path: Path, dtype: DType = "float32", *, ragged: bool = True) -> Path:
    """State ``h`` [batch, 1], input ``x`` [batch, time, 1], output ``y``: h plus the sum of x after each step.

    Exact for whole numbers; a step that is lost or applied twice shows. ``ragged=False`` leaves ``lengths`` out.
    """
    return _write_sum(path, dtype, [], "x", ragged)


def poison(path: Path) -> Path:
    """``running_sum`` whose answer and state become infinite at a step of ``POISON``; other rows are not touched."""
    scaled = [
        helper.make_node("Mul", ["x", "overflow"], ["large"]),
        helper.make_node("Div", ["large", "overflow"], ["steps"]),
    ]
    return _write_sum(path, "float32", scaled, "steps", ragged=True)


def language(
    path: Path,
    vocabulary: str = string.ascii_lowercase + " .\n",
    layers: int = 2,
    hidden: int = 16,
    seed: int = 0,
    cell: str = "lstm",
) -> Path:
    """A language model with random weights, one symbol per character of ``vocabulary``."""
    random, symbols = np.random.default_rng(seed), len(vocabulary)
    embedding = random.normal(size=(symbols, 8)).astype(np.float32)
    recurrence = random_recurrence(random, 8, layers, hidden, symbols, cell)
    return _write_network(path, Language(recurrence, (*vocabulary,), embedding))


def forecast(
    path: Path, features: Sequence[str] = ("x",), layers: int = 1, hidden: int = 8, seed: int = 0, cell: str = "lstm"
) -> Path:
    """A forecast model with random weights; its features have means around 0 and scales around 1."""
    random, width = np.random.default_rng(seed), len(features)
    mean = random.normal(size=width).astype(np.float32)
    scale = random.uniform(0.5, 2.0, width).astype(np.float32)
    recurrence = random_recurrence(random, width, layers, hidden, width, cell)
    return _write_network(path, Forecast(recurrence, tuple(features), mean, scale))


def halved(path: Path, source: Path) -> Path:
    """An artifact as `lstm-serve quantize --type float16` makes it."""
    model = ModelProto.FromString(source.read_bytes())
    (signature,) = (parse_signature(entry.value) for entry in model.metadata_props if entry.key == SIGNATURE_KEY)
    converted = convert(model, signature, "float16")
    return _write(path, attach(converted.model, converted.signature))


def random_recurrence(
    random: np.random.Generator, width: int, layers: int, hidden: int, answer: int, cell: str = "lstm"
) -> Recurrence:
    """Layers of a cell and a head with PyTorch's usual spread of weights."""
    gates = len(GATES[cell]) * hidden

    def draw(*shape: int) -> np.ndarray:
        bound = hidden**-0.5
        return random.uniform(-bound, bound, shape).astype(np.float32)

    def layer(width: int) -> Layer:
        weights = draw(gates, width), draw(gates, hidden), draw(gates), draw(gates)
        return Layer(*weights, draw(3 * hidden) if cell == "peephole" else None)

    stack = tuple(layer(hidden if i else width) for i in range(layers))
    return Recurrence(cell, stack, draw(answer, hidden), draw(answer))


def _write_network(path: Path, weights: Weights) -> Path:
    return _write(path, attach(graph.build(weights), describe(weights, {"data": "random weights"})))


def _write_sum(path: Path, dtype: DType, before: list[NodeProto], steps: str, ragged: bool) -> Path:
    """``steps`` names the tensor that is summed, ``before`` the nodes that compute it from ``x``."""
    # The state stands first in the sum, so that the order of additions is the same however a sequence is cut.
    nodes = [
        *before,
        helper.make_node("Unsqueeze", ["h", "one"], ["first"]),  # [batch, 1, 1]
        helper.make_node("Concat", ["first", steps], ["terms"], axis=1),  # [batch, 1 + time, 1]
        helper.make_node("CumSum", ["terms", "axis"], ["sums"]),
        helper.make_node("Slice", ["sums", "one", "end", "one"], ["y"]),  # [batch, time, 1]
    ]
    if ragged:
        nodes += [
            helper.make_node("Cast", ["lengths"], ["counts"], to=TensorProto.INT64),
            helper.make_node("Unsqueeze", ["counts", "one"], ["last"]),  # [batch, 1]
            helper.make_node("GatherND", ["sums", "last"], ["h_next"], batch_dims=1),  # [batch, 1]
        ]
    else:
        nodes.append(helper.make_node("Gather", ["sums", "minus_one"], ["h_next"], axis=1))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("x", kind, ["batch", "time", 1])]
    inputs += [helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"])] if ragged else []
    inputs += [helper.make_tensor_value_info("h", kind, ["batch", 1])]
    outputs = [helper.make_tensor_value_info("y", kind, ["batch", "time", 1])]
    outputs += [helper.make_tensor_value_info("h_next", kind, ["batch", 1])]
    constants = [numpy_helper.from_array(value, name) for name, value in _constants().items()]
    model = helper.make_model(
        helper.make_graph(nodes, "running_sum", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", graph.OPSET)],
        ir_version=graph.IR_VERSION,
    )
    checker.check_model(model, full_check=True)
    return _write(path, attach(model, _sum_signature(dtype, ragged)))


def _constants() -> dict[str, np.ndarray]:
    return {
        "one": np.array([1], np.int64),
        "axis": np.array(1, np.int64),
        "minus_one": np.array(-1, np.int64),
        "end": np.array([np.iinfo(np.int64).max], np.int64),
        "overflow": np.array(_OVERFLOW, np.float32),
    }


def _sum_signature(dtype: DType, ragged: bool) -> Signature:
    return Signature(
        task="generic",
        inputs=(TensorSpec(name="x", dtype=dtype, shape=(None, None, 1)),),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=(None, None, 1)),),
        states=(StateSpec(input="h", output="h_next", dtype=dtype, shape=(None, 1), batch_axis=0),),
        lengths="lengths" if ragged else None,
        made={"data": "none: it adds"},
    )


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
