"""Checkpoints: whole or refused, whenever the writer dies."""

import json
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.errors import CheckpointError
from model.files import read_tensors, write_tensors
from model.networks import NetworkConfig, build

CONFIG = NetworkConfig(task="language", layers=1, hidden=4, vocabulary=("a", "b", "ü"), embedding=2, dropout=0.5)


class KilledError(BaseException):
    """Stands for SIGKILL: nobody catches it."""


def _save(folder: Path, number: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(number)
    weights = build(CONFIG).state_dict()
    checkpoint.save(folder, CONFIG, weights, {"number": number})
    return weights


def test_checkpoint_rebuilds_the_network(tmp_path: Path) -> None:
    """A loaded checkpoint has the weights, config and provenance that were saved, and its network is in eval mode."""
    weights = _save(tmp_path, 1)
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == CONFIG
    assert loaded.provenance == {"number": 1}
    assert not loaded.network.training
    restored = loaded.network.state_dict()
    assert restored.keys() == weights.keys()
    assert all(torch.equal(restored[name], weights[name]) for name in weights)


def test_checkpoint_of_before_there_were_cells(tmp_path: Path) -> None:
    """A checkpoint that names no cell is one of an LSTM."""
    _save(tmp_path, 1)
    tensors, document = read_tensors(tmp_path / "weights.safetensors")
    del document["network"]["cell"]
    write_tensors(tmp_path / "weights.safetensors", tensors, document)
    (tmp_path / "checkpoint.json").write_text(json.dumps(document), encoding="utf-8")
    assert checkpoint.load(tmp_path).config == CONFIG


def test_document_is_readable_json(tmp_path: Path) -> None:
    """checkpoint.json tells people and scripts the network and its making."""
    _save(tmp_path, 1)
    document = json.loads((tmp_path / "checkpoint.json").read_text(encoding="utf-8"))
    assert document["network"]["vocabulary"] == ["a", "b", "ü"]
    assert document["training"] == {"number": 1}


@pytest.mark.parametrize("moment", [0, 1])
def test_killed_writer_leaves_a_usable_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Killed before any of its renames, a save leaves weights and provenance that belong together."""
    weights = {1: _save(tmp_path, 1)}
    replace, renamed = Path.replace, 0

    def killed(self: Path, target: Path) -> Path:
        nonlocal renamed
        if renamed == moment:
            raise KilledError
        renamed += 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KilledError):
        _save(tmp_path, 2)
    monkeypatch.undo()
    torch.manual_seed(2)
    weights[2] = build(CONFIG).state_dict()
    loaded = checkpoint.load(tmp_path)
    expected = weights[loaded.provenance["number"]]
    assert loaded.provenance["number"] == moment + 1
    assert torch.equal(loaded.network.state_dict()["head.weight"], expected["head.weight"])


def _damage_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _foreign_weights(folder: Path) -> None:
    import safetensors.torch

    (folder / "weights.safetensors").write_bytes(safetensors.torch.save({"x": torch.zeros(2)}))


def _other_network(folder: Path) -> None:
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["network"]["hidden"] = 5
    path.write_text(json.dumps(document), encoding="utf-8")


def _unfitting_weights(folder: Path) -> None:
    tensors, document = read_tensors(folder / "weights.safetensors")
    del tensors["head.bias"]
    write_tensors(folder / "weights.safetensors", tensors, document)


def _newer_format(folder: Path) -> None:
    tensors, document = read_tensors(folder / "weights.safetensors")
    write_tensors(folder / "weights.safetensors", tensors, document | {"format": 99})


def _broken_json(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("{", encoding="utf-8")


def _json_of_another(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("[1]", encoding="utf-8")


def _no_document(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_damage_weights, "damaged"),
        (_foreign_weights, "not written by lstm-serve"),
        (_other_network, "different networks"),
        (_unfitting_weights, "do not fit"),
        (_newer_format, "format 99"),
        (_broken_json, "cannot be read as JSON"),
        (_json_of_another, "not the document"),
        (_no_document, "not a checkpoint"),
        (_no_weights, "does not exist"),
    ],
)
def test_unusable_checkpoint_is_one_sentence(tmp_path: Path, spoil: object, said: str) -> None:
    """Whatever is damaged, foreign or missing is told in one line that names the file."""
    _save(tmp_path, 1)
    assert callable(spoil)
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=said) as caught:
        checkpoint.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    """A folder that cannot be made is told, not raised as an OSError."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot write"):
        _save(tmp_path / "file", 1)
