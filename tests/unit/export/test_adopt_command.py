"""`lstm-serve adopt` as a user meets it: broken files and wrong options each give one sentence and exit status 2."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import lstm_serve
from export.adoption import adopting
from export.errors import ExportError
from service.engine.runtime import load_engine
from service.settings import load_settings
from tests.support import artifacts
from tests.support.adopted import lstm, model, running_sum, written
from tests.support.adopting import adopt, sentence

Break = Callable[[Path], object]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that can be adopted."""
    return written(tmp_path / "in" / "sum.onnx", running_sum())


def test_a_foreign_file_becomes_an_artifact(source: Path, tmp_path: Path) -> None:
    """Tables of what was found and shown, and a file that the service loads; a second time nothing changes."""
    done = adopt(source)
    assert done.exception is None
    for word in ("state", "hn", "rows do not influence each other", "CPUExecutionProvider", "fingerprint"):
        assert word in done.stdout
    path = tmp_path / "models" / "sum" / "1" / "model.onnx"
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert load_engine(path, load_settings(provider="cpu")).signature.proof is not None
    assert adopt(source).exception is None
    written(source, running_sum(op="steps = Neg(x)"))
    again = adopt(source)
    assert isinstance(again.exception, ExportError)
    assert "--force" in str(again.exception)
    assert adopt(source, "--force").exception is None


def test_the_whole_command_line(tmp_path: Path) -> None:
    """Through the process: one sentence on standard error, exit status 2, no traceback."""
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    command = [sys.executable, lstm_serve.__file__, "adopt", str(broken), "--to", str(tmp_path / "m" / "1")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"lstm-serve: {broken} is not an ONNX model, or is cut off\n"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**31 + 1)


def _typed(kind: int) -> Break:
    def change(path: Path) -> None:
        made = onnx.load(path)
        made.graph.input[0].type.tensor_type.elem_type = kind
        onnx.save(made, path)

    return change


def _unknown_operator(path: Path) -> None:
    made = onnx.load(path)
    made.graph.node[0].op_type = "Wobble"
    onnx.save(made, path)


def _optional(path: Path) -> None:
    made = onnx.load(path)
    made.graph.input.append(
        helper.make_value_info("o", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1])))
    )
    onnx.save(made, path)


