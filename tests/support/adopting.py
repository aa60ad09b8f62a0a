"""Adoption as tests see it: what was printed, and the engine of the file."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from onnx import ModelProto
from rich.console import Console
from typer.testing import CliRunner

from export.adoption.adopting import adopt_model
from export.adoption.wishes import Wishes
from export.command import app
from export.errors import ExportError
from service.artifact import Signature
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import load_settings

CPU = load_settings(provider="cpu")


class Adopted:
    """An adopted model: what was printed, and the engine of the file."""

    def __init__(self, folder: Path, made: ModelProto, wishes: Wishes) -> None:
        screen = StringIO()
        self.path = adopt_model(made, folder / "models" / "foreign" / "1", wishes, Console(file=screen, width=160))
        self.told = screen.getvalue()
        self.engine: Engine = load_engine(self.path, CPU)
        probe(self.engine)
        self.signature: Signature = self.engine.signature

    def answers(self, *sequences: list[float], output: str = "y") -> list[list[float]]:
        """The outputs of fresh rows of numbers that share a call."""
        chunks = [(np.array(s, self.signature.inputs[0].dtype).reshape(-1, *self._step),) for s in sequences]
        done = self.engine.run([self.engine.initial_row] * len(chunks), chunks)
        return [done.outputs[output][i, : len(s)].ravel().tolist() for i, s in enumerate(sequences)]

    @property
    def _step(self) -> tuple[int, ...]:
        return self.signature.inputs[0].step_shape


def adopted(folder: Path, made: ModelProto, **wishes: object) -> Adopted:
    """Adopt with some corrections."""
    return Adopted(folder, made, Wishes(**wishes))  # type: ignore[arg-type]


def refused(folder: Path, made: ModelProto, sentence: str, **wishes: object) -> None:
    """Adoption ends with the sentence, and nothing is written."""
    with pytest.raises(ExportError) as error:
        adopted(folder, made, **wishes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "models").exists()


def adopt(path: Path, *options: object) -> Result:
    """Run the command; the artifact is to stand beside the file's folder."""
    to = path.parent.parent / "models" / "sum" / "1"
    return CliRunner().invoke(app, ["adopt", str(path), "--to", str(to), *map(str, options)])


def sentence(result: Result, folder: Path) -> str:
    """The one sentence of a command that failed and left nothing."""
    assert isinstance(result.exception, ExportError), result.exception
    assert "\n" not in str(result.exception)
    assert not (folder / "models").exists()
    return str(result.exception)
