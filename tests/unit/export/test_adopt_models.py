"""Foreign models of many layouts, adopted and then served by the engine; and those that cannot be read."""

from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from export.adoption.adopting import adopt_file
from export.adoption.wishes import Wishes
from service.engine.runtime import load_engine
from tests.support.adopted import lstm, model, running_sum, written
from tests.support.adopting import CPU, adopted, refused


@pytest.mark.parametrize("attributes", [{"clip": 3.0}, {"activations": ["Tanh"] * 3}], ids=["clip", "activations"])
def test_unusual_operators_show_no_gates(tmp_path: Path, attributes: dict[str, object]) -> None:
    """What the service cannot recompute is left out, not shown wrongly."""
    found = adopted(tmp_path, lstm(["x", "h0", "c0"], ["y", "hn", "cn"], **attributes))
    assert found.signature.recurrences == ()


def test_h_and_c_may_be_one_tensor(tmp_path: Path) -> None:
    """Stacked states, an input that always has one value, and a shape that the graph does not tell."""
    nodes = """
        h, c = Split<axis = 0>(state)
        rate = Cast<to = 1>(sr)
        scaled = Div(x, rate)
        hn = Add(h, scaled)
        cn = Sub(c, scaled)
        stateN = Concat<axis = 0>(hn, cn)
        y = Add(hn, cn)
    """
    made = model(
        f"m (float[b,4] x, float[2,b,4] state, int64 sr) => (float[1,b,4] y, float[?,?,?] stateN) {{ {nodes} }}"
    )
    found = adopted(tmp_path, made, constants={"sr": np.array(2)})
    (state,) = found.signature.states
    assert (state.input, state.output, state.shape, state.batch_axis) == ("state", "stateN", (2, None, 4), 1)
    assert found.signature.constants["sr"].array().tolist() == 2
    assert not found.signature.has_time_axis
    assert "constant" in found.told


def test_a_scalar_that_is_no_constant_is_warned_of(tmp_path: Path) -> None:
    """A tensor without a batch axis makes the model one of single rows, and the warning names it."""
    made = model(
        "m (float[b,4] x, float[b,4] h, float s) => (float[b,4] y, float[b,4] hn) {hn = Add(h, x) y = Mul(hn, s)}"
    )
    found = adopted(tmp_path, made)
    assert not found.signature.batched
    assert "warning: s has no batch axis" in found.told
    assert "--constant" in found.told


def test_dozens_of_states_of_all_types(tmp_path: Path) -> None:
    """Convolution caches and counters beside each other, each with its own batch axis and type."""
    kinds = ["float", "float16", "double", "int64"]
    inputs, outputs, nodes = ["float[b,3] x"], ["float[b,3] y"], ["y = Identity(x)"]
    for i in range(24):
        kind, code = kinds[i % 4], (1, 10, 11, 7)[i % 4]
        shape = ("[b,3]", "[3,b]")[i % 2]
        inputs.append(f"{kind}{shape} cache_{i}")
        outputs.append(f"{kind}{shape} new_cache_{i}")
        source = f"x_{i} = Transpose(x)" if i % 2 else f"x_{i} = Identity(x)"
        nodes += [source, f"t_{i} = Cast<to = {code}>(x_{i})", f"new_cache_{i} = Add(cache_{i}, t_{i})"]
    found = adopted(tmp_path, model(f"m ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {chr(10).join(nodes)} }}"))
    states = found.signature.states
    assert [(s.input, s.output) for s in states] == [(f"cache_{i}", f"new_cache_{i}") for i in range(24)]
    assert {s.dtype for s in states} == {"float32", "float16", "float64", "int64"}
    assert [s.batch_axis for s in states] == [0, 1] * 12
    assert found.signature.proof is not None


def test_a_first_state_tells_its_shape(tmp_path: Path) -> None:
    """``--initial`` gives a value, and the lengths of axes that the graph leaves open."""
    made = model("m (float[b,2] x, float[b,c] h) => (float[b,2] y, float[b,d] hn) {hn = Add(h, x) y = Identity(hn)}")
    found = adopted(tmp_path, made, initial={"h": np.array([10, 20])})
    assert found.signature.states[0].shape == (None, 2)
    assert found.answers([1, 2]) == [[11, 22]]
    refused(tmp_path / "a", made, "no row of the state's", initial={"h": np.zeros((2, 3, 4))})
    refused(tmp_path / "b", made, "cannot be written as float32", initial={"h": np.array(["a", "b"])})


def test_initializers_among_the_inputs_are_none(tmp_path: Path) -> None:
    """Files of old IR versions list their weights as inputs."""
    made = lstm(["x", "h0", "c0"], ["y", "hn", "cn"])
    weights = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in made.graph.initializer]
    made.graph.input.extend(weights)
    assert [i.name for i in adopted(tmp_path, made).signature.inputs] == ["x"]


def test_constants_may_be_weights_of_a_gate(tmp_path: Path) -> None:
    """A declared constant counts as constant weights."""
    made = lstm(["x", "h0", "c0"], ["y", "hn", "cn"])
    bias = made.graph.initializer.pop()
    made.graph.input.append(helper.make_tensor_value_info("B", bias.data_type, list(bias.dims)))
    found = adopted(tmp_path, made, constants={"B": numpy_helper.to_array(bias)})
    assert [r.bias for r in found.signature.recurrences] == ["B"]


