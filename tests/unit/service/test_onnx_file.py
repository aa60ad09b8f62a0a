"""ONNX files as bytes: what is written is what the package ``onnx`` reads, and what is not touched stays as it was."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, checker, helper

from service.engine import onnx_file, ort
from tests.support import artifacts

NAMES = {1: "FLOAT", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FLOAT16", 11: "DOUBLE"}


def parsed(content: bytes) -> ModelProto:
    """As the package reads it."""
    return ModelProto.FromString(content)


def test_nodes_and_inputs_are_what_they_say() -> None:
    """Names, attributes with one number and with several, negative ones too, and shapes with named axes."""
    nodes = [
        onnx_file.constant("shape", [-1, 300, 0]),
        onnx_file.node("Reshape", ["x", "shape"], ["y"], allowzero=1),
        onnx_file.node("Transpose", ["y"], ["z"], perm=(2, 0, 1)),
    ]
    made = parsed(onnx_file.graph(nodes, [onnx_file.tensor("x", "float16", ["rows", 300])], ["z"])).graph
    expected = [
        helper.make_node("Constant", [], ["shape"], name="shape", value_ints=[-1, 300, 0]),
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="y", allowzero=1),
        helper.make_node("Transpose", ["y"], ["z"], name="z", perm=[2, 0, 1]),
    ]
    assert list(made.node) == expected
    assert list(made.input) == [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["rows", 300])]
    assert [output.name for output in made.output] == ["z"]


@pytest.mark.parametrize("number", NAMES)
def test_types_are_numbered_as_onnx_numbers_them(number: int) -> None:
    """Each type that a state may have."""
    dtype = helper.tensor_dtype_to_np_dtype(number).name
    value = parsed(onnx_file.graph(inputs=[onnx_file.tensor("x", dtype, [])])).graph.input[0]  # type: ignore[arg-type]
    assert TensorProto.DataType.Name(value.type.tensor_type.elem_type) == NAMES[number]


def test_parts_joined_are_one_model() -> None:
    """What ONNX Runtime makes of a model that was written in parts."""
    add = onnx_file.graph([onnx_file.node("Add", ["x", "x"], ["y"])], [onnx_file.tensor("x", "int64", ["n"])])
    more = onnx_file.graph([onnx_file.node("Mul", ["y", "x"], ["z"])], outputs=["y", "z"])
    content = onnx_file.model(17, 8) + add + more
    assert onnx_file.opset(content) == 17
    y, z = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(["y", "z"], {"x": np.array([2, 300])})
    assert (y.tolist(), z.tolist()) == ([4, 600], [8, 180_000])


def test_inputs_are_taken_out_and_nothing_else(tmp_path: Path) -> None:
    """Weights, metadata and all other inputs come through byte for byte, whatever kinds of fields there are."""
    model = onnx.load(artifacts.language(tmp_path / "model.onnx"))
    model.doc_string, model.model_version = "ä" * 300, -1
    model.graph.initializer.add(name="some", data_type=TensorProto.FLOAT, dims=[2], float_data=[1.5, 2.5])
    content = model.SerializeToString()
    assert onnx_file.without_inputs(content, []) == content
    without = parsed(onnx_file.without_inputs(content, ["h", "c", "never"]))
    kept = [value for value in model.graph.input if value.name not in ("h", "c")]
    assert len(kept) == len(model.graph.input) - 2
    del model.graph.input[:]
    model.graph.input.extend(kept)
    assert without == model


def test_the_version_of_onnx_is_found_beside_others(tmp_path: Path) -> None:
    """Other domains have versions of their own; a file that names none has none."""
    model = onnx.load(artifacts.running_sum(tmp_path / "model.onnx"))
    model.opset_import.insert(0, helper.make_opsetid("com.microsoft", 1))
    checker.check_model(model)
    assert onnx_file.opset(model.SerializeToString()) == 17
    del model.opset_import[:]
    assert onnx_file.opset(model.SerializeToString()) == 0
