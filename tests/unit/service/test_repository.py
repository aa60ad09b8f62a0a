"""The model repository: what can be served is served, what cannot is told in one sentence each."""

import shutil
from pathlib import Path

import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from export.signature import attach
from service.artifact import Signature, StateSpec, TensorSpec
from service.engine.repository import load_repository
from service.errors import ArtifactError
from service.models import Models
from service.settings import load_settings
from service.state import Record
from tests.support import artifacts
from tests.support.brain import Brain, Serve
from tests.support.records import record

CPU = load_settings(provider="cpu")


def test_what_cannot_be_served_is_left_out_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broken, a foreign and a misplaced artifact do not hold up the good one; the log and the caller learn why."""
    artifacts.repository(tmp_path, good=artifacts.running_sum, misplaced=artifacts.running_sum)
    (tmp_path / "misplaced" / "1").rename(tmp_path / "misplaced" / "latest")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"\0\1\2")
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "other" / "1" / "readme.txt").write_text("no artifact here")
    (tmp_path / "model.onnx").write_text("in the wrong place")
    loaded, problems = load_repository(tmp_path, CPU)
    assert [(m.name, m.version) for m in loaded] == [("good", "1")]
    assert len(problems) == 2
    assert "broken" in problems[0]
    assert "latest: a version folder is a whole number" in problems[1]
    assert all(problem in caplog.text for problem in problems)


def test_models_are_probed_when_they_are_loaded(tmp_path: Path) -> None:
    """What is served has been found exact, or not, on this machine."""
    artifacts.repository(tmp_path, wide=lambda path: artifacts.language(path, hidden=64))
    (model,), problems = load_repository(tmp_path, CPU)
    assert model.engine.bit_exact
    assert problems == []


def growing(path: Path) -> Path:
    """An artifact that loads and does not hold its signature: its state doubles at each step, unseen in the graph."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Concat", ["h", "h"], ["h2"], axis=1)]
    return _written(path, nodes)


def failing(path: Path) -> Path:
    """An artifact that loads and cannot be run: the shapes of its product do not fit."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("MatMul", ["h", "h"], ["h2"])]
    return _written(path, nodes)


def _written(path: Path, nodes: list[NodeProto]) -> Path:
    def value(name: str, *shape: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs, outputs = [value("x", "b", "t"), value("h", "b", "n")], [value("y", "b", "t"), value("h2", "b", "m")]
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = TensorSpec(name="x", dtype="float32", shape=(None, None))
    state = StateSpec(input="h", output="h2", dtype="float32", shape=(None, 3), batch_axis=0)
    y = x.model_copy(update={"name": "y"})
    path.parent.mkdir(parents=True)
    path.write_bytes(attach(model, Signature(task="generic", inputs=(x,), outputs=(y,), states=(state,))))
    return path


@pytest.mark.parametrize(("bad", "why"), [(growing, "'h2' has shape (2, 6)"), (failing, "does not run")])
def test_an_artifact_that_does_not_run_as_it_says_is_left_out(tmp_path: Path, bad: artifacts.Writer, why: str) -> None:
    """What fails its trial at load would fail every request: it is named, and the others are served."""
    loaded, problems = load_repository(artifacts.repository(tmp_path, bad=bad, good=artifacts.running_sum), CPU)
    assert [m.name for m in loaded] == ["good"]
    assert len(problems) == 1
    assert "bad/1/model.onnx: " in problems[0]
    assert why in problems[0]


@pytest.mark.parametrize("content", ["missing", "empty", "broken"])
def test_a_repository_with_nothing_to_serve_stops_the_start(tmp_path: Path, content: str) -> None:
    """One sentence says what was expected, or what is wrong with what was found."""
    folder = tmp_path / "models"
    if content != "missing":
        folder.mkdir()
    if content == "broken":
        (folder / "a" / "1").mkdir(parents=True)
        (folder / "a" / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError) as refused:
        load_repository(folder, CPU)
    assert ("model.onnx" if content == "broken" else "NAME/VERSION/model.onnx") in refused.value.detail


@pytest.fixture
async def versions(serve: Serve, tmp_path: Path) -> Brain:
    """A brain with three versions of one model; the second and the tenth are told apart by their type."""
    folder = artifacts.repository(tmp_path, adder=artifacts.running_sum, other=artifacts.poison)
    shutil.copytree(folder / "adder" / "1", folder / "adder" / "2")
    artifacts.running_sum(folder / "adder" / "10" / "model.onnx", "float64")
    return serve(load_repository(folder, CPU)[0])


async def test_the_highest_version_serves_unless_another_is_named(versions: Brain) -> None:
    """Versions are numbers: 10 comes after 2."""
    found = versions.sessions.models
    assert [found.find("adder").version, found.find("adder", "1").version] == ["10", "1"]
    assert found.find("other").version == "1"


async def test_a_session_stays_with_its_fingerprint(versions: Brain) -> None:
    """A record finds the model that it began with, not the newest; without it, none."""
    found: Models = versions.sessions.models
    session = await versions.sessions.create("adder", "1", None, "")
    model = found.of(session)
    assert model is not None
    assert model.fingerprint == session.identity.fingerprint != found.find("adder").fingerprint
    stranger: Record = record()
    assert found.of(stranger) is None
