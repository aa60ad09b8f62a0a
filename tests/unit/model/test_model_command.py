"""`train language|forecast` as a user types it."""

import itertools
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from typer.testing import CliRunner

from model import checkpoint
from model.command import app
from model.errors import CheckpointError, DataError, Interrupted, ModelError
from model.evaluation import language_metrics
from model.options import CELLS
from model.plots import _label_logarithm, draw_losses
from model.streams import cut_all
from model.tasks import LanguageTask
from model.text import prepare
from model.trainer import Trainer
from model.training import stop_on_signals

QUICK = ["--hidden", "8", "--layers", "1", "--sequence", "20", "--batch", "4", "--seed", "3"]


@pytest.fixture(autouse=True)
def _keep_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(autouse=True)
def _keep_ctrl_c() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small text."""
    path = tmp_path / "rhyme.txt"
    path.write_text("so much depends upon a red wheel barrow\n" * 60, encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV file of two waves and a time column."""
    path = tmp_path / "plant.csv"
    rows = [f"{i},{20 + 5 * math.sin(i / 5):.4f},{math.cos(i / 5):.4f}" for i in range(400)]
    path.write_text("hour,load,wind\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def _train(*words: str | Path) -> str:
    """Run the command; its output, or the exception that it raised."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_language_leaves_a_checkpoint(text: Path, tmp_path: Path) -> None:
    """Training on a text leaves a loadable network, how it was made, and a plot of the losses."""
    output = _train("language", "--text", text, "--out", tmp_path / "out", "--epochs", "2", *QUICK)
    assert "nats per character" in output
    loaded = checkpoint.load(tmp_path / "out")
    assert "".join(loaded.config.vocabulary) == "\n abcdehlmnoprsuw"
    made = loaded.provenance
    assert made["seed"] == 3
    assert made["finished"] is True
    assert made["data"]["source"] == "rhyme.txt"
    assert made["cpu_seconds"] > 0
    assert made["metrics"]["validation_nats_per_character"] == pytest.approx(
        made["losses"]["best_validation"], rel=0.05
    )
    assert set(made["versions"]) == {"python", "torch", "lstm-serve"}
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(made["options"])


def test_forecast_learns_from_a_table(table: Path, tmp_path: Path) -> None:
    """Training on a CSV beats repeating the last value, in the user's units, and draws a forecast."""
    words = ["--csv", table, "--target", "load", "--features", "wind", "--time", "hour", "--rollout", "5"]
    output = _train("forecast", *words, "--out", tmp_path / "out", "--epochs", "60", "--learning-rate", "0.02", *QUICK)
    assert "x the squared error of repeating the last value" in output
    assert "validation, one step ahead: RMSE " in output
    assert "closed loop: the last 5 steps forecast from what precedes them" in output
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.config.features == ("load", "wind")
    metrics = loaded.provenance["metrics"]
    assert metrics["validation_rmse"] < 0.5 * metrics["validation_rmse_of_repeating"]
    assert 19 < float(loaded.network.get_buffer("mean")[0]) < 21
    assert (tmp_path / "out" / "forecast.png").exists()
    assert str(tmp_path) not in json.dumps(loaded.provenance)


def test_scaling_is_learned_on_the_training_split_only(table: Path, tmp_path: Path) -> None:
    """Rows of the validation split change neither mean nor scale."""
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([*lines[:381], "9999,1e6,1e6"]) + "\n", encoding="utf-8")
    words = ["--csv", table, "--target", "load", "--epochs", "1", "--validation", "0.2"]
    _train("forecast", *words, "--out", tmp_path / "out", *QUICK)
    network = checkpoint.load(tmp_path / "out").network
    assert float(network.get_buffer("scale")[0]) < 10


def test_sine_is_the_default_forecast(tmp_path: Path) -> None:
    """Without a CSV the sine exercise is trained, and its figures are those of the three test waves."""
    output = _train("forecast", "--epochs", "1", "--out", tmp_path / "out", *QUICK)
    assert re.search(r"closed loop: 1000 steps, each prediction fed back .*: RMSE [\d.]+, [\d.]+, [\d.]+, one", output)
    made = checkpoint.load(tmp_path / "out").provenance
    metrics = made["metrics"]
    assert made["options"]["rollout"] == 13  # of chunks of 20 steps
    assert len(metrics["test_closed_loop_rmse"]) == 3
    assert metrics["test_closed_loop_steps"] == 1000


