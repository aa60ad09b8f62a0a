"""Foreign models of many layouts, adopted and then served by the engine; and those that are refused."""

from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper
from rich.console import Console

from export.adoption.adopting import adopt_file, adopt_model
from export.adoption.wishes import ALL, Wishes
from export.errors import ExportError
from service.artifact import Signature
from service.engine import ort
from service.engine.placement import placement
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import load_settings
from tests.support.adopted import lstm, model, running_sum, written

CPU = load_settings(provider="cpu")


class Adopted:
    """An adopted model: what was printed, and the engine of the file."""

    def __init__(self, folder: Path, made: ModelProto, wishes: Wishes) -> None:
        screen = StringIO()
        self.path = adopt_model(made, folder / "models" / "foreign" / "1", wishes, Console(file=screen, width=160))
        self.told = screen.getvalue()
        self.engine: Engine = load_engine(self.path, CPU)
        probe(self.engine)
        self.signature: Signature = self.engine.signature

    def answers(self, *sequences: list[float], output: str = "y") -> list[list[float]]:
        """The outputs of fresh rows of numbers that share a call."""
        chunks = [(np.array(s, self.signature.inputs[0].dtype).reshape(-1, *self._step),) for s in sequences]
        done = self.engine.run([self.engine.initial_row] * len(chunks), chunks)
        return [done.outputs[output][i, : len(s)].ravel().tolist() for i, s in enumerate(sequences)]

    @property
    def _step(self) -> tuple[int, ...]:
        return self.signature.inputs[0].step_shape


def adopted(folder: Path, made: ModelProto, **wishes: object) -> Adopted:
    """Adopt with some corrections."""
    return Adopted(folder, made, Wishes(**wishes))  # type: ignore[arg-type]


def refused(folder: Path, made: ModelProto, sentence: str, **wishes: object) -> None:
    """Adoption ends with the sentence, and nothing is written."""
    with pytest.raises(ExportError) as error:
        adopted(folder, made, **wishes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "models").exists()


NAMED = [
    {},
    {"x": "float[xa,xb,1] x", "h": "float[ha,1] h", "y": "float[ya,yb,1] y", "hn": "float[na,1] hn"},
    {"x": "float[?,?,1] x", "h": "float[?,1] h", "y": "float[?,?,?] y", "hn": "float[?,?] hn"},
    {"y": "float[b,5,1] y", "hn": "float[3,1] hn"},
    {"y": "float[] y", "hn": "float[] hn"},
]


@pytest.mark.parametrize("shapes", NAMED, ids=["by name", "each tensor its own", "unnamed", "wrong", "not told"])
def test_axes_are_found_however_they_are_named(tmp_path: Path, shapes: dict[str, str]) -> None:
    """Open axes with common names, names of their own, none at all, or falsely declared as fixed for outputs."""
    found = adopted(tmp_path, running_sum(**shapes))
    signature = found.signature
    assert [(t.name, t.shape, t.batch_axis, t.time_axis) for t in (*signature.inputs, *signature.outputs)] == [
        ("x", (None, None, 1), 0, 1),
        ("y", (None, None, 1), 0, 1),
    ]
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in signature.states] == [("h", "hn", (None, 1), 0)]
    assert signature.batched
    assert found.answers([1, 2, 3], [5, 5, 5]) == [[1, 3, 6], [5, 10, 15]]
    proof = signature.proof
    assert proof is not None
    assert (proof.rows_independent, proof.chunked, proof.continues, proof.batch_error) == (True, True, True, 0.0)


def test_time_first_and_the_gates(tmp_path: Path) -> None:
    """A bare LSTM: axes by names that say nothing to us, states in their own axes, and its gates can be recomputed."""
    found = adopted(tmp_path, lstm(["x", "h0", "c0"], ["y", "hn", "cn"]))
    x, y = found.signature.inputs[0], found.signature.outputs[0]
    assert (x.batch_axis, x.time_axis, y.batch_axis, y.time_axis) == (1, 0, 2, 0)
    assert [s.batch_axis for s in found.signature.states] == [1, 1]
    (recurrence,) = found.signature.recurrences
    assert (recurrence.operator, recurrence.name, recurrence.hidden) == ("LSTM", "cell", 4)
    assert (recurrence.sequence, recurrence.weight, recurrence.states) == ("x", "W", ("h0", "c0"))
    assert (recurrence.bias, recurrence.peephole, recurrence.coupled) == ("B", None, False)


