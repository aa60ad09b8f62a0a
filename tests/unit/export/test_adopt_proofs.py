"""What is shown of a foreign model by running it, and what is refused for what was shown."""

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.adoption import loading, proving
from service.engine import ort
from service.engine.placement import placement
from tests.support.adopted import lstm, model, running_sum
from tests.support.adopting import CPU, adopted, refused

LEAK = "mean = ReduceMean<axes = [0]>(x)  steps = Sub(x, mean)"


def test_rows_that_leak_are_refused_unless_they_run_alone(tmp_path: Path) -> None:
    """A model that looks at its neighbours is never batched."""
    refused(tmp_path, running_sum(op=LEAK), "rows leak into each other")
    refused(tmp_path, running_sum(op=LEAK), "--unbatched")
    found = adopted(tmp_path, running_sum(op=LEAK), unbatched=True)
    assert not found.signature.batched
    assert found.answers([1, 2], [5, 6]) == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "op",
    [
        "mean = ReduceMean<axes = [0]>(x)  part = Mul(mean, faint)  steps = Sub(x, part)",
        "mean = ReduceMean<axes = [0]>(h)  part = Tanh(mean)  steps = Add(x, part)",
        "m = ReduceMax<axes = [0]>(x)  steps = Div(x, m)",
    ],
    ids=["faint", "through the state", "scaled by the batch"],
)
def test_every_leak_is_found(tmp_path: Path, op: str) -> None:
    """A faint one, too, since neighbours are loud; and one that only the state lets through."""
    made = running_sum(op=op)
    made.graph.initializer.append(numpy_helper.from_array(np.array(1e-4, np.float32), "faint"))
    refused(tmp_path, made, "rows leak into each other")


def test_a_model_that_cannot_be_cut_is_recorded(tmp_path: Path) -> None:
    """It looks at later steps: no refusal, but a proof that says so, and a warning."""
    found = adopted(tmp_path, running_sum(op="mean = ReduceMean<axes = [1]>(x)  steps = Sub(x, mean)"))
    assert found.signature.proof is not None
    assert not found.signature.proof.chunked
    assert found.signature.proof.bit_exact_from is None
    assert re.search(
        r"warning: answers depend on how clients cut their sequences \(difference [0-9.]+\): send", found.told
    )
    assert "neither cut nor fold" not in found.told  # the warning says as much


@pytest.mark.parametrize("unbatched", [False, True])
def test_chunks_that_come_to_nan_are_recorded(tmp_path: Path, unbatched: bool) -> None:
    """One step alone has no spread to be divided by; a proof holds finite numbers."""
    op = """
        mean = ReduceMean<axes = [1]>(x)  less = Sub(x, mean)  squares = Mul(less, less)
        variance = ReduceMean<axes = [1]>(squares)  spread = Sqrt(variance)  steps = Div(less, spread)
    """
    found = adopted(tmp_path, running_sum(op=op), unbatched=unbatched)
    assert found.signature.proof is not None
    assert (found.signature.proof.chunked, found.signature.proof.chunk_error) == (False, sys.float_info.max)
    assert "(difference not finite)" in found.told


