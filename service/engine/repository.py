"""The model repository: folders NAME/VERSION/model.onnx, loaded with what is wrong named and left out."""

import logging
from dataclasses import dataclass
from pathlib import Path

from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.errors import ArtifactError
from service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An engine and where it stands in the repository."""

    name: str
    version: str
    engine: Engine


def _ready(path: Path, settings: Settings) -> Engine:
    engine = load_engine(path, settings)
    try:
        probe(engine)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.detail}") from error
    return engine


def load_repository(folder: Path, settings: Settings) -> tuple[list[LoadedModel], list[str]]:
    """Every artifact that can be served, and one sentence for each that cannot.

    Raises:
        ArtifactError: not a single one can be served.
    """
    models: list[LoadedModel] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*/*/model.onnx")):
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
            f"bit-exact from {engine.min_rows} rows" if engine.bit_exact else "not bit-exact",
        )
    if not models:
        raise ArtifactError(problems[0] if problems else f"no artifact in {folder} (expected NAME/VERSION/model.onnx)")
    return models, problems