def test_axes_that_only_a_run_can_tell(tmp_path: Path) -> None:
    """Where names tell nothing, what runs decides: here rows stand second."""
    made = lstm(["x", "h0", "c0"], ["y", "hn", "cn"])
    for value in (*made.graph.input, *made.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    found = adopted(tmp_path, made)
    assert (found.signature.inputs[0].batch_axis, found.signature.inputs[0].time_axis) == (1, 0)


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


def test_a_batch_frozen_at_one_is_served_a_row_at_a_time(tmp_path: Path) -> None:
    """With a warning that says how to re-export; many rows still get their answers."""
    shapes = {"x": "float[1,t,1] x", "h": "float[1,1] h", "y": "float[1,t,1] y", "hn": "float[1,1] hn"}
    found = adopted(tmp_path, running_sum(**shapes))
    assert not found.signature.batched
    assert found.signature.inputs[0].step_shape == (1,)
    assert "re-export with a dynamic batch axis" in found.told
    assert found.answers([1, 2, 3], [5, 5, 5]) == [[1, 3, 6], [5, 10, 15]]


@pytest.mark.parametrize(
    ("fixed", "batched", "stepped", "warning"),
    [
        ([1, -1, 1], False, False, "the batch axis is frozen at 1"),
        ([-1, 1, 1], True, True, "one request is one step, although"),
    ],
    ids=["rows", "steps"],
)
def test_what_an_exporter_has_frozen_inside_is_found(
    tmp_path: Path, fixed: list[int], batched: bool, stepped: bool, warning: str
) -> None:
    """Shapes may promise what a reshape within does not keep: the run decides."""
    made = running_sum(op="steps = Reshape(x, fixed)")
    made.graph.initializer.append(numpy_helper.from_array(np.array(fixed, np.int64), "fixed"))
    found = adopted(tmp_path, made)
    assert (found.signature.batched, not found.signature.has_time_axis) == (batched, stepped)
    assert warning in found.told


def test_a_batch_frozen_at_more_is_refused(tmp_path: Path) -> None:
    """In one sentence that says how to re-export."""
    shapes = {"x": "float[4,t,1] x", "h": "float[4,1] h", "y": "float[4,t,1] y", "hn": "float[4,1] hn"}
    refused(
        tmp_path,
        running_sum(**shapes),
        "the batch axis is frozen at 4: re-export",
    )


def test_no_axis_counts_rows(tmp_path: Path) -> None:
    """``--batch-axis none``, and a model of plain vectors."""
    made = model("m (float[4,4] x, float[4,4] h) => (float[4,4] y, float[4,4] hn) {hn = Add(h, x) y = Identity(hn)}")
    found = adopted(tmp_path, made, batch_axes={ALL: None})
    assert (found.signature.batched, found.signature.inputs[0].step_shape) == (False, (4, 4))
    assert "warning: no axis counts rows" in found.told


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
    assert "warning: a sequence cut into chunks" in found.told


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


def test_a_first_state_tells_its_shape(tmp_path: Path) -> None:
    """``--initial`` gives a value, and the lengths of axes that the graph leaves open."""
    made = model("m (float[b,2] x, float[b,c] h) => (float[b,2] y, float[b,d] hn) {hn = Add(h, x) y = Identity(hn)}")
    found = adopted(tmp_path, made, initial={"h": np.array([10, 20])})
    assert found.signature.states[0].shape == (None, 2)
    assert found.answers([1, 2]) == [[11, 22]]
    refused(tmp_path / "a", made, "no row of the state's", initial={"h": np.zeros((2, 3, 4))})
    refused(tmp_path / "b", made, "cannot be written as float32", initial={"h": np.array(["a", "b"])})


def test_lengths_are_honoured_or_the_model_is_refused(tmp_path: Path) -> None:
    """An input of lengths is found, and rows beside longer ones come to the same, final state included."""
    made = lstm(["x", "h0", "c0"], ["y", "hn", "cn"])
    made.graph.node[0].input[4] = "lens"
    made.graph.input.append(helper.make_tensor_value_info("lens", onnx.TensorProto.INT32, ["n"]))
    assert adopted(tmp_path, made).signature.lengths == "lens"
    made.graph.node[0].input[4] = ""
    made.graph.node.append(helper.make_node("Identity", ["lens"], ["unused"]))
    refused(tmp_path / "other", made, "'lens' is not honoured")


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


def test_an_open_axis_that_counts_nothing_is_asked_for(tmp_path: Path) -> None:
    """A block of samples of any length is one step: its length is the user's to tell."""
    made = model(
        "m (float[b,n] x, float[b,1] h) => (float[b,n] y, float[b,1] hn) {y = Add(x, h) hn = ReduceMean<axes = [1]>(y)}"
    )
    refused(tmp_path, made, "give it with --shape x=", time_axes={ALL: None})
    found = adopted(tmp_path, made, time_axes={ALL: None}, shapes={"x": (None, 4)})
    assert found.signature.inputs[0].step_shape == (4,)


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


def test_which_provider_runs_what_is_told(tmp_path: Path) -> None:
    """The placement table counts the operators of each provider."""
    told = adopted(tmp_path, lstm(["x", "h0", "c0"], ["y", "hn", "cn"])).told
    assert "CPUExecutionProvider" in told
    assert "LSTM 1" in told


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


def test_an_older_onnx_runtime_tells_no_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is shown then, and nothing fails."""
    monkeypatch.setattr(ort, "InferenceSession", object)
    assert placement(b"", CPU) == {}


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


ONE_STEP = [
    ("float[p,q,1] y", "y = Concat<axis = 1>(x, x)", "the output 'y' holds 10 steps where 5 went in"),
    (
        "float[p,q,r] y",
        "u = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, u)",
        "several axes that grow with the number of steps",
    ),
]


@pytest.mark.parametrize(("y", "nodes", "reason"), ONE_STEP, ids=["doubled", "squared"])
def test_answers_that_are_no_sequence_are_served_step_by_step(tmp_path: Path, y: str, nodes: str, reason: str) -> None:
    """What comes out is not one answer for each step: one request is one step, and the warning says why."""
    made = model(f"m (float[b,t,1] x, float[b,1] h) => ({y}, float[b,1] hn) {{ {nodes} hn = Tanh(h) }}")
    found = adopted(tmp_path, made)
    assert not found.signature.has_time_axis
    assert "warning: one request is one step" in found.told
    assert reason in found.told