def test_the_answer_may_be_the_state(tmp_path: Path) -> None:
    """A cell that answers nothing but its state is served with it."""
    found = adopted(tmp_path, model("m (float[b,2] x, float[b,2] h) => (float[b,2] hn) {hn = Add(h, x)}"))
    assert found.answers([1, 2], output="hn") == [[1, 2]]


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    """What an artifact says of its origin is no path and no time; metadata and producer stay."""
    made = running_sum()
    helper.set_model_props(made, {"author": "somebody"})
    source = written(tmp_path / "in" / "sum.onnx", made)
    paths = [adopt_file(source, tmp_path / n / "1", Wishes(), Console(file=StringIO())) for n in ("a", "b")]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert str(tmp_path).encode() not in first
    kept = onnx.load(paths[0])
    assert (kept.producer_name, kept.ir_version) == ("elsewhere", 9)
    assert {p.key: p.value for p in kept.metadata_props}["author"] == "somebody"
    signature = load_engine(paths[0], CPU).signature
    assert (signature.made["source"], signature.made["producer"]) == ("sum.onnx", "elsewhere 1.2")
    assert signature.made["opset"] == {"ai.onnx": 17}


def test_h_and_c_may_be_of_different_widths(tmp_path: Path) -> None:
    """As behind a projection; one batch axis stands first, the other second."""
    made = model(
        "m (float[b,2] x, float[b,2] h, float[6,b] c) => (float[b,2] y, float[b,2] h_next, float[6,b] c_next)"
        " {y = Add(h, x) h_next = Identity(y) c_next = Tanh(c)}"
    )
    states = adopted(tmp_path, made).signature.states
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in states] == [
        ("h", "h_next", (None, 2), 0),
        ("c", "c_next", (6, None), 1),
    ]


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    """Each has axes of its own; an output without a time axis makes a call one step."""
    made = model(
        "m (float[b,t,2] u, int64[t,b] v, float[b,2] h) => (float[b,t,2] y, float[b,2] last, float[b,2] hn)"
        " {w = Transpose(v) f = Cast<to = 1>(w) g = Unsqueeze(f, two) y = Add(u, g) s = ReduceSum<keepdims = 0>(y, one)"
        " last = Identity(s) hn = Add(h, s)}",
        one=np.array([1], np.int64),
        two=np.array([2], np.int64),
    )
    signature = adopted(tmp_path, made).signature
    assert [(t.name, t.batch_axis, t.time_axis) for t in (*signature.inputs, *signature.outputs)] == [
        ("u", 0, 1),
        ("v", 1, 0),
        ("y", 0, 1),
        ("last", 0, None),
    ]
    assert not signature.has_time_axis


def test_a_first_state_with_several_readings_is_asked_about(tmp_path: Path) -> None:
    """Two open axes: which of them counts rows, a value of one row does not tell."""
    made = model("m (float[b,2] x, float[p,q,2] h) => (float[b,2] y, float[?,?,2] hn) {hn = Add(h, x) y = Identity(x)}")
    refused(tmp_path, made, "say --batch-axis h=AXIS", initial={"h": np.zeros((2, 2))})
    found = adopted(tmp_path, made, initial={"h": np.ones((2, 2))}, batch_axes={"h": 1})
    assert found.signature.states[0].shape == (2, None, 2)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Brackets in a name are no markup."""
    made = lstm(["x", "[red]h0", "[b]c0"], ["y", "[red]hn", "[b]cn"])
    assert "[red]h0" in adopted(tmp_path, made).told


UNREADABLE: list[tuple[str, dict[str, object], str]] = [
    ("float[] x, float[b,1] h) => (float[b,t,1] y, float[b,1] hn) {y = Add(x, h) hn = Tanh(h)}", {}, "--shape x="),
    ("float[b,1] x, float[] h) => (float[b,1] y, float[] hn) {y = Add(x, h) hn = Tanh(h)}", {}, "--shape h="),
    ("float[b,t,u] x, float[b,1] h) => (float[b,t,u] y, float[b,1] hn) {y = Tanh(x) hn = Tanh(h)}", {}, "axis 2 open"),
    (
        "float[b,2] x, float[b,2] h) => (float[b,2] y, float[b,2] hn) {y = Add(x, h) hn = Tanh(h)}",
        {"batch_axes": {"h": None}},
        "leaves the length of axis 0 open",
    ),
    (
        "float[b,2] x, float[b,2] h, float[2] k) => (float[b,2] y, float[b,2] hn) {y = Add(x, k) hn = Tanh(h)}",
        {"constants": {"k": np.ones(3)}},
        "--constant k has the shape [3]",
    ),
    (
        "float[b,2] x, float[b,2] h, int64 k) => (float[b,2] y, float[b,2] hn) {y = Add(x, h) hn = Tanh(h)}",
        {"constants": {"k": np.array(0.5)}},
        "--constant k cannot be written as int64",
    ),
]


@pytest.mark.parametrize(("text", "wishes", "sentence"), UNREADABLE, ids=[u[2] for u in UNREADABLE])
def test_what_cannot_be_read_is_told(tmp_path: Path, text: str, wishes: dict[str, object], sentence: str) -> None:
    """Shapes that nobody tells, answers of other lengths, values that do not fit: each with what to give."""
    refused(tmp_path, model(f"m ({text}"), sentence, **wishes)


def test_an_unreadable_state_shape_can_be_given(tmp_path: Path) -> None:
    """``--shape`` tells what the graph does not."""
    made = model("m (float[b,1] x, float[] h) => (float[b,1] y, float[] hn) {y = Add(x, h) hn = Tanh(h)}")
    assert adopted(tmp_path, made, shapes={"h": (None, 1)}).signature.states[0].shape == (None, 1)


def test_a_constant_may_be_a_tensor(tmp_path: Path) -> None:
    """One number for each entry."""
    made = model(
        "m (float[b,2] x, float[b,2] h, float[2] k) => (float[b,2] y, float[b,2] hn) {y = Add(x, k) hn = Tanh(h)}"
    )
    assert adopted(tmp_path, made, constants={"k": np.array([10, 20])}).answers([1, 2]) == [[11, 22]]
