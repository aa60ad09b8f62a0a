"""The engine against plain ONNX Runtime, and what it says of artifacts that do not hold what they promise."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.artifact import SIGNATURE_KEY, Signature
from service.engine import ort, providers
from service.engine.probe import random_chunk
from service.engine.repository import LoadedModel
from service.engine.runtime import Engine, load_engine
from service.errors import ArtifactError, SettingsError, UndecodableState
from service.settings import load_settings
from tests.support import artifacts
from tests.support.artifacts import POISON
from tests.support.brain import numbers

CPU = load_settings(provider="cpu")
Models = dict[str, LoadedModel]


@pytest.mark.parametrize("name", ["language", "forecast"])
def test_a_batch_equals_plain_onnx_runtime(repository: Path, models: Models, name: str) -> None:
    """Gathering, padding and scattering change nothing: each row equals a call of its own, to the rounding of a sum."""
    engine = models[name].engine
    plain = ort.InferenceSession(str(repository / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    chunks = [random_chunk(engine.signature, steps, random) for steps in (3, 1, 5, 5, 2)]
    rows = engine.run([engine.initial_row] * 5, [random_chunk(engine.signature, 2, random) for _ in range(5)]).rows
    done = engine.run(rows, chunks)
    states = engine.signature.states
    for i, ((chunk,), row) in enumerate(zip(chunks, rows, strict=True)):
        feed = {engine.signature.inputs[0].name: chunk[None], **engine.layout.gather([row])}
        feed[str(engine.signature.lengths)] = np.array([len(chunk)], np.int32)
        output = engine.signature.outputs[0].name
        expected = plain.run([output, *[s.output for s in states]], feed)
        np.testing.assert_allclose(done.outputs[output][i, : len(chunk)], expected[0][0], atol=1e-6)
        state = engine.layout.gather([done.rows[i]])
        for spec, tensor in zip(states, expected[1:], strict=True):
            np.testing.assert_allclose(state[spec.input], tensor, atol=1e-6)


def test_padding_is_counted(models: Models) -> None:
    """Cells computed in vain are those beyond each row's own steps."""
    engine = models["adder"].engine
    done = engine.run([engine.initial_row] * 3, [numbers(1), numbers(1, 2, 3), numbers(1, 2)])
    assert done.padding == 2 + 0 + 1


def test_small_batches_are_filled_up_and_nobody_sees_it(repository: Path) -> None:
    """Rows up to ``min_rows`` are copies: results are those of the asked rows, and the copies count as padding."""
    engine = load_engine(repository / "adder" / "1" / "model.onnx", CPU)
    engine.min_rows = 4
    done = engine.run([engine.initial_row], [numbers(1, 2)])
    assert done.outputs["y"].ravel().tolist() == [1, 3]
    assert (len(done.rows), done.finite, done.padding) == (1, [True], 6)


@pytest.mark.filterwarnings("error")
def test_a_row_that_is_not_finite_is_told_and_others_are_not_blamed(models: Models) -> None:
    """Infinity in one row marks that row only, without a word on standard error."""
    engine = models["poison"].engine
    done = engine.run([engine.initial_row] * 4, [numbers(1), numbers(POISON), numbers(-POISON), numbers(2, 3)])
    assert done.finite == [True, False, False, True]
    assert done.outputs["y"][3].ravel().tolist() == [2, 5]


@pytest.mark.filterwarnings("error")
def test_large_numbers_are_numbers(models: Models) -> None:
    """A batch whose values are finite but add up to infinity is fine."""
    engine = models["adder"].engine
    assert engine.run([engine.initial_row] * 3, [numbers(3e38)] * 3).finite == [True] * 3


def test_what_lies_beyond_a_rows_steps_is_not_held_against_it(models: Models) -> None:
    """A short row beside a long one is judged by its own steps: the zeros that fill it up may come to anything."""
    engine = models["reciprocal"].engine
    chunks = [numbers(1), numbers(1, 2, 4), numbers(1, 0)]
    assert engine.run([engine.initial_row] * 3, chunks).finite == [True, True, False]


def test_a_row_of_another_model_is_refused(models: Models) -> None:
    """Rule 7 of the tick: a row that is not this model's is named before anything runs."""
    engine = models["adder"].engine
    with pytest.raises(UndecodableState):
        engine.run([models["language"].engine.initial_row], [numbers(1)])


def test_the_fingerprint_is_the_sha256_of_the_file(repository: Path, models: Models) -> None:
    """A session can be pinned to it, and anybody can compute it."""
    content = (repository / "adder" / "1" / "model.onnx").read_bytes()
    assert models["adder"].engine.fingerprint == hashlib.sha256(content).hexdigest()


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """An artifact whose signature was meddled with."""
    model = onnx.load(source)
    (entry,) = [p for p in model.metadata_props if p.key == SIGNATURE_KEY]
    document = Signature.model_validate_json(entry.value).model_dump()
    change(document)
    entry.value = Signature.model_validate(document).model_dump_json()
    onnx.save(model, target)
    return target


