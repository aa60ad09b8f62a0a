"""What a serving process imports: its start is short, and stays so."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each takes from tens of milliseconds to seconds to import, and serves nothing.
HEAVY = (
    *("torch", "onnx", "onnxscript", "matplotlib", "pandas", "scipy", "sympy", "safetensors"),  # training and export
    *("onnxruntime.quantization", "onnxruntime.transformers", "onnxruntime.tools"),
    *("model", "export", "bench", "tests", "lstm_serve", "typer", "rich"),  # the command line and the other stations
    *("httpx", "requests", "aiohttp", "fastapi.testclient", "starlette.testclient"),  # clients
    *("pytest", "hypothesis", "unittest", "doctest", "pdb", "numpy.testing", "numpy.f2py", "IPython"),  # tests
    *("jinja2", "yaml", "watchfiles", "websockets", "wsproto", "setuptools", "pkg_resources", "tkinter", "curses"),
)

PROGRAM = """
import sys
import service.__main__, service.server
from service.app import build
from service.settings import load_settings
build(load_settings(durability="memory", provider="cpu", log_level="error"))
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """Every module that a server has imported once it has loaded the shipped models and can answer."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, cwd=ROOT, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", HEAVY)
def test_a_server_does_not_import(imported: set[str], module: str) -> None:
    """What is heavy and serves nothing is not imported, though it is installed: neither by us nor by a library."""
    assert {name for name in imported if name == module or name.startswith(f"{module}.")} == set()


def test_a_server_imports_what_serves(imported: set[str]) -> None:
    """The list above is held against a server that is really there."""
    assert {"fastapi", "uvicorn", "onnxruntime", "numpy", "service.engine.runtime", "service.api.steps"} <= imported


def test_a_supervisor_serves_nothing() -> None:
    """The parent of several processes imports nothing of what they serve with: they start that much earlier."""
    program = "import sys, service.__main__, service.fronts.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, text=True, check=True)
    assert {"fastapi", "uvicorn", "uvloop", "onnxruntime", "numpy"} & set(done.stdout.split()) == set()
