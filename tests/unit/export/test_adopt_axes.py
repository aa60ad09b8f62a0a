"""Which axes count rows and steps, found by names and by runs."""

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from export.adoption.wishes import ALL
from tests.support.adopted import lstm, model, running_sum
from tests.support.adopting import adopted, refused

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


def test_an_open_axis_that_counts_nothing_is_asked_for(tmp_path: Path) -> None:
    """A block of samples of any length is one step: its length is the user's to tell."""
    made = model(
        "m (float[b,n] x, float[b,1] h) => (float[b,n] y, float[b,1] hn) {y = Add(x, h) hn = ReduceMean<axes = [1]>(y)}"
    )
    refused(tmp_path, made, "give it with --shape x=", time_axes={ALL: None})
    found = adopted(tmp_path, made, time_axes={ALL: None}, shapes={"x": (None, 4)})
    assert found.signature.inputs[0].step_shape == (4,)


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


def test_answers_without_steps_are_told(tmp_path: Path) -> None:
    """Of a sequence only the last answer comes back: one request is one step."""
    made = model(
        "m (float[b,t,1] x, float[b,1] h) => (float[b,1] y, float[b,1] hn)"
        " {all = ReduceSum<keepdims = 0>(x, axis) hn = Add(h, all) y = Identity(hn)}",
        axis=np.array([1], np.int64),
    )
    found = adopted(tmp_path, made)
    assert not found.signature.has_time_axis
    assert "although x leaves the number of steps open: the output 'y' has no axis for steps" in found.told


def test_steps_that_an_exporter_has_fixed_are_told(tmp_path: Path) -> None:
    """What is one step is said in a line, and where a length may have been the example's only, the way out."""
    fixed = running_sum(x="float[b,7,1] x", y="float[b,7,1] y")
    found = adopted(tmp_path / "fixed", fixed)
    assert "no open time axis: one step is a whole x [7, 1]; if 7 was only the example's length" in found.told
    told = adopted(tmp_path / "told", fixed, time_axes={ALL: None}).told
    assert "one request is one step: x [7, 1]\n" in told
    chunk = model("m (float[b,512] x, float[b,1] h) => (float[b,512] y, float[b,1] hn) {y = Add(x, h) hn = Tanh(h)}")
    assert "one request is one step: x [512]\n" in adopted(tmp_path / "chunk", chunk).told
    assert "one request is one step" not in adopted(tmp_path / "open", running_sum()).told


@pytest.mark.parametrize("steps", [3, 7])
def test_a_loop_that_an_exporter_unrolled_is_told(tmp_path: Path, steps: int) -> None:
    """Of ONNX Runtime's sentence nobody would guess what is wrong."""
    ats = " ".join(f"i{t} = Constant<value_int = {t}>() x{t} = Gather<axis = 1>(x, i{t})" for t in range(steps))
    sums = " ".join(f"h{t + 1} = Add(h{t}, x{t})" for t in range(steps))
    parts = " ".join(f"y{t} = Unsqueeze(h{t + 1}, one)" for t in range(steps))
    joined = ", ".join(f"y{t}" for t in range(steps))
    made = model(
        f"m (float[b,t,1] x, float[b,1] h) => (float[b,t,1] y, float[b,1] hn)"
        f" {{ {ats} h0 = Identity(h) {sums} {parts} y = Concat<axis = 1>({joined}) hn = Identity(h{steps}) }}",
        one=np.array([1]),
    )
    refused(tmp_path, made, "the exporter has probably unrolled the steps of the example")


def test_an_open_axis_called_batch_counts_rows(tmp_path: Path) -> None:
    """Also where the state has no rows, such as a counter: the axis does not become time."""
    made = model(
        "m (float[batch,3] x, int64[1] n) => (float[batch,3] y, int64[1] n_out)"
        " {n_out = Add(n, one) f = Cast<to = 1>(n) y = Add(x, f)}",
        one=np.array(1, np.int64),
    )
    found = adopted(tmp_path, made)
    assert (found.signature.inputs[0].shape, found.signature.inputs[0].time_axis) == ((1, 3), None)
    assert found.answers([5, 5, 5]) == [[5, 5, 5]]


def test_an_open_axis_of_one_length_is_asked_for(tmp_path: Path) -> None:
    """What ran only with the length that the graph hides: the sentence names the option."""
    made = model(
        "m (float[b,n] x, float[b,4] h) => (float[b,4] y, float[b,4] hn)"
        " {z = MatMul(x, w) hn = Add(h, z) y = Tanh(hn)}",
        w=np.ones((7, 4), np.float32),
    )
    refused(tmp_path, made, "--shape x=..., ? for the others")
    assert adopted(tmp_path, made, shapes={"x": (None, 7)}).signature.inputs[0].shape == (None, 7)
