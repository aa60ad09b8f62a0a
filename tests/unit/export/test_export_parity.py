"""The gate passes what is right, and fails what is wrong."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from rich.console import Console

from export import graph, report
from export.errors import ExportError
from export.network import freeze, reference_of
from export.parity import (
    AMPLIFICATION,
    TOLERANCE,
    UNCALIBRATED,
    UNCALIBRATED_HALF,
    Comparison,
    Difference,
    Reference,
    Report,
    check,
    largest_error,
    uncalibrated,
)
from export.signature import attach
from export.weights import Weights
from model.networks import Network
from service.artifact import Proof, Signature, StateSpec, TensorSpec
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.errors import ArtifactError
from service.settings import load_settings
from service.state import Chunk
from tests.support import artifacts

Load = Callable[[Weights], Engine]


def _engine_at(path: Path) -> Engine:
    engine = load_engine(path, load_settings(provider="cpu"))
    probe(engine)
    return engine


def _edited(path: Path, edit: Callable[[onnx.GraphProto], None]) -> Engine:
    """The engine of the artifact at ``path`` after ``edit`` of its graph; the signature stays."""
    model = onnx.load(path)
    edit(model.graph)
    path.write_bytes(model.SerializeToString())
    return _engine_at(path)


def _largest(report: Report) -> float:
    return max(max(c.pytorch.outputs, c.pytorch.states) for c in report.comparisons if c.pytorch)


def test_an_exported_network_passes(network: Network, load: Load) -> None:
    """A small network and its artifact agree within 1e-5 however it is run, and rows keep their bits."""
    found = check(load(freeze(network)), reference_of(network))
    found.require()
    assert TOLERANCE <= found.tolerance < 3 * TOLERANCE
    assert _largest(found) <= TOLERANCE
    assert found.bit_exact
    assert all(comparison.identical for comparison in found.comparisons)


def test_the_gate_asks_the_same_questions_again(language: Network, load: Load) -> None:
    """Two runs of the gate on one artifact find the same figures."""
    engine = load(freeze(language))
    assert check(engine, reference_of(language)) == check(engine, reference_of(language))


def test_every_way_of_running_is_compared(language: Network, load: Load) -> None:
    """Alone, ragged, in chunks, step by step and in one large batch: none is left out."""
    ways = [comparison.way for comparison in check(load(freeze(language))).comparisons]
    assert ways == [
        "one row alone, whole",
        "ragged batches, whole",
        "ragged, chunks of 1-8",
        "batches, step by step",
        "one batch of 96",
    ]


@pytest.mark.parametrize("cell", ["lstm"])
@pytest.mark.parametrize("part", ["head_weight", "head_bias"])
def test_a_changed_head_fails(network: Network, load: Load, part: str) -> None:
    """One number of the head that is off by a thousandth is found in the outputs."""
    weights = freeze(network)
    changed = getattr(weights.recurrence, part).copy()
    changed.flat[0] += 1e-3
    engine = load(replace(weights, recurrence=replace(weights.recurrence, **{part: changed})))
    with pytest.raises(ExportError, match=r"its outputs differ from PyTorch by .* where .e-05 is allowed"):
        check(engine, reference_of(network)).require()


@pytest.mark.parametrize("part", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_a_changed_recurrent_weight_fails(language: Network, load: Load, part: str) -> None:
    """One recurrent weight of the last layer that is off by a hundredth is found."""
    weights = freeze(language)
    layer = weights.recurrence.layers[-1]
    changed = getattr(layer, part).copy()
    changed.flat[0] += 1e-2
    layers = (*weights.recurrence.layers[:-1], replace(layer, **{part: changed}))
    engine = load(replace(weights, recurrence=replace(weights.recurrence, layers=layers)))
    with pytest.raises(ExportError, match="differ from PyTorch"):
        check(engine, reference_of(language)).require()


@pytest.mark.parametrize("part", ["mean", "scale"])
def test_a_changed_scaling_fails(forecast: Network, load: Load, part: str) -> None:
    """A scaling that is off by a thousandth is found, also in the feature whose values are tiny."""
    weights = freeze(forecast)
    changed = getattr(weights, part).copy()
    changed[1] *= 1.001
    with pytest.raises(ExportError, match="differ from PyTorch"):
        check(load(replace(weights, **{part: changed})), reference_of(forecast)).require()


def test_a_state_that_is_not_carried_fails(tmp_path: Path, language: Network, load: Load) -> None:
    """Final states are compared, not only outputs: c that comes out as it went in is found."""
    load(freeze(language))

    def keep_c(parts: onnx.GraphProto) -> None:
        (concat,) = [node for node in parts.node if list(node.output) == ["c_next"]]
        concat.CopyFrom(helper.make_node("Identity", ["c"], ["c_next"]))

    engine = _edited(tmp_path / "model.onnx", keep_c)
    with pytest.raises(ExportError, match="run as one row alone, whole, its states differ from PyTorch"):
        check(engine, reference_of(language)).require()


def test_lengths_that_are_ignored_fail_without_pytorch(tmp_path: Path) -> None:
    """Where rows run on past their own length, a ragged batch differs from the row alone."""
    path = artifacts.language(tmp_path / "model.onnx")

    def ignore_lengths(parts: onnx.GraphProto) -> None:
        for node in parts.node:
            if node.op_type == "LSTM":
                node.input[4] = ""

    engine = _edited(path, ignore_lengths)
    with pytest.raises(ExportError, match="its states differ from the same row run alone and whole"):
        check(engine).require()


def test_answers_that_are_not_finite_fail(language: Network, load: Load) -> None:
    """A weight of NaN is told as what it is."""
    weights = freeze(language)
    weights.recurrence.head_bias[2] = np.nan
    with pytest.raises(ExportError, match="it answers NaN or infinity for ordinary inputs"):
        check(load(weights)).require()


def test_an_output_with_other_steps_than_the_input_fails(tmp_path: Path) -> None:
    """An artifact whose outputs are not one per step cannot answer a session."""
    path = artifacts.running_sum(tmp_path / "model.onnx")

    def double(parts: onnx.GraphProto) -> None:
        next(node for node in parts.node if "y" in node.output).output[0] = "once"
        parts.node.append(helper.make_node("Concat", ["once", "once"], ["y"], axis=1))

    with pytest.raises(ArtifactError, match="output 'y' has shape"):
        check(_edited(path, double))


@pytest.mark.parametrize("ragged", [True, False])
def test_an_artifact_of_any_kind_can_be_checked(tmp_path: Path, ragged: bool) -> None:
    """Without PyTorch, and with or without lengths, an artifact is held against itself."""
    engine = _engine_at(artifacts.running_sum(tmp_path / "model.onnx", ragged=ragged))
    found = check(engine)
    found.require()
    assert found.tolerance == UNCALIBRATED
    assert all(c.pytorch is None and c.identical for c in found.comparisons)


def test_an_artifact_of_single_steps_can_be_checked(tmp_path: Path) -> None:
    """A graph without a time axis is run one step at a time in every comparison."""
    check(_engine_at(_single_step_sum(tmp_path / "model.onnx"))).require()


def _single_step_sum(path: Path) -> Path:
    """``y = h_next = h + x`` with x, y and h float32 [batch, 1]."""
    nodes = [helper.make_node("Add", ["x", "h"], ["y"]), helper.make_node("Identity", ["y"], ["n"])]
    signature = Signature(
        task="generic",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 1), time_axis=None),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 1), time_axis=None),),
        states=(_STATE,),
    )
    return _written(path, nodes, ["batch", 1], signature)


_STATE = StateSpec(input="h", output="n", dtype="float32", shape=(None, 1), batch_axis=0)


def _written(path: Path, nodes: list[onnx.NodeProto], shape: list[str | int], signature: Signature) -> Path:
    """The artifact of nodes from x of a shape and the state h to y and n."""
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"}
    tensors |= {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in "hn"}
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [tensors["x"], tensors["h"]], [tensors["y"], tensors["n"]]),
        opset_imports=[helper.make_opsetid("", graph.OPSET)],
        ir_version=graph.IR_VERSION,
    )
    path.write_bytes(attach(model, signature))
    return path


@pytest.mark.parametrize("chunked", [True, False])
def test_a_model_that_must_not_be_cut_is_not_run_in_chunks(tmp_path: Path, chunked: bool) -> None:
    """What adoption has shown holds: where chunks differ from the whole, only whole sequences are compared."""
    engine = _engine_at(_above_mean(tmp_path / "model.onnx", chunked))
    assert not engine.bit_exact
    found = check(engine)
    if chunked:
        with pytest.raises(ExportError, match="run as ragged, chunks of 1-8, its outputs differ"):
            found.require()
    else:
        found.require()
        assert [c.way for c in found.comparisons] == [
            "one row alone, whole",
            "ragged batches, whole",
            "one batch of 96",
        ]


def _above_mean(path: Path, chunked: bool) -> Path:
    """``y = x - mean of x over time`` with x and y float32 [batch, time]; the state h [batch, 1] stays as it is."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
        helper.make_node("Identity", ["h"], ["n"]),
    ]
    proof = {"rows_independent": True, "batch_error": 0, "chunked": chunked, "chunk_error": 1, "continues": True}
    signature = Signature(
        task="generic",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, None)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, None)),),
        states=(_STATE,),
        proof=Proof(**proof, bit_exact_from=None),
    )
    return _written(path, nodes, ["batch", "time"], signature)


