"""The training loop: state carried as in serving, exact resume, early stopping."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import training
from model.errors import CheckpointError, ModelError
from model.evaluation import closed_loop, evaluate, one_step_errors
from model.files import read_tensors, write_tensors
from model.networks import ForecastNetwork, LanguageNetwork, Network, NetworkConfig, State, build
from model.objectives import ForecastLoss, continue_alone, language_loss, typical_change
from model.options import CELLS, Options
from model.schedule import FLOOR, progress, rate_factor
from model.snapshot import SNAPSHOT, load_snapshot, restore, save_snapshot
from model.streams import cut, cut_all, parallel
from model.trainer import Material, Trainer
from model.training import choose_precision

OPTIONS = Options(
    kind="language",
    hidden=8,
    layers=2,
    dropout=0.3,
    seed=5,
    epochs=4,
    batch=3,
    sequence=10,
    learning_rate=0.01,
    weight_decay=0.01,
    patience=100,
    embedding=4,
    precision="float32",
)
LANGUAGE = NetworkConfig(
    task="language", layers=2, hidden=8, dropout=0.3, vocabulary=("a", "b", "c", "d", "e"), embedding=4
)
FORECAST = NetworkConfig(task="forecast", layers=1, hidden=8, features=("a", "b"))


def _trainer(options: Options = OPTIONS) -> Trainer:
    torch.manual_seed(options.seed)
    tokens = torch.randint(5, (800,), generator=torch.Generator().manual_seed(3))
    material = Material(cut(tokens[:700], 3), cut_all(tokens[700:], 4), language_loss)
    return Trainer(build(LANGUAGE), material, options)


def _run(trainer: Trainer, stop_at: int | None = None) -> bool:
    def stop() -> bool:
        return trainer.standing.step == stop_at

    return trainer.run(lambda validated: None, lambda: None, stop)


def _forecaster() -> Network:
    torch.manual_seed(0)
    network = ForecastNetwork(FORECAST)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    return network


@pytest.mark.parametrize("stop_at", [1, 30, 50, 71])
def test_resumed_training_is_the_same_to_the_bit(tmp_path: Path, stop_at: int) -> None:
    """Stopped anywhere, saved, and resumed in a fresh trainer, training ends with the weights of one never stopped."""
    straight = _trainer()
    assert _run(straight)
    stopped = _trainer()
    assert not _run(stopped, stop_at)
    save_snapshot(tmp_path, stopped, {}, 0.0)
    torch.manual_seed(999)
    resumed = _trainer()
    torch.rand(7)
    restore(resumed, load_snapshot(tmp_path))
    assert _run(resumed)
    assert resumed.standing.step == straight.standing.step == 92
    for name, tensor in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name
    assert straight.best is not None
    assert resumed.best is not None
    assert all(torch.equal(resumed.best[name], tensor) for name, tensor in straight.best.items())
    assert [row[:3] for row in resumed.standing.history] == [row[:3] for row in straight.standing.history]


def test_snapshot_of_before_there_were_cells(tmp_path: Path) -> None:
    """A snapshot that names no cell, of a version that had only the LSTM, is one of an LSTM, and is gone on with."""
    stopped = _trainer()
    _run_steps(stopped, 3)
    save_snapshot(tmp_path, stopped, {}, 0.0)
    tensors, document = read_tensors(tmp_path / SNAPSHOT)
    assert {"carried.h", "carried.c"} <= tensors.keys()
    del document["options"]["cell"], document["options"]["memory_steps"]
    write_tensors(tmp_path / SNAPSHOT, tensors, document)
    snapshot = load_snapshot(tmp_path)
    assert (snapshot.options.cell, snapshot.options.memory_steps) == ("lstm", 0)
    resumed = _trainer()
    restore(resumed, snapshot)
    assert all(torch.equal(a, b) for a, b in zip(resumed.carried, stopped.carried, strict=True))


def test_same_seed_gives_the_same_weights() -> None:
    """Two trainings with one seed agree to the bit; another seed gives other weights."""
    weights = []
    for seed in (5, 5, 6):
        trainer = _trainer(replace(OPTIONS, seed=seed))
        _run_steps(trainer, 5)
        weights.append(trainer.network.head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def _run_steps(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.step()


def test_state_is_carried_from_chunk_to_chunk() -> None:
    """Each step starts from the detached state of the one before; a new pass over the streams starts from zeros."""
    trainer = _trainer(replace(OPTIONS, dropout=0.0, learning_rate=1e-12))
    seen = []
    objective = trainer._material.objective

    def spying(
        network: Network,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        state: State,
        closed: bool,
    ) -> tuple[torch.Tensor, State]:
        seen.append((state[0].clone(), state[0].requires_grad))
        return objective(network, inputs, targets, state, closed)

    trainer._material = replace(trainer._material, objective=spying)
    _run_steps(trainer, trainer.chunks_per_epoch + 1)
    assert not any(requires_grad for _, requires_grad in seen)
    assert not seen[0][0].any()
    assert all(h.any() for h, _ in seen[1:-1])
    assert not seen[-1][0].any()


def test_evaluation_carries_the_state() -> None:
    """The validation loss does not depend on the length of the chunks that it is read in."""
    torch.manual_seed(0)
    network = LanguageNetwork(LANGUAGE)
    streams = cut_all(torch.randint(5, (203,)), 4)
    losses = [evaluate(network, streams, chunk, language_loss) for chunk in (1, 7, 51, 1000)]
    assert max(losses) - min(losses) < 1e-5
    inputs, targets = streams.inputs, streams.targets
    whole, _ = network(inputs, network.initial_state(4))
    counted = targets >= 0
    expected = -whole[counted].gather(1, targets[counted][:, None]).mean().item()
    assert losses[0] == pytest.approx(expected, abs=1e-5)
    assert int(counted.sum()) == 202


def test_training_learns() -> None:
    """A text that repeats itself is learned far below the entropy of its symbols."""
    torch.manual_seed(0)
    tokens = torch.tensor([0, 1, 2, 3, 4] * 160)
    material = Material(cut(tokens[:700], 3), cut_all(tokens[700:], 4), language_loss)
    trainer = Trainer(build(LANGUAGE), material, replace(OPTIONS, learning_rate=0.03))
    _run(trainer)
    assert trainer.standing.best_loss is not None
    assert trainer.standing.best_loss < 0.3 * math.log(5)


def test_best_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the lowest validation loss are kept, and patience ends the training."""
    losses = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    monkeypatch.setattr("model.trainer.evaluate", lambda *arguments: next(losses))
    trainer = _trainer(replace(OPTIONS, patience=2, epochs=100))
    best = []

    def report(validated: bool) -> None:
        if validated and trainer.standing.stale == 0:
            best.append(trainer.network.head.weight.detach().clone())

    assert trainer.run(report, lambda: None, lambda: False)
    assert trainer.standing.best_loss == 1.0
    assert len(trainer.standing.history) == 4
    assert trainer.best is not None
    assert torch.equal(trainer.best["head.weight"], best[-1])
    assert not torch.equal(trainer.best["head.weight"], trainer.network.head.weight)


