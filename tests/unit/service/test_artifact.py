"""The signature: what an artifact may say of itself, and what is wrong with those that say something else."""

from typing import Any

import numpy as np
import pytest

from service.artifact import Tensor, parse_signature
from service.errors import ArtifactError
from tests.support.signatures import PROOF, STATE, document, parse


@pytest.mark.parametrize("task", ["generic", "language", "forecast"])
def test_a_signature_survives_being_written_down(task: str) -> None:
    """What is parsed, written and parsed again is the same."""
    signature = parse(document(task))
    assert parse_signature(signature.model_dump_json()) == signature


def test_step_and_row_shapes_leave_out_batch_and_time() -> None:
    """A step has the axes that are neither batch nor time; a row those that are not batch."""
    x = {"name": "x", "dtype": "float32", "shape": [None, 4, None, 2], "batch_axis": 2, "time_axis": 0}
    still = {"name": "x", "dtype": "float32", "shape": [None, 5], "time_axis": None}
    state = STATE | {"shape": [2, None, 3], "batch_axis": 1}
    signature = parse(document(inputs=[x], states=[state]))
    assert signature.inputs[0].step_shape == (4, 2)
    assert signature.states[0].row_shape == (2, 3)
    assert signature.has_time_axis
    one_step = parse(document(inputs=[still]))
    assert one_step.inputs[0].step_shape == (5,)
    assert not one_step.has_time_axis


def test_one_row_at_a_time_needs_no_batch_axis() -> None:
    """Of a model that is not batched, tensors have a batch axis of any length, of the length 1, or none at all."""
    x = {"name": "x", "dtype": "float32", "shape": [1, None, 2]}
    states = [STATE, STATE | {"input": "c", "shape": [4], "batch_axis": None}]
    leaking = PROOF | {"rows_independent": False}
    signature = parse(document(batched=False, inputs=[x], states=states, proof=leaking))
    assert signature.inputs[0].step_shape == (2,)
    assert [s.row_shape for s in signature.states] == [(3,), (4,)]
    assert signature.has_time_axis


@pytest.mark.parametrize("part", ["inputs", "outputs"])
@pytest.mark.parametrize("still", [{"time_axis": None, "shape": [None, 2]}, {"shape": [None, 1, 2]}])
def test_one_tensor_without_steps_makes_one_call_one_step(part: str, still: dict[str, Any]) -> None:
    """Whether it has no time axis or one of the length 1, its step has the same shape."""
    signature = parse(document(**{part: [X | still | {"name": part[0]}]}))
    assert not signature.has_time_axis
    assert {t.step_shape for t in signature.inputs + signature.outputs} == {(2,)}


X = document()["inputs"][0]
WRONG: list[tuple[dict[str, Any], str]] = [
    (document(task="speech"), "task"),
    (document(format=2), "format"),
    (document(inputs=[]), "inputs"),
    (document(outputs=[]), "outputs"),
    (document(states=[]), "states"),
    (document(colour="red"), "colour"),
    (document(inputs=[{"name": "x", "dtype": "float128", "shape": [None]}]), "inputs.0.dtype"),
    (document(inputs=[{"name": "x", "dtype": "float32", "shape": [0]}]), "inputs.0.shape.0"),
    (document(states=[STATE | {"input": "x"}]), "named twice"),
    (document(constants={"h": {"dtype": "float32", "shape": [], "data": "AAAAAA=="}}), "named twice"),
    (document(states=[STATE | {"initial": {"dtype": "float32", "shape": [1], "data": "AAAAAA=="}}]), "initial value"),
    (document(states=[STATE | {"initial": {"dtype": "float32", "shape": [3], "data": "AAAAAA=="}}]), "signature"),
    (document(states=[STATE | {"initial": {"dtype": "float32", "shape": [3], "data": "?"}}]), "signature"),
    (document("language", vocabulary=None), "vocabulary"),
    (document("language", vocabulary=["a", "a"]), "without doubles"),
    (document("language", vocabulary=["a", "b", "c"]), "per symbol"),
    (document("language", inputs=document()["inputs"]), "whole number"),
    (document("forecast", features=None), "features"),
    (document("forecast", features=["u"]), "1 features"),
    (document("forecast", scaling={"mean": [0, 0], "scale": [1]}), "per feature"),
    (document(vocabulary=[]), "generic model has no vocabulary"),
    (document("forecast", vocabulary=[]), "forecast model has no vocabulary"),
    (document(features=["u", "v"]), "generic model has neither features"),
    (document("language", features=["u", "v"]), "language model has neither features"),
    (document(scaling={"mean": [0], "scale": [1]}), "nor scaling"),
    (document("forecast", scaling={"mean": [0, float("nan")], "scale": [1, 1]}), "scaling.mean.1"),
    (document(inputs=[X | {"batch_axis": 2**63}]), "batch_axis 9223372036854775808 of 'x' is none of its 3 axes"),
    (document(inputs=[X | {"batch_axis": -1}]), "batch_axis -1"),
    (document(inputs=[X | {"time_axis": 3}]), "time_axis 3"),
    (document(inputs=[X | {"time_axis": 0}]), "are the same"),
    (document(inputs=[X | {"batch_axis": 2}]), "axis 2 of 'x' is its batch_axis and has the fixed length 2"),
    (document(outputs=[X | {"name": "y", "time_axis": 2}]), "axis 2 of 'y' is its time_axis"),
    (document(states=[STATE | {"batch_axis": 2**63}]), "of 'h' is none of its 2 axes"),
    (document(states=[STATE | {"batch_axis": 1}]), "axis 1 of 'h'"),
    (document(inputs=[X | {"batch_axis": None}]), "'x' has no batch axis of varying length"),
    (document(outputs=[X | {"name": "y", "shape": [1, None, 2]}]), "'y' has no batch axis of varying length"),
    (document(states=[STATE | {"batch_axis": None}]), "'h' has no batch axis of varying length"),
    (document(batched=False, lengths="n"), "lengths are for models that are called for many rows"),
    (document(proof=PROOF | {"rows_independent": False}), "rows are not independent"),
    (document(proof=PROOF | {"chunk_error": float("inf")}), "proof.chunk_error"),
    (document(lengths="x"), "an input is named twice"),
    (document(constants={"c": {"dtype": "float32", "shape": [2], "data": "AAAAAA=="}}), "signature"),
    (document(constants={"c": {"dtype": "float32", "shape": [-1], "data": "AAAAAA=="}}), "constants.c.shape.0"),
]


@pytest.mark.parametrize(("wrong", "named"), WRONG, ids=[named for _, named in WRONG])
def test_a_wrong_signature_is_named_in_one_sentence(wrong: dict[str, Any], named: str) -> None:
    """Whoever made the artifact learns which part of the signature does not hold."""
    with pytest.raises(ArtifactError) as refused:
        parse(wrong)
    assert named in refused.value.detail
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"task": "generic"}'])
def test_what_is_no_signature_is_refused(text: str) -> None:
    """Metadata under the key that is something else altogether is an error with a name."""
    with pytest.raises(ArtifactError, match="signature is not valid"):
        parse_signature(text)


@pytest.mark.parametrize("array", [np.array(2.5), np.arange(6, dtype=">f4").reshape(2, 3).T, np.array([True, False])])
def test_a_constant_tensor_survives_being_written_down(array: np.ndarray) -> None:
    """Values, type and shape come back, from whatever byte order and layout."""
    back = Tensor.model_validate_json(Tensor.of(array).model_dump_json()).array()
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)