def test_half_precision_is_allowed_more() -> None:
    """Where nothing tells how far rounding goes, float16 in any tensor allows ten times what float32 does."""
    spec = TensorSpec(name="x", dtype="float32", shape=(None, None))
    signature = Signature(task="generic", inputs=(spec,), outputs=(spec,), states=(_STATE,))
    assert uncalibrated(signature) == UNCALIBRATED
    half = _STATE.model_copy(update={"dtype": "float16"})
    assert uncalibrated(signature.model_copy(update={"states": (half,)})) == UNCALIBRATED_HALF


def test_rounding_that_the_network_amplifies_is_allowed(language: Network, load: Load) -> None:
    """The tolerance grows to ten times what PyTorch's float32 itself strays from float64."""
    engine, true = load(freeze(language)), reference_of(language)

    def strays(states: Mapping[str, np.ndarray], chunk: Chunk) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        output, after = true.float64(states, chunk)
        return output, {name: state + 3e-4 for name, state in after.items()}

    found = check(engine, Reference(float32=true.float32, float64=strays))
    assert found.tolerance == pytest.approx(AMPLIFICATION * 3e-4, rel=0.05)


def test_the_reference_leaves_the_network_and_threads_alone(language: Network, load: Load) -> None:
    """Asking PyTorch changes neither the network's precision nor how many threads the process uses."""
    threads = torch.get_num_threads()
    check(load(freeze(language)), reference_of(language))
    assert {parameter.dtype for parameter in language.parameters()} == {torch.float32}
    assert torch.get_num_threads() == threads