@pytest.mark.parametrize("matrix_units", [True, False])
def test_precision_is_chosen_for_speed(matrix_units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` means bfloat16 for the gated cells of a language network on matrix units; what is said is done, or refused
    where the processor cannot."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": matrix_units})
    auto = replace(OPTIONS, precision="auto")
    gated = {choose_precision(replace(auto, cell=cell)) for cell in CELLS if cell != "rnn"}
    assert gated == {"bfloat16" if matrix_units else "float32"}
    assert choose_precision(replace(auto, cell="rnn")) == "float32"
    assert choose_precision(replace(auto, kind="csv")) == "float32"
    monkeypatch.setattr(training, "computes_bfloat16", lambda: matrix_units)
    asked = replace(auto, cell="rnn", precision="bfloat16")
    if matrix_units:
        assert choose_precision(asked) == "bfloat16"
    else:
        with pytest.raises(ModelError, match="cannot compute it"):
            choose_precision(asked)


def test_time_bounds_a_training() -> None:
    """A training ends when its seconds are used up, and is validated at that end."""
    trainer = _trainer(replace(OPTIONS, epochs=100_000, max_seconds=0.2))
    assert _run(trainer)
    assert trainer.done == 1
    assert 0.2 <= trainer.standing.elapsed_s < 5
    assert trainer.standing.history[-1][0] == trainer.standing.step


def test_divergence_is_a_sentence() -> None:
    """A loss that is not finite ends the training with advice instead of spoiling the weights."""
    trainer = _trainer()
    torch.nn.init.constant_(trainer.network.head.weight, float("nan"))
    with pytest.raises(ModelError, match="--learning-rate"):
        trainer.step()


def test_gradients_are_clipped() -> None:
    """However large the loss, the gradient that reaches the optimizer has a norm of at most 1."""
    trainer = _trainer()

    def huge(
        network: Network,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        state: State,
        closed: bool,
    ) -> tuple[torch.Tensor, State]:
        loss, state = language_loss(network, inputs, targets, state, closed)
        return loss * 1e6, state

    trainer._material = replace(trainer._material, objective=huge)
    trainer.step()
    norms = [p.grad.norm() for p in trainer.network.parameters() if p.grad is not None]
    assert torch.stack(norms).norm() == pytest.approx(1.0, abs=1e-3)


def test_rate_warms_up_and_anneals() -> None:
    """The learning rate rises from nearly nothing, peaks at 1, never rises again, and ends at the floor."""
    factors = [rate_factor(i / 1000) for i in range(1001)]
    peak = factors.index(max(factors))
    assert factors[0] < 0.01
    assert max(factors) == pytest.approx(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(FLOOR)


def test_progress_is_whichever_is_further() -> None:
    """Progress follows steps or seconds, whichever is further, and ends at 1."""
    assert progress(10, 100, 5.0, None) == 0.1
    assert progress(10, 100, 5.0, 10.0) == 0.5
    assert progress(90, 100, 5.0, 10.0) == 0.9
    assert progress(90, 100, 50.0, 10.0) == 1.0


def test_repeating_the_last_value_costs_one() -> None:
    """The forecast loss of an untrained network, which forecasts no change, is 1."""
    rows = torch.randn(2, 101, 2).cumsum(dim=1)
    network = build(FORECAST)
    loss, _ = ForecastLoss(typical_change(rows))(network, rows[:, :-1], rows[:, 1:], network.initial_state(2), True)
    assert loss.item() == pytest.approx(1.0, abs=0.05)


def test_rollout_adds_the_closed_loop_error() -> None:
    """A rollout adds the error of forecasts that are fed back, and leaves the carried state as it was."""
    network, rows = _forecaster(), torch.randn(2, 21, 2)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    start = network.initial_state(2)
    loss = ForecastLoss(torch.ones(2), rollout=5)
    plain, state = loss(network, inputs, targets, start, False)
    both, carried = loss(network, inputs, targets, start, True)
    torch.testing.assert_close(carried, state)
    outputs, middle = network(inputs[:, :15], start)
    row, fed = outputs[:, -1:], []
    for _ in range(5):
        row, middle = network(row, middle)
        fed.append(row)
    extra = (torch.cat(fed, dim=1) - targets[:, 15:]).square().mean()
    torch.testing.assert_close(both, plain + extra)


def test_closed_loop_starts_after_the_known() -> None:
    """The first row of a closed-loop forecast is the prediction after the last known row; the others follow from it."""
    network, rows = _forecaster(), torch.randn(2, 9, 2)
    forecast = closed_loop(network, rows, 4)
    outputs, state = network(rows, network.initial_state(2))
    torch.testing.assert_close(forecast[:, :1], outputs[:, -1:])
    torch.testing.assert_close(forecast[:, 1:], continue_alone(network, outputs[:, -1:], state, 3))
    assert forecast.shape == (2, 4, 2)


def test_errors_are_of_the_target_in_its_units() -> None:
    """One-step errors are prediction minus truth of the first column."""
    rows = torch.arange(20.0)[None, :, None] * torch.tensor([3.0, 100.0])
    errors = one_step_errors(build(FORECAST), parallel(rows))
    assert errors.tolist() == [[-3.0] * 19]


def test_snapshot_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A snapshot of another network, a damaged one, or none at all is a sentence."""
    save_snapshot(tmp_path, _trainer(), {}, 0.0)
    wider = NetworkConfig(**{**LANGUAGE.__dict__, "hidden": 16})
    tokens = torch.arange(100) % 5
    other = Trainer(build(wider), Material(cut(tokens, 3), cut_all(tokens, 2), language_loss), OPTIONS)
    with pytest.raises(CheckpointError, match="do not fit"):
        restore(other, load_snapshot(tmp_path))
    (tmp_path / "training.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="no training to resume"):
        load_snapshot(tmp_path / "elsewhere")
