"""`lstm-serve quantize`: fewer bits, and every promise of a session kept or told."""

import logging
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

from export.adoption.adopting import adopt_file
from export.adoption.wishes import Wishes
from export.command import app
from export.errors import ExportError
from export.quantization import quantising
from export.quantization.graphs import constants_of
from export.quantization.halving import halve
from export.quantization.pinning import pin
from export.quantization.validation import loss, read_data
from export.signature import attach
from model.errors import DataError
from service.engine.probe import probe, random_chunk
from service.engine.runtime import Engine, load_engine
from service.errors import ArtifactError
from service.settings import load_settings
from tests.support import artifacts
from tests.support.modules import Foreign, export_file

LSTMS = ["lstm", "peephole", "cifg"]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["quantize", *(str(argument) for argument in arguments)])


def _done(*arguments: object) -> Result:
    result = _run(*arguments)
    assert result.exception is None
    return result


def _sentence(result: Result, kind: type[Exception] = ExportError) -> str:
    assert isinstance(result.exception, kind)
    sentence = str(result.exception)
    assert sentence
    assert "\n" not in sentence
    return sentence


def _engine(path: Path) -> Engine:
    engine = load_engine(path, load_settings(provider="cpu"))
    probe(engine)
    return engine


def _answers(engine: Engine, rows: int = 5, steps: int = 30) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    chunks = [random_chunk(engine.signature, steps, random) for _ in range(rows)]
    run = engine.run([engine.initial_row] * rows, chunks)
    return [*run.outputs.values(), *(t.astype(np.float32) for t in engine.layout.gather(run.rows).values())]


def _apart(one: Engine, other: Engine) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(_answers(one), _answers(other), strict=True))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A language artifact of two LSTM layers."""
    return artifacts.language(tmp_path / "words.onnx", hidden=24)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A version folder that does not exist yet."""
    return tmp_path / "models" / "small" / "1"


def _exact_int8() -> bool:
    """Whether products of int8 are added up whole: x86 without VNNI saturates them at 16 bits on the way
    (onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "Data type selection")."""
    told = torch.cpu.get_capabilities()
    return told["architecture"] != "x86_64" or bool(told["avx512_vnni"] or told["avx_vnni"])


@pytest.mark.parametrize("cell", LSTMS)
def test_int8_keeps_sessions_bit_exact(tmp_path: Path, target: Path, cell: str) -> None:
    """Both layers run in int8, and still no row's bits depend on its neighbours or on where its sequence was cut."""
    source = artifacts.language(tmp_path / "words.onnx", hidden=24, cell=cell)
    result = _done(source, "--to", target)
    before, after = _engine(source), _engine(target / "model.onnx")
    operators = [node.op_type for node in onnx.load(target / "model.onnx").graph.node]
    assert operators.count("DynamicQuantizeLSTM") == 2
    assert after.bit_exact
    assert after.signature.batched
    assert after.signature.proof is not None
    assert (after.signature.proof.rows_independent, after.signature.proof.chunked) == (True, True)
    assert 0 < _apart(before, after) < (0.05 if _exact_int8() else 0.25)
    assert "in a batch of 64" in result.stdout
    assert (target / "model.onnx").stat().st_size < 0.6 * source.stat().st_size


def test_the_artifact_tells_what_it_was(source: Path, target: Path) -> None:
    """Task, vocabulary and past are kept; the new part names the fingerprint; what cannot be shown is not promised."""
    _done(source, "--to", target)
    before, after = _engine(source), _engine(target / "model.onnx")
    assert after.signature.vocabulary == before.signature.vocabulary
    assert after.signature.made["data"] == before.signature.made["data"]
    assert after.signature.made["quantised"]["from"] == before.fingerprint
    assert after.signature.made["quantised"]["operators"] == {"LSTM": 2}
    assert len(before.signature.recurrences) == 2
    assert after.signature.recurrences == ()
    assert after.signature.states == before.signature.states


@pytest.mark.parametrize("cell", LSTMS)
def test_pinning_changes_no_answer(tmp_path: Path, cell: str) -> None:
    """The further columns and units add nothing: in float32 the pinned graph is the same function."""
    source = artifacts.language(tmp_path / "words.onnx", vocabulary="".join(map(chr, range(97, 177))), cell=cell)
    before = _engine(source)
    pinned = pin(onnx.load(source))
    assert pinned.nodes == ("LSTM_Y_0", "LSTM_Y_1", "MatMul_product")
    wide = tmp_path / "wide.onnx"
    wide.write_bytes(attach(pinned.model, before.signature))
    assert _apart(before, _engine(wide)) < 1e-6


