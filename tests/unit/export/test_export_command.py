"""`lstm-serve export` and `lstm-serve verify` as a user meets them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from export import freezing
from export.cells import CELLS, Cell
from export.command import app
from export.errors import ExportError
from model.errors import CheckpointError
from model.networks import Network
from service.errors import ArtifactError
from tests.support import artifacts

Save = Callable[[Network], Path]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _sentence(result: Result, kind: type[Exception]) -> str:
    """The one sentence of a command that failed."""
    assert result.exit_code != 0
    assert isinstance(result.exception, kind)
    sentence = str(result.exception)
    assert sentence
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A version folder that does not exist yet."""
    return tmp_path / "models" / "tiny" / "1"


def test_export_writes_what_verify_accepts(network: Network, save: Save, target: Path) -> None:
    """A checkpoint becomes an artifact with its table; verify agrees, with the checkpoint and without."""
    folder = save(network)
    exported = _run("export", folder, "--to", target)
    assert exported.exception is None
    assert "vs PyTorch" in exported.stdout
    assert "fingerprint" in exported.stdout
    again = _run("verify", target / "model.onnx", "--checkpoint", folder)
    assert "vs PyTorch" in again.stdout
    alone = _run("verify", target / "model.onnx")
    assert "vs PyTorch" not in alone.stdout
    assert alone.stdout.rstrip().endswith("passes")


def test_a_wrong_gate_order_is_never_written(
    language: Network, save: Save, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter that mistakes ONNX's gate order for PyTorch's is stopped by the gate, table shown, nothing kept."""
    monkeypatch.setitem(CELLS, "lstm", Cell("LSTM", gates=(0, 1, 2, 3), states=("h", "c")))
    result = _run("export", save(language), "--to", target)
    assert "differ from PyTorch" in _sentence(result, ExportError)
    assert "same" in result.stdout
    assert not target.parent.parent.exists()


def test_sigterm_leaves_no_half_artifact(
    language: Network, save: Save, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the command like an error, while the gate looks at the file beside its place."""

    def ended(*_: object) -> None:
        assert list(target.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(freezing, "run_gate", ended)
    assert _run("export", save(language), "--to", target).exit_code == 128 + signal.SIGTERM
    assert not target.parent.parent.exists()


def test_export_does_not_replace_another_artifact(language: Network, save: Save, target: Path) -> None:
    """A version that exists is kept unless --force says otherwise."""
    folder = save(language)
    artifacts.running_sum(target / "model.onnx")
    assert "--force" in _sentence(_run("export", folder, "--to", target), ExportError)
    assert _run("export", folder, "--to", target, "--force").exception is None
    assert _run("verify", target / "model.onnx", "--checkpoint", folder).exception is None


def test_export_refuses_what_is_no_checkpoint(tmp_path: Path, target: Path) -> None:
    """A folder without a checkpoint is named."""
    assert "is not a checkpoint" in _sentence(_run("export", tmp_path, "--to", target), CheckpointError)


def test_export_refuses_what_is_no_version_folder(language: Network, save: Save, tmp_path: Path) -> None:
    """A target that the service would not find is refused with an example."""
    result = _run("export", save(language), "--to", tmp_path / "models")
    assert "model_repository/language/1" in _sentence(result, ExportError)


def test_verify_finds_a_checkpoint_with_other_weights(language: Network, save: Save, target: Path) -> None:
    """An artifact of the same form but other weights does not pass as this checkpoint's."""
    _run("export", save(language), "--to", target)
    torch.nn.init.normal_(language.head.weight)
    result = _run("verify", target / "model.onnx", "--checkpoint", save(language))
    assert "its outputs differ from PyTorch" in _sentence(result, ExportError)


def test_verify_finds_a_checkpoint_of_another_form(forecast: Network, save: Save, tmp_path: Path) -> None:
    """A checkpoint that the artifact cannot come from is refused by the first thing that differs."""
    path = artifacts.language(tmp_path / "model.onnx")
    result = _run("verify", path, "--checkpoint", save(forecast))
    assert _sentence(result, ExportError).endswith("they differ in: task")


@pytest.mark.parametrize("content", [b"", b"this is no ONNX file\n" * 50], ids=["empty", "text"])
def test_verify_refuses_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    """A broken file is one sentence with its name."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert str(path) in _sentence(_run("verify", path), ArtifactError)


def test_verify_refuses_half_a_file(tmp_path: Path) -> None:
    """A file that was cut off is told by name, not run."""
    path = artifacts.language(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:4000])
    assert str(path) in _sentence(_run("verify", path), ArtifactError)


def test_verify_refuses_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    assert "cannot be read" in _sentence(_run("verify", tmp_path / "model.onnx"), ArtifactError)


def test_verify_refuses_a_model_without_a_signature(tmp_path: Path) -> None:
    """An ONNX file of another tool is told what it lacks."""
    path = artifacts.running_sum(tmp_path / "model.onnx")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    assert "carries no lstm_serve.signature" in _sentence(_run("verify", path), ArtifactError)


def test_verify_refuses_a_signature_that_does_not_fit_the_graph(tmp_path: Path) -> None:
    """A signature that names what the graph lacks is refused by the name."""
    path = artifacts.running_sum(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"y"', '"z"')
    onnx.save(model, path)
    assert "'z'" in _sentence(_run("verify", path), ArtifactError)


def test_verify_refuses_a_graph_that_fails_when_it_runs(tmp_path: Path) -> None:
    """A graph that loads but cannot run is one sentence, not a stack of calls."""
    path = artifacts.running_sum(tmp_path / "model.onnx")
    model = onnx.load(path)
    (answer,) = [node for node in model.graph.node if list(node.output) == ["y"]]
    answer.CopyFrom(onnx.helper.make_node("Add", ["x", "h"], ["y"]))  # [batch, time, 1] and [batch, 1]: seldom fit
    onnx.save(model, path)
    assert "does not run" in _sentence(_run("verify", path), ArtifactError)


def _python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_help_needs_nothing_heavy() -> None:
    """Importing the commands brings in neither torch nor onnx nor ONNX Runtime."""
    code = (
        "import sys, export.command; print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    assert _python(code).stdout.strip() == "[]"


def test_verify_runs_on_a_bare_server(tmp_path: Path) -> None:
    """Without a checkpoint, an artifact is verified where neither torch nor onnx can be imported."""
    path = artifacts.language(tmp_path / "model.onnx")
    code = (
        "import sys; sys.modules.update(torch=None, onnx=None, safetensors=None)\n"
        f"from export.command import app; app(['verify', {str(path)!r}])"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert "same" in done.stdout
