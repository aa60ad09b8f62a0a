"""The artifact's file: from a checkpoint to bytes, and from bytes into a model repository.

Owns the rule that a file appears whole, past the gate, or not at all, and that a version does not change.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from export.errors import ExportError

FILE = "model.onnx"

Gate = Callable[[Path], None]  # raises when the file at the path must not be published


def fingerprint(content: bytes) -> str:
    """The sha256 that sessions are pinned to."""
    return hashlib.sha256(content).hexdigest()


def target_of(folder: Path) -> Path:
    """The file of a version folder; ExportError when the service would not look there."""
    if not folder.name.isdecimal() or folder.name != str(int(folder.name)) or not folder.parent.name:
        raise ExportError(f"{folder} is not a version folder: give NAME/VERSION, such as model_repository/language/1")
    return folder / FILE


def publish(content: bytes, path: Path, gate: Gate, *, force: bool = False) -> None:
    """Write the artifact beside its place, let the gate run that file, and only then move it there.

    Raises:
        ExportError: another artifact stands there and ``force`` is not given, or the folder cannot be written.
        Exception: whatever the gate raises; nothing is left behind then.
    """
    if not force:
        _refuse_change(content, path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # others may be writing there, too
    created: list[Path] = []
    try:
        created = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, content)
        gate(partial)
        if not force:
            _refuse_change(content, path)  # of another, in the meantime
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # there is nothing to remove where nothing could be written
            partial.unlink(missing_ok=True)
        for folder in created:
            with suppress(OSError):  # a folder that is not empty stays
                folder.rmdir()


def _refuse_change(content: bytes, path: Path) -> None:
    try:
        same = path.read_bytes() == content
    except FileNotFoundError:
        return
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    if not same:
        raise ExportError(
            f"{path} is another artifact already, and sessions may be pinned to it: "
            "choose a new version, or replace it with --force"
        )


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may keep the new name and lose the content
