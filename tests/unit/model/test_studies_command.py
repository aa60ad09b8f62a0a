"""`lstm-serve study gradients|adding` as a user types it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import model.text
from model.errors import Interrupted, ModelError
from model.studies import adding
from model.studies.command import app
from model.studies.running import _told

ADDING = ["adding", "--lags", "10,12", "--hidden", "4", "--updates", "2", "--batch", "2"]


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


def _study(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_adding_leaves_a_figure_and_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each cell and lag, and a document that tells how they were made, without the folder's path."""
    words = [*ADDING, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["lstm-serve", "study", *words])
    output = _study(*words)
    assert output.count("of fresh sequences solved after 2 updates") == 10
    document = json.loads((tmp_path / "out" / "adding.json").read_text())
    assert document["command"].startswith("lstm-serve study adding --lags 10,12 ")
    assert str(tmp_path) not in json.dumps(document)
    assert document["options"]["seed"] == 0
    assert "torch" in document["versions"]
    assert [(a["lag"], a["cell"]) for a in document["attempts"][:2]] == [(10, "rnn"), (10, "gru")]
    assert all(0 <= a["share_solved"] <= 1 and a["updates"] == 2 for a in document["attempts"])
    assert (tmp_path / "out" / "adding.png").read_bytes().startswith(b"\x89PNG")


def test_gradients_leave_a_figure_and_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell with each beginning, before and after training; shares of the norm at k = 0."""
    monkeypatch.setattr(model.text, "default_corpus", lambda: "so much depends upon a red wheel barrow\n" * 750)
    output = _study(
        "gradients", "--cells", "rnn,lstm", "--steps", "12", "--hidden", "4", "--out", tmp_path, "--epochs", 1
    )
    assert output.count("of the gradient reaches 12 steps back") == 10
    document = json.loads((tmp_path / "gradients.json").read_text())
    assert document["steps_back"] == [0, *range(1, 7), 8, 10, 12]
    found = {(c["cell"], c["start"], c["trained"]): c for c in document["curves"]}
    assert len(found) == 10
    assert ("rnn", "lag", False) not in found
    assert all(c["shares"][0] == 1 for c in found.values())
    untrained, trained = found["lstm", "ours", False], found["lstm", "ours", True]
    assert trained["loss"] < untrained["loss"]
    assert found["lstm", "lag", False]["shares"][-1] > untrained["shares"][-1]
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")


def test_steps_back_that_are_told_are_even_on_a_logarithm() -> None:
    """Ends included, about ten of each decade."""
    told = _told(1000)
    assert told[:3] == [0, 1, 2]
    assert told[-1] == 1000
    assert len([k for k in told if 100 <= k < 1000]) == 10


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["adding", "--lags", "50;200"], "--lags must be whole numbers with commas between them, not '50;200'"),
        (["adding", "--lags", ","], "--lags needs at least one number of steps"),
        (["adding", "--lags", "9"], "--lags must be from 10 to 5,000, not 9"),
        (["adding", "--cells", "lstm,grue"], "--cells must be of rnn, gru, .*, with commas between them, not 'grue'"),
        (["adding", "--hidden", "0"], "--hidden must be from 1 to 1,024, not 0"),
        (["adding", "--batch", "4096"], "--batch must be from 1 to 1,024, not 4,096"),
        (["adding", "--updates", "0"], "--updates must be from 1 to 1,000,000, not 0"),
        (["adding", "--seed", "-1"], "--seed must be from 0 to"),
        (["adding", "--learning-rate", "0"], "--learning-rate must be above 0 and at most 1, not 0"),
        (["adding", "--learning-rate", "nan"], "--learning-rate must be above 0 and at most 1, not nan"),
        (["adding", "--biases", "open"], "--biases must be lag or default, not open"),
        (["adding", "--lags", "5000", "--batch", "1024", "--hidden", "1024"], "needs too much memory: choose less"),
        (["gradients", "--steps", "2001"], "--steps must be from 10 to 2,000, not 2,001"),
        (["gradients", "--cells", ""], "--cells must be of rnn"),
        (["gradients", "--epochs", "0"], "--epochs must be from 1 to 100, not 0"),
        (["gradients", "--hidden", "5000"], "--hidden must be from 1 to 1,024, not 5,000"),
        (["gradients", "--seed", "99999999999"], "--seed must be from 0 to"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    """Each wrong option by its name, before any work."""
    with pytest.raises(ModelError, match=sentence):
        _study(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    """Not after it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"--out .* cannot be made: Not a directory"):
        _study(*ADDING, "--out", tmp_path / "file" / "out")


def test_a_stopped_study_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends it with one sentence."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adding, "attempt", stop)
    with pytest.raises(Interrupted, match="stopped: nothing was written"):
        _study(*ADDING, "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []
