"""A file appears whole and past the gate, or not at all."""

import hashlib
from pathlib import Path

import pytest

from export.artifact import fingerprint, publish, target_of
from export.errors import ExportError


def _passes(path: Path) -> None:
    assert path.read_bytes()


def _fails(path: Path) -> None:
    raise ExportError(f"{path.name} fails")


def test_a_file_that_passes_is_published(tmp_path: Path) -> None:
    """The gate sees the very bytes that are then moved into their place, and nothing else is left there."""
    path, seen = tmp_path / "words" / "1" / "model.onnx", []
    publish(b"content", path, lambda partial: seen.append((partial.read_bytes(), path.exists())))
    assert seen == [(b"content", False)]
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"content"


def test_a_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """When the gate raises, neither the file nor the folders that were made for it remain."""
    with pytest.raises(ExportError, match="fails"):
        publish(b"content", tmp_path / "words" / "1" / "model.onnx", _fails)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    """An artifact that is being replaced stands untouched until its successor has passed."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match="fails"):
        publish(b"new", path, _fails, force=True)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_a_version_does_not_change(tmp_path: Path) -> None:
    """Another content is refused, the same content is not, and --force replaces."""
    path = tmp_path / "model.onnx"
    publish(b"old", path, _passes)
    publish(b"old", path, _passes)
    with pytest.raises(ExportError, match=r"another artifact already.*--force"):
        publish(b"new", path, _passes)
    publish(b"new", path, _passes, force=True)
    assert path.read_bytes() == b"new"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where a folder should be is one sentence."""
    (tmp_path / "words").write_text("not a folder")
    with pytest.raises(ExportError, match=r"words/1/model\.onnx cannot be written: "):
        publish(b"content", tmp_path / "words" / "1" / "model.onnx", _passes)


@pytest.mark.parametrize("folder", ["words", "words/first", "words/1/model.onnx", "1", "words/01", "words/٣"])
def test_only_a_version_folder_is_written_to(folder: str) -> None:
    """A place where the service would not look is refused before anything is computed."""
    with pytest.raises(ExportError, match="is not a version folder: give NAME/VERSION"):
        target_of(Path(folder))


def test_the_fingerprint_is_the_sha256_of_the_file() -> None:
    """Export tells the fingerprint that the service will pin sessions to."""
    assert target_of(Path("words/12")) == Path("words/12/model.onnx")
    assert fingerprint(b"content") == hashlib.sha256(b"content").hexdigest()


def test_two_at_a_time_do_not_mix(tmp_path: Path) -> None:
    """Who comes second finds the other's artifact, and leaves it: files in the making have names of their own."""
    path = target_of(tmp_path / "models" / "sine" / "1")

    def meanwhile(partial: Path) -> None:
        partial.with_name(".model.onnx.1.partial").write_bytes(b"another's, half")
        path.write_bytes(b"another's")

    with pytest.raises(ExportError, match="is another artifact already"):
        publish(b"content", path, meanwhile)
    assert path.read_bytes() == b"another's"
    assert sorted(p.name for p in path.parent.iterdir()) == [".model.onnx.1.partial", "model.onnx"]