BROKEN: list[tuple[str, Break, str]] = [
    ("empty", lambda path: path.write_bytes(b""), "not an ONNX model"),
    ("text", lambda path: path.write_text("no model at all"), "not an ONNX model"),
    ("cut off", _cut, "is cut off"),
    ("damaged", lambda path: path.write_bytes(path.read_bytes().replace(b"steps", b"st\xffps")), "is not UTF-8"),
    ("missing", lambda path: path.unlink(), "cannot be read"),
    ("folder", lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ("pipe", lambda path: (path.unlink(), os.mkfifo(path)), "cannot be read: it is no file"),
    ("too large", _sparse, "is too large: 2.1 GB"),
    ("bfloat16", _typed(TensorProto.BFLOAT16), "input 'x' is of type bfloat16, expected one of float16, float32"),
    ("string", _typed(TensorProto.STRING), "input 'x' is of type string"),
    ("complex", _typed(TensorProto.COMPLEX64), "input 'x' is of type complex64"),
    ("no type", _typed(99), "input 'x' is of type 99"),
    ("sequence", _optional, "input 'o' is not a tensor"),
    ("unknown operator", _unknown_operator, "Wobble"),
    ("an artifact", lambda path: artifacts.running_sum(path), "carries a signature of lstm-serve already"),
    (
        "no states",
        lambda path: written(
            path,
            model("m (float[b,2] x) => (float[b,3] y) {y = Concat<axis = 1>(x, z)}", z=np.ones((1, 1), np.float32)),
        ),
        "no states found",
    ),
    (
        "ambiguous",
        lambda path: written(path, lstm(["x", "a", "b"], ["y", "u", "v"])),
        "ambiguous: the state 'a' float32 [1, n, 4] may come back as u, v; give --state a:u",
    ),
    (
        "does not run",
        lambda path: written(path, running_sum(op="gone = Gather<axis = 2>(x, end)  steps = Identity(gone)")),
        "the model does not run with",
    ),
]


@pytest.mark.parametrize(("change", "said"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_files_are_refused(source: Path, tmp_path: Path, change: Break, said: str) -> None:
    """Each in one sentence, and nothing is left behind."""
    change(source)
    assert said in sentence(adopt(source), tmp_path)


OPTIONS: list[tuple[list[str], str]] = [
    (["--state", "h"], "--state h is not of the form in:out"),
    (["--state", "h:hn", "--state", "h:y"], "names 'h' twice"),
    (["--state", "z:hn"], "input 'z', which the graph does not have (it has x, h)"),
    (["--state", "h:z"], "output 'z', which the graph does not have"),
    (["--state", "x:hn"], "--state x:hn cannot be"),
    (["--constant", "z=1"], "--constant names 'z', which the graph does not have"),
    (["--constant", "h"], "--constant h is not of the form name=value"),
    (["--constant", "h=one"], "neither a number nor a file"),
    (["--constant", "h=none.npy"], "none.npy cannot be read"),
    (["--initial", "z=zeros"], "--initial names 'z'"),
    (["--initial", "h=none.npy"], "none.npy cannot be read"),
    (["--batch-axis", "z=0"], "--batch-axis names 'z'"),
    (["--batch-axis", "x=7"], "--batch-axis 7 is none of the 3 axes"),
    (["--batch-axis", "first"], "--batch-axis first is not a number"),
    (["--time-axis", "5"], "--time-axis 5 is none of the 3 axes"),
    (["--batch-axis", "0", "--batch-axis", "1"], "--batch-axis is given twice for all sequences"),
    (["--time-axis", "x=0", "--time-axis", "x=1"], "--time-axis is given twice for 'x'"),
    (["--time-axis", "h=1"], "--time-axis names 'h', which is a state"),
    (["--initial", "x=zeros"], "--initial names 'x', which is no state (the states are h)"),
    (["--constant", "h=1", "--state", "h:hn"], "'h' is given as a state, and as a constant or as lengths"),
    (["--lengths", "z"], "--lengths names 'z'"),
    (["--lengths", "x"], "--lengths x must be int32 or int64"),
    (["--shape", "z=1"], "--shape names 'z'"),
    (["--shape", "x=a"], "--shape x=a is not of the form"),
    (["--shape", "x=?,?,2"], "--shape x does not fit the graph's own shape [b, t, 1]"),
    (["--to", "model"], "is not a version folder"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS, ids=[" ".join(o) for o, _ in OPTIONS])
def test_wrong_options_are_refused(source: Path, tmp_path: Path, options: list[str], said: str) -> None:
    """The option is named, with what was expected."""
    assert said in sentence(adopt(source, *options), tmp_path)


def test_a_file_of_numpy_runs_nothing(source: Path, tmp_path: Path) -> None:
    """An array of Python objects is refused, as is an archive."""
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + head.ljust(117) + b"\n")
    for name in ("objects", "text", "huge"):
        said = sentence(adopt(source, "--initial", f"h={tmp_path / name}.npy"), tmp_path)
        assert "is not an array of numbers" in said


def test_a_pipe_is_not_waited_for(source: Path, tmp_path: Path) -> None:
    """Nobody may ever write into it."""
    os.mkfifo(tmp_path / "pipe.npy")
    said = sentence(adopt(source, "--initial", f"h={tmp_path / 'pipe.npy'}"), tmp_path)
    assert said.endswith("pipe.npy cannot be read: it is no file")


def test_whole_numbers_stay_as_they_are(tmp_path: Path) -> None:
    """A sampling rate of 16000.7 is none."""
    path = written(
        tmp_path / "in" / "sum.onnx",
        model(
            "m (float[b,2] x, float[b,2] h, int64 sr) => (float[b,2] y, float[b,2] hn)"
            " {f = Cast<to = 1>(sr) y = Div(x, f) hn = Add(h, x)}"
        ),
    )
    assert "--constant sr cannot be written as int64" in sentence(adopt(path, "--constant", "sr=16000.7"), tmp_path)
    assert adopt(path, "--constant", "sr=16000").exception is None


def test_names_as_exporters_make_them(tmp_path: Path) -> None:
    """Names with double colons can be given, and no part of them becomes a picture."""
    path = written(
        tmp_path / "in" / "lstm.onnx", lstm(["onnx::LSTM_0", "onnx::LSTM_1", "onnx::LSTM_2"], ["10", "11", "12"])
    )
    assert "ambiguous" in sentence(adopt(path), tmp_path)
    assert adopt(path, "--state", "onnx::LSTM_1:11", "--state", "onnx::LSTM_2:12").exception is None
    command = [sys.executable, lstm_serve.__file__, "adopt", str(path), "--to", "m/1", "--state", "a:b:c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "lstm-serve: --state a:b:c is not of the form in:out\n"


def test_a_folder_in_the_place_of_the_file_is_told(source: Path, tmp_path: Path) -> None:
    """As is a name that no file system takes."""
    (tmp_path / "m" / "1" / "model.onnx").mkdir(parents=True)
    for to in (tmp_path / "m" / "1", tmp_path / ("m" * 300) / "1"):
        assert "cannot be written" in sentence(adopt(source, "--to", str(to)), tmp_path)


def test_sigterm_leaves_nothing_behind(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the command like an error, in the middle of the proof."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = signal.getsignal(signal.SIGTERM)

    def ended(*_: object) -> None:
        assert list(folder.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(adopting, "prove", ended)
    assert adopt(source).exit_code == 128 + signal.SIGTERM
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "models").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_values_come_from_files(source: Path, tmp_path: Path) -> None:
    """A first state is read, and every session begins with it."""
    np.save(tmp_path / "first.npy", np.array([5.0]))
    assert adopt(source, "--initial", f"h={tmp_path / 'first.npy'}", "--state", "h:hn").exception is None
    engine = load_engine(tmp_path / "models" / "sum" / "1" / "model.onnx", load_settings(provider="cpu"))
    assert engine.layout.unpack_one(engine.initial_row)["h"].tolist() == [5.0]


def test_cuda_that_is_not_there_is_told(source: Path) -> None:
    """The proof runs where it was asked to, or not at all."""
    result = adopt(source, "--provider", "cuda")
    assert result.exit_code != 0
    assert "cuda" in str(result.exception)
