"""Foreign stateful graphs in ONNX's own text, for tests of adoption: no signature, no torch."""

from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser, save

HEAD = '<ir_version: 9, opset_import: ["" : 17], producer_name: "elsewhere", producer_version: "1.2">\n'


def model(text: str, **weights: np.ndarray) -> ModelProto:
    """A model of ``name (inputs) => (outputs) { nodes }``; ``weights`` become initializers."""
    made = parser.parse_model(HEAD + text)
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return made


def written(path: Path, made: ModelProto) -> Path:
    """The file of a model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(made, path)
    return path


def running_sum(
    x: str = "float[b,t,1] x",
    h: str = "float[b,1] h",
    y: str = "float[b,t,1] y",
    hn: str = "float[b,1] hn",
    op: str = "",
) -> ModelProto:
    """``y`` is h plus the sum of x so far, [batch, time, 1]; ``op`` comes first and makes ``steps`` of ``x``."""
    nodes = (
        (op or "steps = Identity(x)")
        + """
        first = Unsqueeze(h, one)
        terms = Concat<axis = 1>(first, steps)
        sums = CumSum(terms, axis)
        y = Slice(sums, one, end, one)
        hn = Gather<axis = 1>(sums, minus)
    """
    )
    ints = {"one": [1], "end": [2**62]}
    weights = {name: np.array(value, np.int64) for name, value in ints.items()}
    weights |= {"axis": np.array(1, np.int64), "minus": np.array(-1, np.int64)}
    return model(f"sum ({x}, {h}) => ({y}, {hn}) {{ {nodes} }}", **weights)


def lstm(inputs: list[str], outputs: list[str], hidden: int = 4, width: int = 3, **attributes: object) -> ModelProto:
    """A bare LSTM operator, time first: x [t, b, width], h and c [1, b, hidden] -> y [t, 1, b, hidden], h, c."""
    random = np.random.default_rng(0)
    shapes = {"W": (1, 4 * hidden, width), "R": (1, 4 * hidden, hidden), "B": (1, 8 * hidden)}
    weights = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    x, h, c = inputs
    node: NodeProto = helper.make_node(
        "LSTM", [x, "W", "R", "B", "", h, c], outputs, "cell", hidden_size=hidden, **attributes
    )
    values = {x: ["t", "n", width], h: [1, "n", hidden], c: [1, "n", hidden]}
    answers = [["t", 1, "n", hidden], [1, "n", hidden], [1, "n", hidden]]
    graph = helper.make_graph(
        [node],
        "lstm",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(outputs, answers, strict=True)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
