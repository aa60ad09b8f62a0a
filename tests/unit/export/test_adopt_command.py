"""`lstm-serve adopt` as a user meets it: broken files and wrong options each give one sentence and exit status 2."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper
from typer.testing import CliRunner

import lstm_serve
from export.command import app
from export.errors import ExportError
from service.engine.runtime import load_engine
from service.settings import load_settings
from tests.support import artifacts
from tests.support.adopted import lstm, model, running_sum, written

Break = Callable[[Path], object]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that can be adopted."""
    return written(tmp_path / "in" / "sum.onnx", running_sum())


def adopt(path: Path, *options: object) -> Result:
    """Run the command; the artifact is to stand beside the file's folder."""
    to = path.parent.parent / "models" / "sum" / "1"
    return CliRunner().invoke(app, ["adopt", str(path), "--to", str(to), *map(str, options)])


def sentence(result: Result, folder: Path) -> str:
    """The one sentence of a command that failed and left nothing."""
    assert isinstance(result.exception, ExportError), result.exception
    assert "\n" not in str(result.exception)
    assert not (folder / "models").exists()
    return str(result.exception)


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
    for name in ("objects", "text"):
        said = sentence(adopt(source, "--initial", f"h={tmp_path / name}.npy"), tmp_path)
        assert "is not an array of numbers" in said


def test_values_come_from_files(source: Path, tmp_path: Path) -> None:
    """A first state is read, and every session begins with it."""
    np.save(tmp_path / "first.npy", np.array([5.0]))
    assert adopt(source, "--initial", f"h={tmp_path / 'first.npy'}", "--state", "h:hn").exception is None
    engine = load_engine(tmp_path / "models" / "sum" / "1" / "model.onnx", load_settings(provider="cpu"))
    assert engine.layout.unpack_one(engine.initial_row)["h"].tolist() == [5.0]


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """A model whose weights lie in a file beside it."""
    path = tmp_path / "in" / "lstm.onnx"
    path.parent.mkdir()
    made = lstm(["x", "h0", "c0"], ["y", "hn", "cn"])
    onnx.save(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").exists()
    return path


def test_external_data_moves_into_the_artifact(parted: Path, tmp_path: Path) -> None:
    """One file is left, which needs no other."""
    assert adopt(parted).exception is None
    parted.with_name("weights.bin").unlink()
    path = tmp_path / "models" / "sum" / "1" / "model.onnx"
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert load_engine(path, load_settings(provider="cpu")).signature.states[0].input == "h0"


def _entry(key: str, value: str) -> Break:
    def change(path: Path) -> None:
        made = onnx.load(path, load_external_data=False)
        entries = {e.key: e.value for e in made.graph.initializer[0].external_data} | {key: value}
        del made.graph.initializer[0].external_data[:]
        for name, said in entries.items():
            made.graph.initializer[0].external_data.add(key=name, value=said)
        path.write_bytes(made.SerializeToString())

    return change


def _linked(path: Path) -> None:
    weights = path.with_name("weights.bin")
    outside = path.parent.parent / "outside.bin"
    weights.rename(outside)
    weights.symlink_to(outside)


def _huge(path: Path) -> None:
    with path.with_name("weights.bin").open("r+b") as file:
        file.truncate(2**33)
    made = onnx.load(path, load_external_data=False)
    made.graph.initializer[0].dims[:] = [2**30]
    del made.graph.initializer[0].external_data[:]
    made.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    path.write_bytes(made.SerializeToString())


PARTED: list[tuple[str, Break, str]] = [
    ("absolute", _entry("location", "/etc/hostname"), "points outside the folder"),
    ("above", _entry("location", "../outside.bin"), "points outside the folder"),
    ("no place", _entry("location", ""), "points outside the folder"),
    ("link", _linked, "points outside the folder"),
    ("missing", lambda path: path.with_name("weights.bin").unlink(), "'weights.bin' is no file beside"),
    ("no file", _entry("location", "."), "is no file beside"),
    ("offset", _entry("offset", "99999"), "lies beyond the end of 'weights.bin'"),
    ("negative", _entry("offset", "-4"), "an offset or length that is no number: '-4'"),
    ("length", _entry("length", "7"), "a length of 7 bytes where its shape needs"),
    ("short", lambda path: path.with_name("weights.bin").write_bytes(b"1234"), "lies beyond the end"),
    ("too large", _huge, "is too large: 4.3 GB"),
]


@pytest.mark.parametrize(("change", "said"), [p[1:] for p in PARTED], ids=[p[0] for p in PARTED])
def test_external_data_that_lies_is_refused(parted: Path, tmp_path: Path, change: Break, said: str) -> None:
    """Nothing outside the file's own folder is read, and nothing beyond the end of a file."""
    change(parted)
    assert said in sentence(adopt(parted), tmp_path)


def test_cuda_that_is_not_there_is_told(source: Path) -> None:
    """The proof runs where it was asked to, or not at all."""
    result = adopt(source, "--provider", "cuda")
    assert result.exit_code != 0
    assert "cuda" in str(result.exception)