def test_a_state_out_of_bounds_does_not_touch_its_neighbours(source: Path, target: Path) -> None:
    """Whoever imports an h of 50 is rounded for it alone."""
    _done(source, "--to", target)
    engine, random = _engine(target / "model.onnx"), np.random.default_rng(0)
    loud = {s.input: np.full(s.row_shape, 50, np.float32) for s in engine.signature.states}
    chunks = [random_chunk(engine.signature, 7, random) for _ in range(4)]
    quiet = engine.run([engine.initial_row] * 4, chunks)
    beside = engine.run([engine.initial_row] * 3 + [engine.layout.pack_one(loud)], chunks)
    assert beside.rows[:3] == quiet.rows[:3]
    assert beside.rows[3] != quiet.rows[3]


def test_a_layer_whose_input_has_no_bounds_stays_as_it_is(tmp_path: Path, target: Path) -> None:
    """Measurements may be anything: of a forecast's layers all but the first are quantised."""
    source = artifacts.forecast(tmp_path / "wave.onnx", layers=3, hidden=24)
    _done(source, "--to", target)
    after = _engine(target / "model.onnx")
    assert after.bit_exact
    assert [r.name for r in after.signature.recurrences] == ["LSTM_Y_0"]
    result = _run(artifacts.forecast(tmp_path / "one.onnx", hidden=24), "--to", target)
    assert "bounds its input" in _sentence(result)


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_cells_without_an_int8_kernel(tmp_path: Path, target: Path, cell: str) -> None:
    """They are refused by name; int8-weights takes them, keeps float32 arithmetic, bits and gates."""
    source = artifacts.language(tmp_path / "words.onnx", hidden=40, cell=cell)
    sentence = _sentence(_run(source, "--to", target))
    assert f"no int8 kernel for {cell.upper()}" in sentence
    assert not target.parent.parent.exists()
    _done(source, "--to", target, "--type", "int8-weights")
    before, after = _engine(source), _engine(target / "model.onnx")
    assert after.bit_exact
    assert after.signature.recurrences == before.signature.recurrences
    assert 0 < _apart(before, after) < 0.05


def test_int8_weights_are_rounded_to_their_rows_scale(tmp_path: Path, target: Path) -> None:
    """Each weight is off by half a step at most, and biases are as they were."""
    source = artifacts.language(tmp_path / "words.onnx", hidden=130)
    _done(source, "--to", target, "--type", "int8-weights")
    before, after = constants_of(onnx.load(source)), constants_of(onnx.load(target / "model.onnx"))
    assert (after["B_1"] == before["B_1"]).all()
    scale = after["R_1_scale"]
    assert np.abs(after["R_1_int8"] * scale - before["R_1"]).max() <= scale.max() / 2 * 1.001
    assert after["R_1_int8"].dtype == np.int8


def test_float16_keeps_the_range_of_measurements(forecast_artifact: Path, target: Path) -> None:
    """A pressure of 101,300 Pa is beyond float16: it goes in and out as float32, only cells and states are halved."""
    result = _done(forecast_artifact, "--to", target, "--type", "float16")
    before, after = _engine(forecast_artifact), _engine(target / "model.onnx")
    assert "float16 is for CUDA" in result.stdout
    assert {s.dtype for s in after.signature.states} == {"float16"}
    assert after.layout.row_bytes * 2 == before.layout.row_bytes
    assert (after.signature.inputs, after.signature.outputs) == (before.signature.inputs, before.signature.outputs)
    scale = np.array(before.signature.scaling.scale) if before.signature.scaling else 1
    assert 0 < (np.abs(_answers(after)[0] - _answers(before)[0]) / scale).max() < 0.01


@pytest.fixture
def forecast_artifact(tmp_path: Path) -> Path:
    """A forecast whose measurements are far beyond the range of float16."""
    path = artifacts.forecast(tmp_path / "weather.onnx", ("pressure", "flow"), hidden=24)
    model, signature = onnx.load(path), load_engine(path, load_settings(provider="cpu")).signature
    mean, scale = np.array([101_300, 0.002], np.float32), np.array([850, 0.0004], np.float32)
    for tensor in model.graph.initializer:
        if tensor.name in ("mean", "scale"):
            tensor.CopyFrom(onnx.numpy_helper.from_array({"mean": mean, "scale": scale}[tensor.name], tensor.name))
    scaling = {"mean": mean.tolist(), "scale": scale.tolist()}
    document = signature.model_dump() | {"scaling": scaling}
    path.write_bytes(attach(model, type(signature).model_validate(document)))
    return path


