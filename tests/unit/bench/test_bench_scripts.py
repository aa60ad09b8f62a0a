"""The measuring scripts where something is missing: one clear sentence, and no stack of calls."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WITHOUT_EXTRA = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
sys.argv = ["bench", "--help"]
runpy.run_module("bench.{}", run_name="__main__")
"""
NEED_EXTRA = ["cell_ratio", "cells", "generation", "growth", "models", "stages", "stream"]


def _ended(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("script", NEED_EXTRA)
def test_a_missing_extra_is_named(script: str) -> None:
    """Whoever measures on a machine with only a server learns what to install."""
    status, told = _ended("-c", WITHOUT_EXTRA.format(script))
    assert (status, told.count("\n")) == (1, 1)
    assert "pip install 'lstm-serve[train]'" in told


@pytest.mark.parametrize("script", ["generation", "stages", "stream"])
def test_a_wrong_model_is_named(script: str, tmp_path: Path) -> None:
    """A file that is not there, or that is no model of the comparison, is told by its name."""
    status, told = _ended("-m", f"bench.{script}", "--onnx", "/nowhere.onnx")
    assert (status, told.splitlines()[-1].split(": ", 1)[1]) == (
        2,
        "error: argument --onnx: there is no file /nowhere.onnx",
    )


def test_another_model_is_told(tmp_path: Path) -> None:
    """Bytes that are no ONNX file, and a model with other inputs."""
    (nonsense := tmp_path / "x.onnx").write_bytes(b"nonsense")
    shipped = ROOT / "model_repository" / "sine" / "1" / "model.onnx"
    for path, sentence in (
        (nonsense, "cannot be read as an ONNX file"),
        (shipped, "is not the model of the comparison"),
    ):
        status, told = _ended("-m", "bench.generation", "--onnx", str(path))
        assert (status, told.count("\n")) == (1, 1)
        assert told.startswith(f"{path} {sentence}")


def test_every_option_of_growth_has_its_help() -> None:
    """What each number means is told where it is chosen."""
    done = subprocess.run([sys.executable, "-m", "bench.growth", "--help"], cwd=ROOT, capture_output=True, text=True)
    options = done.stdout.partition("options:")[2]
    for name in ("sizes", "active", "rounds", "live", "starts", "seed", "seconds", "out"):
        assert len(options.partition(f"--{name} ")[2].split("--")[0].split()) > 3
