"""What ONNX Runtime says of its errors, as people can read it."""

import pytest

from service.engine import ort

SAID = [
    (
        "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 "
        "onnxruntime::Model::Model(onnx::ModelProto&&, "
        "const onnxruntime::PathString&, const onnxruntime::ModelOptions&) Unsupported model IR "
        "version: 14, max supported IR version: 13\n",
        "Unsupported model IR version: 14, max supported IR version: 13",
    ),
    (
        "[ONNXRuntimeError] : 1 : FAIL : model_load_utils.h:46 void "
        "onnxruntime::model_load_utils::ValidateOpsetForDomain("
        "const std::unordered_map<std::__cxx11::basic_string<char>, int>&, bool, int) ONNX Runtime only (so far) helps",
        "ONNX Runtime only (so far) helps",
    ),
    (
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Concat node. Name:'' "
        "Status Message: concatbase.h:133 PrepareForComputeImpl Non concat axis dimensions must match: Axis 0",
        "Non-zero status code returned while running Concat node. Name:'' Status Message: "
        "Non concat axis dimensions must match: Axis 0",
    ),
    (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Status Message: /a/b.cc:9 onnxruntime::common::Status "
        "onnxruntime::Loop<T>::Compute(onnxruntime::OpKernelContext*, std::function<void(int)>) const [with T = float] "
        "x == y was false.\nStacktrace:\n",
        "Status Message: x == y was false.",
    ),
    (
        "Got invalid dimensions for input: x for the following indices",
        "Got invalid dimensions for input: x for the following indices",
    ),
    ("", "RuntimeError"),
]


@pytest.mark.parametrize(
    ("said", "told"), SAID, ids=["constructor", "nested types", "bare name", "template", "plain", "nothing"]
)
def test_the_place_in_its_source_is_left_out(said: str, told: str) -> None:
    """Paths, lines and signatures of C++ say nothing to who adopts a model."""
    assert ort.first_line(RuntimeError(said)) == told