def test_a_graph_without_work_for_float16_is_the_same() -> None:
    """Operators that stay float32 are not wrapped in casts."""
    node = onnx.helper.make_node("Exp", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]))
    assert [n.op_type for n in halve(model, {"MatMul"}, ()).graph.node] == ["Exp"]


@pytest.mark.parametrize("dynamo", [False, True])
def test_adopted_models_are_quantised(tmp_path: Path, target: Path, *, dynamo: bool) -> None:
    """Modules of others, by both exporters of torch: weights that their graphs put together, axes as they have them."""
    foreign = Foreign(
        build=lambda: _Tagger().eval(),
        inputs=lambda: {"tokens": torch.zeros(2, 5, dtype=torch.int64)},
        states=lambda: {"h": torch.zeros(2, 2, 24), "c": torch.zeros(2, 2, 24)},
        state_axes={"h": 1, "c": 1},
    )
    torch.manual_seed(0)
    file = export_file(foreign.build(), foreign, tmp_path / "tagger.onnx", dynamo=dynamo)
    adopted = adopt_file(file, tmp_path / "models" / "tagger" / "1", Wishes(), Console(quiet=True))
    _done(adopted, "--to", target)
    before, after = _engine(adopted), _engine(target / "model.onnx")
    assert after.signature.made["quantised"]["operators"]["LSTM"] == 2
    assert after.bit_exact
    assert 0 < _apart(before, after) < 0.1


class _Tagger(nn.Module):
    """Symbols to scores of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 16), nn.Linear(24, 7)
        self.lstm = nn.LSTM(16, 24, 2, batch_first=True)

    def forward(self, tokens: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(self.embedding(tokens), (h, c))
        return self.head(y), h, c


def test_too_large_an_error_is_refused_unless_forced(source: Path, target: Path) -> None:
    """The table is shown, nothing is written; --force writes."""
    result = _run(source, "--to", target, "--max-error", 0)
    assert "--max-error allows" in _sentence(result)
    assert "largest error of outputs" in result.stdout
    assert "0.0e+00 allowed" in result.stdout
    assert not target.parent.parent.exists()
    _done(source, "--to", target, "--max-error", 0, "--force")
    assert _engine(target / "model.onnx").bit_exact


def test_the_loss_on_data_decides(tmp_path: Path, target: Path) -> None:
    """Rows that the model foretells exactly: whatever int8 changes is a rise of the loss, and refused."""
    source = artifacts.forecast(tmp_path / "wave.onnx", ("level", "rate"), layers=3, hidden=24)
    engine = _engine(source)
    rows, state = [np.array([[0.3, -0.2]], np.float32)], engine.initial_row
    for _ in range(60):
        run = engine.run([state], [(rows[-1],)])
        (state,) = run.rows
        rows.append(run.outputs["prediction"][0])
    table = tmp_path / "rows.csv"
    lines = [",".join(repr(float(v)) for v in row[0]) for row in rows]
    table.write_text("\n".join(["level,rate", *lines]) + "\n")
    assert loss(engine, read_data(table, engine.signature)) < 1e-10
    result = _run(source, "--to", target, "--data", table)
    assert "+1.00% allowed" in result.stdout
    assert "stays as it is: nothing bounds its input" in result.stdout
    assert result.stdout.count("stays as it is") == 1
    assert "--max-loss-increase allows 1.00%" in _sentence(result)
    assert not target.parent.parent.exists()
    _done(source, "--to", target, "--data", table, "--force")
    losses = _engine(target / "model.onnx").signature.made["quantised"]["losses"]
    assert losses["after"] > losses["before"]


def test_the_loss_of_a_text_is_nats_per_symbol(source: Path, target: Path, tmp_path: Path) -> None:
    """It is measured with the state carried from chunk to chunk, and stands in the report and in the file."""
    engine, text = _engine(source), tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 120)
    streams = read_data(text, engine.signature)
    assert streams.shape == (16, 337)
    run = engine.run([engine.initial_row] * 16, [(stream[:-1],) for stream in streams])
    whole = -np.mean([run.outputs["logprobs"][i, t, s] for i, r in enumerate(streams) for t, s in enumerate(r[1:])])
    assert loss(engine, streams) == pytest.approx(whole, rel=1e-6)
    result = _done(source, "--to", target, "--data", text)
    assert "loss on the data" in result.stdout
    measured = _engine(target / "model.onnx").signature.made["quantised"]["losses"]
    assert measured["before"] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"a quick \xc2\xa3 of text" * 50, ExportError, "'£' at character 8, which is not in the vocabulary"),
        (b"", ExportError, "has 0 characters"),
        (b"abc\xff" * 50, DataError, "is not UTF-8"),
        (None, DataError, "cannot read"),
    ],
    ids=["symbol", "empty", "bytes", "missing"],
)
def test_wrong_texts(
    source: Path, target: Path, tmp_path: Path, content: bytes | None, kind: type[Exception], words: str
) -> None:
    """What is wrong with the data is one sentence, before anything is computed."""
    data = tmp_path / "data.txt"
    if content is not None:
        data.write_bytes(content)
    assert words in _sentence(_run(source, "--to", target, "--data", data), kind)


def test_wrong_tables(tmp_path: Path, target: Path) -> None:
    """A table without the model's features, with one row, or for a model of which no loss is known."""
    source, data = artifacts.forecast(tmp_path / "wave.onnx", ("u", "v"), layers=2, hidden=24), tmp_path / "data.csv"
    data.write_text("u,w\n1,2\n3,4\n")
    assert "has no column 'v'" in _sentence(_run(source, "--to", target, "--data", data), DataError)
    data.write_text("v,u\n1,2\n")
    assert "at least 2 are needed" in _sentence(_run(source, "--to", target, "--data", data))
    adder = artifacts.running_sum(tmp_path / "sum.onnx")
    assert "of a generic one no loss is known" in _sentence(_run(adder, "--to", target, "--data", data))


