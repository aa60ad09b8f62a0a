"""The model repository: what can be served is served, what cannot is told in one sentence each."""

import shutil
from itertools import count
from pathlib import Path

import pytest

from service.engine import repository
from service.engine.repository import load_repository
from service.errors import ArtifactError, SettingsError
from service.models import Models
from service.settings import load_settings
from service.state import Record
from tests.support import artifacts
from tests.support.brain import Brain, Serve
from tests.support.foreign import failing, growing
from tests.support.records import record

CPU = load_settings(provider="cpu")


def test_what_cannot_be_served_is_left_out_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broken and two misplaced artifacts do not hold up the good one; the log and the caller learn why."""
    artifacts.repository(tmp_path, good=artifacts.running_sum, misplaced=artifacts.running_sum)
    (tmp_path / "misplaced" / "1").rename(tmp_path / "misplaced" / "latest")
    shutil.copytree(tmp_path / "good" / "1", tmp_path / "misplaced" / "01")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"\0\1\2")
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "other" / "1" / "readme.txt").write_text("no artifact here")
    (tmp_path / "model.onnx").write_text("in the wrong place")
    loaded, problems = load_repository(tmp_path, CPU)
    assert [(m.name, m.version) for m in loaded] == [("good", "1")]
    assert len(problems) == 3
    assert "broken" in problems[0]
    assert "01: a version folder is a whole number" in problems[1]
    assert "latest: a version folder is a whole number" in problems[2]
    assert all(problem in caplog.text for problem in problems)


def test_models_are_probed_when_they_are_loaded(tmp_path: Path) -> None:
    """What is served has been found exact, or not, on this machine."""
    artifacts.repository(tmp_path, wide=lambda path: artifacts.language(path, hidden=64))
    (model,), problems = load_repository(tmp_path, CPU)
    assert model.engine.bit_exact
    assert problems == []


@pytest.mark.parametrize(("bad", "why"), [(growing, "'h2' has shape (2, 6)"), (failing, "does not run")])
def test_an_artifact_that_does_not_run_as_it_says_is_left_out(tmp_path: Path, bad: artifacts.Writer, why: str) -> None:
    """What fails its trial at load would fail every request: it is named, and the others are served."""
    loaded, problems = load_repository(artifacts.repository(tmp_path, bad=bad, good=artifacts.running_sum), CPU)
    assert [m.name for m in loaded] == ["good"]
    assert len(problems) == 1
    assert "bad/1/model.onnx: " in problems[0]
    assert why in problems[0]


@pytest.mark.parametrize("step", ["load_engine", "probe"])
def test_whatever_an_artifact_raises_is_its_own_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """A fault that nobody thought of leaves out its artifact, with the traceback in the log; the others are served."""
    artifacts.repository(tmp_path, bad=artifacts.running_sum, good=artifacts.running_sum)
    real, calls = getattr(repository, step), count()

    def odd(*arguments: object) -> object:
        if next(calls) == 0:
            raise OverflowError("int too big\nto convert")
        return real(*arguments)

    monkeypatch.setattr(repository, step, odd)
    loaded, problems = load_repository(tmp_path, CPU)
    assert [m.name for m in loaded] == ["good"]
    assert problems == [f"{tmp_path}/bad/1/model.onnx cannot be loaded: OverflowError: int too big"]
    assert "Traceback" in caplog.text


def test_a_setting_that_cannot_be_met_is_no_artifacts_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA was asked for and cannot be had the start stops, instead of leaving out one model after the other."""

    def refuse(*_: object) -> object:
        raise SettingsError("provider=cuda cannot be used", field="provider")

    monkeypatch.setattr(repository, "load_engine", refuse)
    with pytest.raises(SettingsError):
        load_repository(artifacts.repository(tmp_path, good=artifacts.running_sum), CPU)


def test_a_link_to_nowhere_and_a_folder_are_named(tmp_path: Path) -> None:
    """What should be an artifact and is none is not passed over: an older version would be served without a word."""
    artifacts.repository(tmp_path, good=artifacts.running_sum)
    (tmp_path / "good" / "2").mkdir()
    (tmp_path / "good" / "2" / "model.onnx").symlink_to(tmp_path / "gone.onnx")
    (tmp_path / "good" / "3" / "model.onnx").mkdir(parents=True)
    loaded, problems = load_repository(tmp_path, CPU)
    assert [m.version for m in loaded] == ["1"]
    assert len(problems) == 2
    assert "good/2/model.onnx cannot be read: No such file" in problems[0]
    assert "good/3/model.onnx cannot be read: Is a directory" in problems[1]


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
    """A brain with three versions of one model: two that are one and the same artifact, and the tenth, another."""
    folder = artifacts.repository(tmp_path, adder=artifacts.running_sum, other=artifacts.poison)
    shutil.copytree(folder / "adder" / "1", folder / "adder" / "2")
    artifacts.running_sum(folder / "adder" / "10" / "model.onnx", "float64")
    return serve(load_repository(folder, CPU)[0])


async def test_the_highest_version_serves_unless_another_is_named(versions: Brain) -> None:
    """Versions are numbers: 10 comes after 2."""
    found = versions.sessions.models
    assert [found.find("adder").version, found.find("adder", "1").version] == ["10", "1"]
    assert found.find("other").version == "1"


@pytest.mark.parametrize("version", ["1", "2"])
async def test_a_session_stays_with_the_name_that_it_began_with(versions: Brain, version: str) -> None:
    """Where one artifact stands in the repository twice, the record decides; the other one serves in its absence."""
    session = await versions.sessions.create("adder", version, None, "")
    model = versions.sessions.models.of(session)
    assert model is not None
    assert model.version == version
    left = Models([m for m in versions.sessions.models.all if m.version != version])
    other = left.of(session)
    assert other is not None
    assert other.fingerprint == model.fingerprint


async def test_a_session_stays_with_its_fingerprint(versions: Brain) -> None:
    """A record finds the model that it began with, not the newest; without it, none."""
    found: Models = versions.sessions.models
    session = await versions.sessions.create("adder", "1", None, "")
    model = found.of(session)
    assert model is not None
    assert model.fingerprint == session.identity.fingerprint != found.find("adder").fingerprint
    stranger: Record = record()
    assert found.of(stranger) is None