def test_errors_are_told_in_units() -> None:
    """A forecast's error is relative to its scale, another value's to itself where it is above 1."""
    have, want = np.array([[100.5, 0.02]], np.float32), np.array([[100.0, 0.01]], np.float32)
    assert largest_error(have, want, np.array([50.0, 1.0])) == pytest.approx(0.01, rel=1e-3)
    assert largest_error(have, want) == pytest.approx(0.01, rel=1e-3)
    assert largest_error(have[:, :1], want[:, :1]) == pytest.approx(0.005, rel=1e-3)


def test_two_last_digits_of_a_large_value_are_within_tolerance() -> None:
    """Where float32 cannot resolve 1e-5 of the scale, two steps of float32 are allowed, and not many more."""
    want, scale = np.array([1e6], np.float32), np.array([1.0])
    step = np.spacing(want)
    assert largest_error(want + 2 * step, want, scale) <= TOLERANCE
    assert largest_error(want + 8 * step, want, scale) > TOLERANCE


@pytest.mark.parametrize(("have", "want"), [(np.nan, 0.0), (0.0, np.nan), (np.inf, np.inf)])
def test_an_error_that_cannot_be_told_is_nan(have: float, want: float) -> None:
    """NaN and infinity never compare as equal."""
    assert np.isnan(largest_error(np.array([have], np.float32), np.array([want], np.float32)))


def _report(**changes: object) -> Report:
    fine = Difference(1e-7, 2e-7)
    comparison = Comparison("ragged batches, whole", fine, fine, identical=True)
    return replace(Report((comparison,), 96, 2000, True, True, 4, TOLERANCE), **changes)  # type: ignore[arg-type]


def test_a_probe_that_was_wrong_fails() -> None:
    """Rows that the engine takes for bit-exact and that are not would break the promise to sessions."""
    differs = replace(_report().comparisons[0], identical=False)
    with pytest.raises(ExportError, match="the last bits differ"):
        _report(comparisons=(differs,)).require()
    _report(comparisons=(differs,), bit_exact=False).require()


def test_an_error_of_nan_fails() -> None:
    """A comparison that came to NaN is no pass."""
    unknown = replace(_report().comparisons[0], pytorch=Difference(0.0, float("nan")))
    with pytest.raises(ExportError, match="its states differ from PyTorch by nan"):
        _report(comparisons=(unknown,)).require()


def test_many_states_are_counted() -> None:
    """The heading names a few states with their shapes; a model with dozens is told how many."""
    spec = TensorSpec(name="x", dtype="float32", shape=(None, None))

    def signature(count: int) -> Signature:
        states = tuple(_STATE.model_copy(update={"input": f"h{i}"}) for i in range(count))
        return Signature(task="generic", inputs=(spec,), outputs=(spec,), states=states)

    assert report.heading(signature(2)) == "generic, state h0 [1], state h1 [1]"
    assert report.heading(signature(30)) == "generic, 30 states"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "rows are bit-exact in this engine, whatever the batch, which it fills up to 4 rows"),
        ({"min_rows": 1}, "rows are bit-exact in this engine, whatever the batch"),
        ({"bit_exact": False}, "rows are not bit-exact in this engine: it will neither cut nor fold chunks"),
    ],
)
def test_the_table_tells_errors_and_bits(changes: dict[str, object], sentence: str) -> None:
    """The table shows the largest errors of each way, and from how many rows on bits are kept."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(_report(**changes)))
    text = console.export_text()
    assert report.bits(_report(**changes)) == sentence
    assert "ragged batches, whole" in text
    assert text.count("1.0e-07") == 2
    assert max(map(len, text.splitlines())) <= 80