def test_rows_that_are_not_bit_exact_have_a_consequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence that ``verify`` has for it."""
    monkeypatch.setattr(proving, "probe", lambda engine: setattr(engine, "bit_exact", False))
    assert "rows are not bit-exact in this engine: it will neither cut" in adopted(tmp_path, running_sum()).told


@pytest.mark.parametrize(
    ("op", "sentence"),
    [
        ("r = RandomNormalLike(x)  steps = Add(x, r)", ""),
        ("z = Sub(x, x)  steps = Div(z, z)", "NaN or infinity for ordinary inputs"),
    ],
    ids=["random", "NaN"],
)
def test_answers_that_prove_nothing_are_refused(tmp_path: Path, op: str, sentence: str) -> None:
    """Random ones, and such as are no numbers."""
    refused(tmp_path, running_sum(op=op), sentence)


def test_a_state_that_grows_is_refused(tmp_path: Path) -> None:
    """The sentence tells both shapes."""
    made = model(
        "m (float[b,1] x, float[b,c] cache) => (float[b,1] y, float[b,d] new_cache)"
        " {new_cache = Concat<axis = 1>(cache, x)  y = Identity(x)}"
    )
    refused(tmp_path, made, "leaves the length of axis 1 open")
    refused(tmp_path, made, "a state keeps its shape", shapes={"cache": (None, 3)})


def test_lengths_are_honoured_or_the_model_is_refused(tmp_path: Path) -> None:
    """An input of lengths is found, and rows beside longer ones come to the same, final state included."""
    made = lstm(["x", "h0", "c0"], ["y", "hn", "cn"])
    made.graph.node[0].input[4] = "lens"
    made.graph.input.append(helper.make_tensor_value_info("lens", onnx.TensorProto.INT32, ["n"]))
    assert adopted(tmp_path, made).signature.lengths == "lens"
    made.graph.node[0].input[4] = ""
    made.graph.node.append(helper.make_node("Identity", ["lens"], ["unused"]))
    refused(tmp_path / "other", made, "'lens' is not honoured")


def test_which_provider_runs_what_is_told(tmp_path: Path) -> None:
    """The placement table counts the operators of each provider."""
    told = adopted(tmp_path, lstm(["x", "h0", "c0"], ["y", "hn", "cn"])).told
    assert "CPUExecutionProvider" in told
    assert "LSTM 1" in told


def test_an_older_onnx_runtime_tells_no_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is shown then, and nothing fails."""
    monkeypatch.setattr(ort, "InferenceSession", object)
    assert placement(b"", CPU) == {}


def test_the_faintest_leak_is_found(tmp_path: Path) -> None:
    """A hundred-thousandth of what the neighbours hold is more than nothing."""
    op = "mean = ReduceMean<axes = [0]>(x)  little = Mul(mean, faint)  steps = Sub(x, little)"
    made = running_sum(op=op)
    made.graph.initializer.append(numpy_helper.from_array(np.array(1e-5, np.float32), "faint"))
    refused(tmp_path, made, "rows leak into each other")


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize(
    "op",
    ["r = RandomUniformLike<seed = 3.0>(x)  steps = Add(x, r)", "steps, mask = Dropout(x, half, true)"],
    ids=["random", "dropout"],
)
def test_random_answers_are_called_random(tmp_path: Path, op: str, unbatched: bool) -> None:
    """They are no leak, and serving rows alone does not help."""
    made = running_sum(op=op)
    made.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    refused(tmp_path, made, "answers the same question differently each time", unbatched=unbatched)


def test_an_input_called_length_may_be_something_else(tmp_path: Path) -> None:
    """``--lengths none`` says so; rows that run alone have no lengths."""
    made = lstm(["x", "h0", "c0"], ["y", "hn", "cn"])
    made.graph.input.append(helper.make_tensor_value_info("lens", onnx.TensorProto.INT32, ["n"]))
    refused(tmp_path, made, "say --lengths none")
    refused(tmp_path, made, "or say --lengths none where clients send it", unbatched=True)
    found = adopted(tmp_path, made, lengths="none")
    assert found.signature.lengths is None
    assert [spec.name for spec in found.signature.inputs] == ["x", "lens"]


def test_states_beyond_measure_are_refused(tmp_path: Path) -> None:
    """Before dozens of them are held at a time; what has no entries is no state either."""
    wide = model(
        "m (float[b,1] x, float[b,20000000] h) => (float[b,1] y, float[b,20000000] hn) {y = Tanh(x) hn = Identity(h)}"
    )
    refused(tmp_path, wide, "the states of one session take 80 MB where 64 MB is the most")
    none = model("m (float[b,1] x, float[b,0] h) => (float[b,1] y, float[b,0] hn) {y = Tanh(x) hn = Identity(h)}")
    refused(tmp_path, none, "input 'h' has an axis of length 0 ([b, 0])")


def test_a_model_that_kills_onnx_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies in a process of its own, and the user is told in a sentence."""
    made = model(
        "m (float16[b,1] x, float16[b,1] h) => (float16[b,1] y, float16[b,1] hn) {hn = Add(x, h) y = Tanh(hn)}"
    )
    assert adopted(tmp_path / "alive", made).signature.states[0].dtype == "float16"
    monkeypatch.setattr(loading, "_LOAD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    refused(tmp_path, made, "ONNX Runtime itself breaks down while it loads the model (SIGSEGV)")