@pytest.mark.parametrize("kind", ["int8", "int8-weights", "float16"])
def test_a_model_without_weights_gains_nothing(tmp_path: Path, target: Path, kind: str) -> None:
    """It is refused in one sentence."""
    adder = artifacts.running_sum(tmp_path / "sum.onnx")
    assert f"{kind} does not pay" in _sentence(_run(adder, "--to", target, "--type", kind))


@pytest.mark.parametrize(
    ("kind", "weight"), [("int8", np.inf), ("int8-weights", np.nan), ("int8-weights", np.inf), ("float16", 1e5)]
)
def test_a_weight_that_fewer_bits_cannot_hold_is_told(source: Path, target: Path, kind: str, weight: float) -> None:
    """In one sentence, and not by a warning of NumPy and an artifact with another weight in its place."""
    model = onnx.load(source)
    tensor = next(t for t in model.graph.initializer if t.name == "R_0")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[5] = weight
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, source)
    assert "a weight is not finite, or lies beyond" in _sentence(_run(source, "--to", target, "--type", kind))


def test_broken_inputs(source: Path, target: Path, tmp_path: Path) -> None:
    """No artifact, quantised before, no version folder, a place that cannot be written."""
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    assert "is not an ONNX model" in _sentence(_run(text, "--to", target), ArtifactError)
    assert "is not a version folder" in _sentence(_run(source, "--to", tmp_path))
    _done(source, "--to", target)
    again = _run(target / "model.onnx", "--to", tmp_path / "models" / "again" / "1")
    assert "is quantised already (int8)" in _sentence(again)
    assert "another artifact already" in _sentence(_run(source, "--to", target, "--type", "float16"))
    assert "cannot be written" in _sentence(_run(source, "--to", text / "small" / "1"))


def test_the_tools_leave_nothing_behind(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No temporary files, no advice on standard error, logging as it was; and the same file again the next time."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = list(logging.getLogger().handlers), logging.root.manager.disable
    _done(source, "--to", target)
    content = (target / "model.onnx").read_bytes()
    _done(source, "--to", target)  # another content would be refused
    assert (target / "model.onnx").read_bytes() == content
    assert (list(logging.getLogger().handlers), logging.root.manager.disable) == before
    assert list(folder.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("place", ["temporary", "models"])
def test_sigterm_leaves_nothing_behind(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It ends the command like an error, while the file is a draft and while it is looked at in its place."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = signal.getsignal(signal.SIGTERM)

    def ended(engine: Engine) -> None:
        if list((tmp_path / place).glob("**/*.*")):
            os.kill(os.getpid(), signal.SIGTERM)
        probe(engine)

    monkeypatch.setattr(quantising, "probe", ended)
    assert _run(source, "--to", target).exit_code == 128 + signal.SIGTERM
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "models").exists()
    assert signal.getsignal(signal.SIGTERM) is before
