"""What crosses the bus to a GPU, and which models keep their rows there: over a GPU made of the CPU."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.engine import resident
from service.engine.repository import load_repository
from service.engine.resident import ResidentEngine, on_device
from service.engine.runtime import Engine, load_engine
from service.errors import ArtifactError
from service.settings import load_settings
from tests.support import artifacts, foreign
from tests.support.brain import Serve
from tests.support.fakes import started
from tests.support.gpu import Gpu

CPU, CUDA = load_settings(provider="cpu"), load_settings(provider="cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """ONNX Runtime seems to run CUDA, on its second device."""
    return Gpu(monkeypatch, id=1)


def test_states_cross_the_bus_once_a_tick_and_one_way(repository: Path, gpu: Gpu) -> None:
    """What goes there are inputs, lengths and slots; what comes from there are outputs, and all rows in one copy."""
    model = {m.name: m for m in load_repository(repository, CUDA)[0]}["language"]
    engine, rows = model.engine, 8
    assert isinstance(engine, ResidentEngine)
    state = engine.run([engine.initial_row] * rows, [(np.arange(3),)] * rows).rows
    gpu.sent.clear()
    gpu.brought.clear()
    done = engine.run(state, [(np.arange(3),)] * rows)
    expected = load_engine(engine.path, CPU).run(state, [(np.arange(3),)] * rows)
    assert done.rows == expected.rows
    assert dict(gpu.sent) == {
        "tokens": rows * 3 * 8,
        "lengths": rows * 4,
        "lstm_serve.from": rows * 8,
        "lstm_serve.to": rows * 8,
    }
    symbols = len(engine.signature.vocabulary or ())
    brought = [("lstm_serve.float32.rows", rows * engine.layout.row_bytes), ("logprobs", rows * 3 * symbols * 4)]
    assert (gpu.brought, len(gpu.sent)) == (brought, 4)


def test_every_model_that_can_keeps_its_rows_on_the_gpu(repository: Path, gpu: Gpu) -> None:
    """Those that are called for one row at a time cannot, and run as before."""
    engines = {m.name: m.engine for m in load_repository(repository, CUDA)[0]}
    assert all(isinstance(engines[name], ResidentEngine) for name in engines.keys() - {"audio", "frozen"})
    assert not any(isinstance(engines[name], ResidentEngine) for name in ("audio", "frozen"))
    assert {engine.provider for engine in engines.values()} == {"cuda"}
    assert gpu.sent


async def test_ticks_overlap_on_a_gpu(repository: Path, gpu: Gpu, serve: Serve) -> None:
    """One is computed while the one before is committed, and what is committed is what came from the device."""
    brain = serve(load_repository(repository, CUDA)[0])
    one, other = await brain.create(), await brain.create()
    gpu.sent.clear()
    brain.store.gate.shut()
    (first,) = await started(brain.add(one, 1))
    await brain.store.gate.reached()
    engine = brain.engines["adder"]
    engine.gate.shut()
    (second,) = await started(brain.add(other, 2))
    await engine.gate.reached()
    engine.gate.open()
    brain.store.gate.open()
    assert (await first, await second, await brain.add(one, 5)) == ([1], [2], [6])
    assert {name for name, _ in gpu.sent} == {"x", "lengths", "lstm_serve.from", "lstm_serve.to"}


def refusal(engine: Engine, caplog: pytest.LogCaptureFixture, **settings: object) -> str:
    """Why the rows of an engine do not stay; it goes on as it is."""
    with caplog.at_level(logging.WARNING):
        assert on_device(engine, load_settings(provider="cuda", **settings)) is engine
    (told,) = caplog.messages
    return told


def test_where_our_operators_would_run_on_the_cpu_rows_do_not_stay(
    repository: Path, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole arenas would cross the bus: the log names the operators."""
    gpu.on_cpu.add("ScatterElements")
    engine = load_engine(repository / "adder" / "1" / "model.onnx", CUDA)
    assert "runs ScatterElements on the CPU" in refusal(engine, caplog)


def test_where_the_device_does_not_keep_what_it_is_given_rows_do_not_stay(
    repository: Path, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried before it is trusted."""
    gpu.forgets = True
    engine = load_engine(repository / "language" / "1" / "model.onnx", CUDA)
    assert "came to something else" in refusal(engine, caplog)


@pytest.mark.usefixtures("gpu")
def test_a_model_of_old_operators_runs_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Split takes its sizes as an input since version 13."""
    path = foreign.one_step(tmp_path / "old" / "model.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 12
    onnx.save(model, path)
    assert "of version 12, not 13" in refusal(load_engine(path, CUDA), caplog)


@pytest.mark.usefixtures("gpu")
def test_rows_that_are_too_large_come_and_go(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is room for one at least beside the initial one, or none stays."""
    monkeypatch.setattr(resident, "_MIB", 512)
    engine = load_engine(repository / "language" / "1" / "model.onnx", CUDA)
    assert "a row of 256 bytes is too large for resident_mb=1" in refusal(engine, caplog, resident_mb=1)
    assert isinstance(on_device(engine, load_settings(provider="cuda", resident_mb=2)), ResidentEngine)


@pytest.mark.usefixtures("gpu")
def test_none_stay_where_none_are_wanted(repository: Path) -> None:
    """``resident_mb=0`` switches it off."""
    engine = load_engine(repository / "adder" / "1" / "model.onnx", CUDA)
    assert on_device(engine, load_settings(provider="cuda", resident_mb=0)) is engine


@pytest.mark.usefixtures("gpu")
def test_a_file_that_is_replaced_meanwhile_is_refused(tmp_path: Path) -> None:
    """The engine's fingerprint is that of the file it was loaded from, to the last."""
    path = artifacts.running_sum(tmp_path / "model.onnx")
    engine = load_engine(path, CUDA)
    artifacts.poison(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() != engine.fingerprint
    with pytest.raises(ArtifactError, match="replaced"):
        on_device(engine, CUDA)