def test_a_state_begins_with_its_initial_value(repository: Path, tmp_path: Path) -> None:
    """A signature may name another first state than zeros."""

    def initial(document: dict[str, Any]) -> None:
        document["states"][0]["initial"] = {"dtype": "float32", "shape": [1], "data": "AAAgQQ=="}  # 10.0

    engine = load_engine(changed(repository / "adder" / "1" / "model.onnx", tmp_path / "model.onnx", initial), CPU)
    assert engine.run([engine.initial_row], [numbers(1)]).outputs["y"].ravel().tolist() == [11]


def _rename(part: str, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document[part][0][key] = value

    return change


ZERO = {"dtype": "float32", "shape": [], "data": "AAAAAA=="}
FOREIGN: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_rename("inputs", "name", "z"), "input 'z' that the graph does not have"),
    (_rename("outputs", "name", "z"), "output 'z' that the graph does not have"),
    (_rename("states", "output", "z"), "output 'z' that the graph does not have"),
    (_rename("inputs", "dtype", "float64"), "tensor(float) in the graph and float64"),
    (_rename("states", "dtype", "float16"), "tensor(float) in the graph and float16"),
    (_rename("outputs", "shape", [None, None]), "3 axes in the graph, 2 in the signature"),
    (_rename("inputs", "shape", [None, None, 2]), "axis 2 of input 'x' is 1 in the graph and 2"),
    (lambda document: document.update(lengths=None), "an input 'lengths' that the signature does not name"),
    (lambda document: document.update(lengths="count"), "input 'count' that the graph does not have"),
    (lambda document: document.update(constants={"k": ZERO}), "input 'k' that the graph does not have"),
]


@pytest.mark.parametrize(("change", "sentence"), FOREIGN, ids=[sentence for _, sentence in FOREIGN])
def test_a_signature_is_held_against_the_graph(
    repository: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    """What the signature says and the graph does not hold is named, with the file."""
    path = changed(repository / "adder" / "1" / "model.onnx", tmp_path / "model.onnx", change)
    with pytest.raises(ArtifactError) as refused:
        load_engine(path, CPU)
    assert sentence in refused.value.detail
    assert str(path) in refused.value.detail


def test_a_file_that_is_no_artifact_is_refused(repository: Path, tmp_path: Path) -> None:
    """Missing, cut off, something else, or without a signature: each is named in one sentence."""
    good = repository / "adder" / "1" / "model.onnx"
    (tmp_path / "cut.onnx").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.onnx").write_text("no model at all")
    (tmp_path / "empty.onnx").write_bytes(b"")
    bare = onnx.load(good)
    bare.metadata_props.clear()
    onnx.save(bare, tmp_path / "bare.onnx")
    (tmp_path / "folder.onnx").mkdir()
    for name in ("missing", "cut", "text", "empty", "bare", "folder"):
        with pytest.raises(ArtifactError) as refused:
            load_engine(tmp_path / f"{name}.onnx", CPU)
        assert f"{name}.onnx" in refused.value.detail
        assert "\n" not in refused.value.detail
    shutil.copy(good, tmp_path / "good.onnx")
    assert isinstance(load_engine(tmp_path / "good.onnx", CPU), Engine)


def test_cuda_that_cannot_be_had_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``cuda`` never falls back in silence; ``auto`` runs on the CPU and says so."""
    monkeypatch.setattr(ort, "available_providers", lambda: [providers.CPU])
    path = artifacts.running_sum(tmp_path / "model.onnx")
    with pytest.raises(SettingsError, match="provider=cuda") as refused:
        load_engine(path, load_settings(provider="cuda"))
    assert refused.value.field == "provider"
    assert load_engine(path, load_settings(provider="auto")).provider == "cpu"
    assert load_engine(path, CPU).provider == "cpu"


def test_cuda_that_is_built_in_but_does_not_load_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime falls back without a word; which provider really runs is asked of the session."""
    monkeypatch.setattr(ort, "available_providers", lambda: [providers.CUDA, providers.CPU])
    real = ort.InferenceSession

    def without_cuda(model: bytes, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
        return real(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", without_cuda)
    path = artifacts.running_sum(tmp_path / "model.onnx")
    with pytest.raises(SettingsError, match="could not load CUDA"):
        load_engine(path, load_settings(provider="cuda"))
    assert load_engine(path, load_settings(provider="auto")).provider == "cpu"


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_cuda_that_can_be_had_runs(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    """Where the session really has CUDA first in line, it is taken, with the CPU behind it."""
    asked: list[list[str]] = []

    class Cuda:
        def __init__(self, model: bytes, options: object, providers: list[str]) -> None:
            asked.append(providers)

        def get_providers(self) -> list[str]:
            """As ONNX Runtime has it."""
            return [providers.CUDA, providers.CPU]

    monkeypatch.setattr(ort, "available_providers", lambda: [providers.CUDA, providers.CPU])
    monkeypatch.setattr(ort, "InferenceSession", Cuda)
    session = providers.open_session(b"", load_settings(provider=wish))
    assert providers.running_provider(session) == "cuda"
    assert asked == [[providers.CUDA, providers.CPU]]


def test_sessions_of_onnx_runtime_are_set_up_as_measured() -> None:
    """One thread unless told, no spinning between ticks, no memory patterns for shapes that vary."""
    options = providers.session_options(load_settings(threads=3))
    assert (options.intra_op_num_threads, options.enable_mem_pattern) == (3, False)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