@pytest.mark.parametrize("cell", CELLS)
def test_ctrl_c_saves_and_resume_is_exact(
    cell: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C finishes the step, saves, tells how to go on; the resumed training ends as one that was never stopped."""
    words = ["language", "--text", text, "--cell", cell, "--dropout", "0.2", "--epochs", "3", *QUICK]
    words += [] if cell == "rnn" else ["--memory-steps", "30"]
    _train(*words, "--out", tmp_path / "straight")
    assert checkpoint.load(tmp_path / "straight").config.cell == cell
    step = Trainer.step

    def interrupted(trainer: Trainer) -> None:
        if trainer.standing.step == 60:
            signal.raise_signal(signal.SIGINT)
        step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(Interrupted, match=r"after 61 steps; go on with: lstm-serve train language --out .* --resume"):
        _train(*words, "--out", tmp_path / "stopped")
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "stopped").provenance["finished"] is False
    assert (tmp_path / "stopped" / "losses.png").exists()
    _train("language", "--out", tmp_path / "stopped", "--resume")
    names = [tmp_path / folder / "training.safetensors" for folder in ("straight", "stopped")]
    straight, stopped = (checkpoint.read_tensors(path)[0] for path in names)
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)


def test_gates_begin_open_for_the_steps_that_are_asked_for(text: Path, tmp_path: Path) -> None:
    """--memory-steps draws the biases of each unit; without it they are 1 and 0. The checkpoint tells."""
    words = ["language", "--text", text, "--epochs", "1", "--learning-rate", "1e-12", *QUICK]  # nothing is learned
    _train(*words, "--out", tmp_path / "open", "--memory-steps", "100")
    _train(*words, "--out", tmp_path / "usual")
    usual, opened = (checkpoint.load(tmp_path / folder) for folder in ("usual", "open"))
    assert usual.provenance["options"]["memory_steps"] == 0
    assert opened.provenance["options"]["memory_steps"] == 100
    taking_in, keeping = opened.network.get_parameter("recurrent.bias_ih_l0").chunk(4)[:2]
    assert torch.allclose(keeping, -taking_in)
    assert all(0 <= bias <= math.log(99) for bias in keeping.tolist())
    assert keeping.max() - keeping.min() > 1
    forget = usual.network.get_parameter("recurrent.bias_ih_l0").chunk(4)[1]
    assert torch.allclose(forget, torch.ones(8))


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns_to_forecast(cell: str, table: Path, tmp_path: Path) -> None:
    """Each cell beats repeating the last value, rollouts included, and its checkpoint says which cell it is."""
    words = ["--csv", table, "--target", "load", "--features", "wind", "--rollout", "2", "--epochs", "40"]
    _train("forecast", *words, "--cell", cell, "--learning-rate", "0.02", *QUICK, "--out", tmp_path / "out")
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.config.cell == loaded.provenance["options"]["cell"] == cell
    metrics = loaded.provenance["metrics"]
    assert metrics["validation_rmse"] < 0.5 * metrics["validation_rmse_of_repeating"]


def test_figures_are_those_of_the_best_weights(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept and reported in the end are the weights of the best validation, not the last ones."""
    losses = itertools.count(1.0)
    monkeypatch.setattr("model.trainer.evaluate", lambda *arguments: next(losses))
    _train("language", "--text", text, "--out", tmp_path / "out", "--epochs", "5", *QUICK)
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.provenance["losses"]["best_step"] < loaded.provenance["steps"]
    corpus = prepare(text.read_text(encoding="utf-8"), text.name, 0.1)
    measured = language_metrics(loaded.network, cut_all(corpus.validation, 16))
    assert loaded.provenance["metrics"] == pytest.approx(measured)


def test_second_ctrl_c_does_not_wait() -> None:
    """A first signal is only noted; a second one interrupts at once, and none disturbs the end."""
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_do_again_what_they_did() -> None:
    """A training that nobody stopped leaves the signals as they were."""
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_impatient_ctrl_c_ends_quietly(text: Path, tmp_path: Path) -> None:
    """However often Ctrl-C is pressed, until the process is gone: status 130, no traceback."""
    words = ["language", "--text", str(text), "--out", str(tmp_path / "out"), "--epochs", "100000", *QUICK]
    command = [sys.executable, "-m", "model.command", *words, "--patience", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "step " not in process.stderr.readline():
            assert process.poll() is None
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "stopped" in said


@pytest.mark.parametrize("hidden", ["99999999", "9" * 18, "9" * 21])
def test_a_network_beyond_memory_is_a_sentence(tmp_path: Path, hidden: str) -> None:
    """A width that no memory holds is told as that, however torch puts it."""
    with pytest.raises(ModelError, match="does not fit into memory"):
        _train("forecast", "--out", tmp_path / "out", "--hidden", hidden)


def test_other_faults_are_not_taken_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A RuntimeError of another kind is a fault of ours, and stays one."""

    def broken(trainer: Trainer) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        _train("forecast", "--out", tmp_path / "out", *QUICK)


@pytest.mark.parametrize(("low", "high"), [(1.18, 1.25), (1.1, 2.9), (1.5, 9.9), (1.1, 11.5), (0.01, 1.2), (1e-7, 1.0)])
def test_losses_have_labelled_ticks(low: float, high: float) -> None:
    """Whatever the range of the losses, at least four ticks in view carry a number."""
    axes = Figure().subplots()
    axes.set(yscale="log", ylim=(low, high))
    _label_logarithm(axes, [low, high, 0.0])
    assert sum(low <= tick <= high for tick in axes.yaxis.get_ticklocs()) >= 4


def test_training_with_dropout_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The label of the training curve tells of dropout where there is any."""
    labels: list[list[str]] = []
    legend = Axes.legend

    def noted(axes: Axes) -> None:
        legend(axes)
        labels.append(axes.get_legend_handles_labels()[1])

    monkeypatch.setattr(Axes, "legend", noted)
    for dropout in (0.0, 0.3):
        draw_losses(tmp_path, [[50, 2.0, 2.1], [100, 1.5, 1.7]], "nats", dropout)
    assert labels == [["training", "validation"], ["training (with dropout)", "validation"]]


def test_resume_refuses_another_training(text: Path, tmp_path: Path) -> None:
    """Resuming with contradicting options, changed data, or nothing to resume is refused; repeating options is not."""
    words = ["language", "--text", text, "--epochs", "1", *QUICK, "--out", tmp_path / "out"]
    with pytest.raises(CheckpointError, match="no training to resume"):
        _train(*words, "--resume")
    _train(*words)
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        _train(*words)
    with pytest.raises(ModelError, match="--hidden is 8 in the checkpoint"):
        _train(*words, "--hidden", "9", "--resume")
    with pytest.raises(ModelError, match="--cell is lstm in the checkpoint"):
        _train(*words, "--cell", "gru", "--resume")
    with pytest.raises(ModelError, match="--memory-steps is 0 in the checkpoint"):
        _train(*words, "--memory-steps", "9", "--resume")
    with pytest.raises(ModelError, match="kind language"):
        _train("forecast", "--out", tmp_path / "out", "--resume")
    _train(*words, "--epochs", "2", "--resume")
    assert checkpoint.load(tmp_path / "out").provenance["options"]["epochs"] == 2
    text.write_text("other words\n" * 200, encoding="utf-8")
    with pytest.raises(CheckpointError, match="the data is not"):
        _train(*words, "--epochs", "3", "--resume")


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ([], "give --epochs above 2$"),
        (["--epochs", "1"], "give --epochs above 2$"),
        (["--epochs", "9", "--max-seconds", "1e-9"], r"give --max-seconds above \d+$"),
        (["--max-seconds", "1e-9"], r"give --max-seconds above \d+ and --epochs above 2$"),
    ],
)
def test_a_resume_with_nothing_left_to_do_says_so(limit: list[str], said: str, text: Path, tmp_path: Path) -> None:
    """Limits count from the beginning: one that is used up is told with what is done, and changes no file."""
    out = tmp_path / "out"
    _train("language", "--text", text, "--epochs", "2", *QUICK, "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ModelError, match=rf"has already made \d+ steps in [\d.]+ s, .*: {said}"):
        _train("language", "--out", out, "--resume", *limit)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    _train("language", "--out", out, "--resume", "--epochs", "3")  # what was refused has left no limit behind
    assert checkpoint.load(out).provenance["finished"] is True


def test_used_up_patience_is_told(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that stopped since nothing became better is gone on with for a greater patience."""
    losses = itertools.count(1.0)
    monkeypatch.setattr("model.trainer.evaluate", lambda *arguments: next(losses))
    words = ["--out", tmp_path / "out", "--patience", "2"]
    _train("language", "--text", text, "--epochs", "90", *QUICK, *words)
    with pytest.raises(ModelError, match=r"give --patience above 2$"):
        _train("language", *words, "--resume")


def test_a_training_that_was_stopped_before_its_figures_gets_them(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever breaks into the last measurement finds it made up for by a resume, without any step."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageTask, "finish", interrupted)
    words = ["language", "--out", tmp_path / "out"]
    with pytest.raises(Interrupted, match="what was saved before is kept"):
        _train(*words, "--text", text, "--epochs", "2", *QUICK)
    monkeypatch.undo()
    steps = checkpoint.load(tmp_path / "out").provenance["steps"]
    assert "nats per character" in _train(*words, "--resume")
    made = checkpoint.load(tmp_path / "out").provenance
    assert made["metrics"]
    assert made["steps"] == steps


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["language", "--dropout", "1"], "--dropout"),
        (["language", "--max-seconds", "0"], "--max-seconds"),
        (["language", "--validation", "1"], "--validation"),
        (["language", "--precision", "half"], "--precision"),
        (["language", "--cell", "elman"], "--cell must be one of rnn, gru, lstm, peephole, cifg, not elman"),
        (["language", "--memory-steps", "2"], "--memory-steps must be 0 or from 3 to 1,000,000, not 2"),
        (["language", "--memory-steps", "1000001"], "--memory-steps must be 0 or from 3 to 1,000,000, not 1000001"),
        (["forecast", "--memory-steps", "9", "--cell", "rnn"], "--memory-steps is about gates, .* rnn has none"),
        (["language", "--seed", "9" * 20], "--seed must be from 0 to 2,147,483,647"),
        (["language", "--threads", "9999999999"], "--threads must be from 0 to 1,024"),
        (["language", "--learning-rate", "inf"], "--learning-rate must be above 0, and finite, not inf"),
        (["language", "--weight-decay", "inf"], "--weight-decay must be 0 or above, and finite, not inf"),
        (["language", "--embedding", "0"], "--embedding must be at least 1, not 0"),
        (["language", "--validation", "1e-9"], "--validation 1e-09 leaves a split of pydoc_data.topics with fewer"),
        (["language", "--hidden", "0"], "--hidden"),
        (["forecast", "--rollout", "300"], "--rollout"),
        (["forecast", "--csv", "x.csv"], "--target"),
        (["forecast", "--csv", "x.csv", "--sine"], "exclude"),
        (["forecast", "--target", "x"], "--csv"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, words: list[str], said: str) -> None:
    """An option that cannot be is named in one sentence, and nothing is written."""
    with pytest.raises(ModelError, match=said):
        _train(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_rows_are_a_sentence(tmp_path: Path) -> None:
    """A table that is too short says how many rows it has and how many are needed."""
    (tmp_path / "short.csv").write_text("a\n1\n2\n", encoding="utf-8")
    with pytest.raises(DataError, match="2 rows, and at least 50"):
        _train("forecast", "--csv", tmp_path / "short.csv", "--target", "a", "--out", tmp_path / "out")


def test_help_needs_no_torch() -> None:
    """The help of both commands is shown where torch cannot be imported, and training says what is missing."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from typer.testing import CliRunner; from model.command import app\n"
        "for task in ('language', 'forecast'):\n"
        "    print(CliRunner().invoke(app, [task, '--help']).output)\n"
        "print(CliRunner().invoke(app, ['language', '--out', 'x']).exception)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--max-seconds" in done.stdout
    assert all(done.stdout.count(f" {cell}") >= 2 for cell in CELLS)
    assert "--target" in done.stdout
    assert "pip install 'lstm-serve[train]'" in done.stdout
