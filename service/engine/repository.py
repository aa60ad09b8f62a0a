"""The model repository: folders NAME/VERSION/model.onnx, loaded with what is wrong named and left out."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from service.engine.ort import first_line
from service.engine.probe import probe
from service.engine.resident import on_device
from service.engine.runtime import Engine, load_engine
from service.errors import ArtifactError, SettingsError
from service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An engine and where it stands in the repository."""

    name: str
    version: str
    engine: Engine


def _ready(path: Path, settings: Settings) -> Engine:
    """The engine of an artifact, probed; whatever goes wrong with it is an ArtifactError, so that others are served."""
    try:
        engine = on_device(load_engine(path, settings), settings)
        _probed(path, engine)
    except (ArtifactError, SettingsError):
        raise
    except Exception as error:  # a file can hold anything: it must not stop the start of the other models
        log.exception("%s cannot be loaded", path)
        raise ArtifactError(f"{path} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error
    return engine


def _probed(path: Path, engine: Engine) -> None:
    try:
        probe(engine)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.detail}") from error


def _artifacts(folder: Path) -> list[Path]:
    """Where artifacts stand, or should stand: a link to nowhere or a folder of that name is named, not passed over."""
    return [path for path in (p / "model.onnx" for p in sorted(folder.glob("*/*"))) if os.path.lexists(path)]


def _exactness(engine: Engine) -> str:
    if not engine.bit_exact:
        return "not bit-exact"
    if not engine.signature.batched:
        return "bit-exact, one row at a time"
    return "bit-exact" if engine.min_rows == 1 else f"bit-exact in ticks of {engine.min_rows} or more rows"


def load_repository(folder: Path, settings: Settings) -> tuple[list[LoadedModel], list[str]]:
    """Every artifact that can be served, and one sentence for each that cannot.

    Raises:
        ArtifactError: not a single one can be served.
    """
    models: list[LoadedModel] = []
    problems: list[str] = []
    for path in _artifacts(folder):
        name, version = path.parent.parent.name, path.parent.name
        try:
            if not version.isdecimal() or version != str(int(version)):
                raise ArtifactError(f"{path.parent}: a version folder is a whole number, such as 1")
            engine = _ready(path, settings)
        except ArtifactError as error:
            log.warning("left out: %s", error.detail)
            problems.append(error.detail)
            continue
        models.append(LoadedModel(name, version, engine))
        log.info(
            "loaded %s version %s (%s, %s, %s)",
            name,
            version,
            engine.signature.task,
            engine.provider,
            _exactness(engine),
        )
    if not models:
        raise ArtifactError(problems[0] if problems else f"no artifact in {folder} (expected NAME/VERSION/model.onnx)")
    return models, problems
