"""The model repository: folders NAME/VERSION/model.onnx, loaded with what is wrong named and left out."""

import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from service.engine.ort import first_line
from service.engine.probe import probe
from service.engine.resident import on_device
from service.engine.runtime import Engine, load_engine
from service.engine.tuning import FAILURES, Choice, Tuner
from service.errors import ArtifactError, SettingsError
from service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An engine, where it stands in the repository, and what was chosen for it; None: what the settings say."""

    name: str
    version: str
    engine: Engine
    choice: Choice | None = None

    def chosen(self, settings: Settings) -> Choice:
        """How it runs."""
        return self.choice or Choice.fixed(settings)


def _ready(path: Path, settings: Settings) -> tuple[Engine, Choice | None]:
    """The engine of an artifact, probed and, if so wished, tuned.

    Whatever goes wrong with it is an ArtifactError, so that others are served.
    """
    try:
        engine = on_device(load_engine(path, settings), settings)
        _probed(path, engine)
        return _tuned(path, engine, settings) if settings.tune else (engine, None)
    except (ArtifactError, SettingsError):
        raise
    except Exception as error:  # a file can hold anything: it must not stop the start of the other models
        log.exception("%s cannot be loaded", path)
        raise ArtifactError(f"{path} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error


def _probed(path: Path, engine: Engine) -> None:
    try:
        probe(engine)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.detail}") from error


def _tuned(path: Path, engine: Engine, settings: Settings) -> tuple[Engine, Choice]:
    tuner = Tuner(engine, settings)
    try:
        tuner.tune(
            cores() - settings.http_workers, lambda n: load_engine(path, settings.model_copy(update={"threads": n}))
        )
    except FAILURES as error:
        log.warning("%s: measuring it failed, which leaves it as it is: %s", path, first_line(error))
    return tuner.engine, tuner.choice


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _artifacts(folder: Path) -> list[Path]:
    """Where artifacts stand, or should stand: a link to nowhere or a folder of that name is named, not passed over."""
    return [path for path in (p / "model.onnx" for p in sorted(folder.glob("*/*"))) if os.path.lexists(path)]


def _exactness(engine: Engine) -> str:
    if not engine.bit_exact:
        return "not bit-exact"
    if not engine.signature.batched:
        return "bit-exact, one row at a time"
    return "bit-exact" if engine.min_rows == 1 else f"bit-exact in ticks of {engine.min_rows} or more rows"


def _told(model: LoadedModel, settings: Settings) -> str:
    how, choice = "measured" if model.choice else "as set", model.chosen(settings)
    return f"{how}: threads {choice.threads}, ticks of {model.engine.min_rows} to {choice.max_batch} rows"


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
            started = time.perf_counter()
            engine, choice = _ready(path, settings)
        except ArtifactError as error:
            log.warning("left out: %s", error.detail)
            problems.append(error.detail)
            continue
        models.append(LoadedModel(name, version, engine, choice))
        signature, took_s = engine.signature, time.perf_counter() - started
        log.info(
            "loaded %s version %s in %.2f s (%s, %s, %s; %s)",
            *(name, version, took_s, signature.task, engine.provider, _exactness(engine)),
            _told(models[-1], settings),
        )
    if not models:
        raise ArtifactError(problems[0] if problems else f"no artifact in {folder} (expected NAME/VERSION/model.onnx)")
    return models, problems
